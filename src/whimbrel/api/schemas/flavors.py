"""Bodies of flavors, their extra specs and who may use them."""

from __future__ import annotations

from typing import Any

from whimbrel.api.call import Schema
from whimbrel.api.schemas.servers import BOOLEAN, action, one, strict

_NAME: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^(?!\s)[^\x00-\x1f]*(?<!\s)\Z",
}
MOST = 2**31 - 1


def _size(least: int) -> dict[str, Any]:
    """Return the schema of a number that some clients send as text."""
    number = {"type": "integer", "minimum": least, "maximum": MOST}
    return {
        "anyOf": [number, {"type": "string", "pattern": r"^0*[0-9]{1,9}\Z" if least == 0 else r"^0*[1-9][0-9]{0,8}\Z"}]
    }


_FLAVOR: dict[str, Any] = {
    "name": _NAME,
    "id": {
        "anyOf": [
            {"type": "null"},
            {"type": "integer", "minimum": 0, "maximum": MOST},
            {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^(?! )[a-zA-Z0-9. _-]+(?<! )\Z"},
        ]
    },
    "ram": _size(1),
    "vcpus": _size(1),
    "disk": _size(0),
    "OS-FLV-EXT-DATA:ephemeral": _size(0),
    "swap": {"anyOf": [*_size(0)["anyOf"], {"const": ""}]},
    "rxtx_factor": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "maxLength": 20}]},
    "os-flavor-access:is_public": BOOLEAN,
}
_DESCRIPTION: dict[str, Any] = {"type": ["string", "null"], "maxLength": 65535, "pattern": r"^[^\x00-\x08\x0e-\x1f]*\Z"}
_NEEDED = ("name", "ram", "vcpus", "disk")

CREATE = (
    Schema((2, 1), strict({"flavor": strict(_FLAVOR, *_NEEDED)}, "flavor")),
    Schema((2, 55), strict({"flavor": strict({**_FLAVOR, "description": _DESCRIPTION}, *_NEEDED)}, "flavor")),
)
UPDATE = one((2, 55), strict({"flavor": strict({"description": _DESCRIPTION}, "description")}, "flavor"))

_SPECS: dict[str, Any] = {
    "type": "object",
    "patternProperties": {
        r"^[a-zA-Z0-9-_:. ]{1,255}\Z": {"anyOf": [{"type": "string", "maxLength": 255}, {"type": "number"}]}
    },
    "additionalProperties": False,
}
EXTRA_SPECS = one((2, 1), strict({"extra_specs": _SPECS}, "extra_specs"))
EXTRA_SPEC = one((2, 1), {**_SPECS, "minProperties": 1, "maxProperties": 1})

_TENANT = strict(
    {"tenant": {"type": "string", "minLength": 1, "maxLength": 32, "pattern": r"^[a-zA-Z0-9-]*\Z"}}, "tenant"
)
ADD_ACCESS = action("addTenantAccess", _TENANT)
REMOVE_ACCESS = action("removeTenantAccess", _TENANT)
