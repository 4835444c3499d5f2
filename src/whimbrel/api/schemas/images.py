"""What an image's document may look like, at its creation and after each change."""

from __future__ import annotations

from typing import Any

from whimbrel.api.call import Schema

_UUID = r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z"
_MAX_INTEGER = 2**31 - 1

DISK_FORMATS = ("qcow2", "raw")
VISIBILITIES = ("public", "private", "shared", "community")

_FIELDS: dict[str, Any] = {
    "id": {"type": "string", "pattern": _UUID},
    "owner": {"type": "string", "minLength": 1, "maxLength": 32},
    "name": {"type": ["string", "null"], "maxLength": 255},
    "visibility": {"enum": list(VISIBILITIES)},
    "protected": {"type": "boolean"},
    "os_hidden": {"type": "boolean"},
    "tags": {"type": "array", "maxItems": 128, "items": {"type": "string", "minLength": 1, "maxLength": 255}},
    "disk_format": {"enum": [*DISK_FORMATS, None]},
    "container_format": {"enum": ["bare", None]},
    "min_disk": {"type": "integer", "minimum": 0, "maximum": _MAX_INTEGER},
    "min_ram": {"type": "integer", "minimum": 0, "maximum": _MAX_INTEGER},
}

DOCUMENT = (
    Schema(
        (2, 1),
        {
            "type": "object",
            "properties": _FIELDS,
            "additionalProperties": {"type": "string", "maxLength": 4096},
            "propertyNames": {"minLength": 1, "maxLength": 255},
            "maxProperties": 128 + len(_FIELDS),
        },
    ),
)
