"""Bodies that switch compute services on and off, in their old and their new form."""

from __future__ import annotations

from whimbrel.api.call import Schema
from whimbrel.api.schemas.servers import BOOLEAN, Json, strict

_HOST: Json = {"type": "string", "minLength": 1, "maxLength": 255}
_REASON: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"\S"}

_BY_NAME: Json = strict(
    {"host": _HOST, "binary": _HOST, "disabled_reason": _REASON, "forced_down": BOOLEAN}, "host", "binary"
)
_BY_ID: Json = strict({"status": {"enum": ["enabled", "disabled"]}, "disabled_reason": _REASON, "forced_down": BOOLEAN})

FENCE = (
    Schema((2, 1), strict({"boot": {"type": "string", "minLength": 1, "maxLength": 64}, "reason": _REASON}, "boot")),
)
UPDATE = (Schema((2, 1), _BY_NAME), Schema((2, 53), _BY_ID))
