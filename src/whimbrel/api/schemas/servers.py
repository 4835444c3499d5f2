"""Bodies of servers and their actions, by microversion; one function makes each version's schema of a create."""

from __future__ import annotations

from typing import Any

from whimbrel.api.call import Schema, Version
from whimbrel.domain.server import MOVE, Manner
from whimbrel.migration.messages import LEAST_RATE

Json = dict[str, Any]

NAME: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^(?!\s)[^\x00-\x1f\x7f]*(?<!\s)\Z"}
BOOLEAN: Json = {"enum": [True, False, "True", "true", "TRUE", "1", "False", "false", "FALSE", "0", "on", "off"]}
COUNT: Json = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^0*[1-9][0-9]{0,8}\Z"}]}
DISK_CONFIG: Json = {"enum": ["AUTO", "MANUAL"]}
DESCRIPTION: Json = {"type": ["string", "null"], "maxLength": 255, "pattern": r"^[^\x00-\x08\x0e-\x1f]*\Z"}
HOSTNAME: Json = {"type": "string", "minLength": 1, "maxLength": 63, "pattern": r"^[a-zA-Z0-9][a-zA-Z0-9-]*\Z"}
FLAVOR_REF: Json = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 255},
        {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    ]
}
FULL_HOSTNAME: Json = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?([.][a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*\Z",
}
UUID: Json = {"type": "string", "format": "uuid"}
METADATA_KEY = r"^[a-zA-Z0-9-_:. ]{1,255}\Z"
METADATA: Json = {
    "type": "object",
    "patternProperties": {METADATA_KEY: {"type": "string", "maxLength": 255}},
    "additionalProperties": False,
}
TAG: Json = {"type": "string", "minLength": 1, "maxLength": 60, "pattern": r"^[^,/]*\Z"}
TAGS: Json = {"type": "array", "items": TAG, "maxItems": 50}
EMPTY: Json = {"anyOf": [{"type": "null"}, {"type": "object", "maxProperties": 0}]}


def strict(properties: Json, *required: str) -> Json:
    """Return the schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def one(since: Version, body: Json) -> tuple[Schema, ...]:
    """Return a schema that holds from one version on."""
    return (Schema(since, body),)


_HINTS: Json = {
    "type": "object",
    "properties": {
        "group": UUID,
        "different_host": {"anyOf": [UUID, {"type": "array", "items": UUID}]},
        "same_host": {"anyOf": [UUID, {"type": "array", "items": UUID}]},
    },
}
_NETWORK: Json = strict(
    {
        "uuid": UUID,
        "port": {"anyOf": [UUID, {"type": "null"}]},
        "fixed_ip": {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
        "tag": TAG,
    }
)
_NETWORKS: Json = {"type": "array", "items": _NETWORK, "maxItems": 16}
_BASE: Json = {
    "name": NAME,
    "imageRef": {"anyOf": [UUID, {"type": "string", "maxLength": 0}]},
    "flavorRef": FLAVOR_REF,
    "adminPass": {"type": "string"},
    "metadata": METADATA,
    "networks": _NETWORKS,
    "OS-DCF:diskConfig": DISK_CONFIG,
    "accessIPv4": {"type": "string", "format": "ipv4"},
    "accessIPv6": {"type": "string", "format": "ipv6"},
    "personality": {"type": "array"},
    "availability_zone": {"type": "string", "minLength": 1, "maxLength": 255},
    "block_device_mapping": {"type": "array"},
    "block_device_mapping_v2": {"type": "array", "items": {"type": "object"}, "maxItems": 16},
    "config_drive": BOOLEAN,
    "key_name": {"type": ["string", "null"], "maxLength": 255},
    "min_count": COUNT,
    "max_count": COUNT,
    "return_reservation_id": BOOLEAN,
    "security_groups": {
        "type": "array",
        "items": {"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 255}}},
    },
    "user_data": {"type": ["string", "null"], "maxLength": 65535, "format": "base64"},
}
_ADDED: tuple[tuple[Version, Json], ...] = (
    ((2, 19), {"description": DESCRIPTION}),
    ((2, 37), {"networks": {"anyOf": [_NETWORKS, {"enum": ["none", "auto"]}]}}),
    ((2, 52), {"tags": TAGS}),
    ((2, 57), {}),
    ((2, 63), {"trusted_image_certificates": {"type": ["array", "null"]}}),
    ((2, 74), {"host": {"type": "string", "minLength": 1, "maxLength": 255}, "hypervisor_hostname": NAME}),
    ((2, 90), {"hostname": HOSTNAME}),
    ((2, 94), {"hostname": FULL_HOSTNAME}),
)


def _create(version: Version) -> Json:
    properties = dict(_BASE)
    for since, added in _ADDED:
        if version >= since:
            properties |= added
    if version >= (2, 57):
        del properties["personality"]
    required = ("name", "flavorRef", "networks") if version >= (2, 37) else ("name", "flavorRef")
    server = strict(properties, *required)
    return strict({"server": server, "os:scheduler_hints": _HINTS, "OS-SCH-HNT:scheduler_hints": _HINTS}, "server")


CREATE = tuple(Schema(since, _create(since)) for since in ((2, 1), *(since for since, _ in _ADDED)))

_UPDATE: Json = {
    "name": NAME,
    "OS-DCF:diskConfig": DISK_CONFIG,
    "accessIPv4": {"type": "string", "format": "ipv4"},
    "accessIPv6": {"type": "string", "format": "ipv6"},
}
_DESCRIBED: Json = {**_UPDATE, "description": DESCRIPTION}
UPDATE = (
    Schema((2, 1), strict({"server": strict(_UPDATE)}, "server")),
    Schema((2, 19), strict({"server": strict(_DESCRIBED)}, "server")),
    Schema((2, 90), strict({"server": strict({**_DESCRIBED, "hostname": HOSTNAME})}, "server")),
    Schema((2, 94), strict({"server": strict({**_DESCRIBED, "hostname": FULL_HOSTNAME})}, "server")),
)


def action(name: str, value: Json, since: Version = (2, 1)) -> tuple[Schema, ...]:
    """Return the schema of an action's body: one key with this value."""
    return one(since, strict({name: value}, name))


_HOST: Json = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 255}, {"type": "null"}]}
_MANNER: Json = {MOVE: {"enum": list(Manner)}}
_WITH_BOOT: Json = {MOVE: {"enum": [manner for manner in Manner if manner is not Manner.SUSPENDED]}}
MIGRATE = (
    *action("migrate", {}),
    *action("migrate", {"anyOf": [{"type": "null"}, strict({"host": _HOST, **_MANNER})]}, (2, 56)),
)
_BLOCK: Json = {"block_migration": BOOLEAN}
_BLOCK_OR_AUTO: Json = {"block_migration": {"enum": [*BOOLEAN["enum"], "auto"]}}
MIGRATE_LIVE = (
    *action(
        "os-migrateLive",
        strict({"host": _HOST, **_BLOCK, "disk_over_commit": BOOLEAN}, "host", "block_migration", "disk_over_commit"),
    ),
    *action("os-migrateLive", strict({"host": _HOST, **_BLOCK_OR_AUTO}, "host", "block_migration"), (2, 25)),
    *action(
        "os-migrateLive",
        strict({"host": _HOST, **_BLOCK_OR_AUTO, "force": BOOLEAN}, "host", "block_migration"),
        (2, 30),
    ),
    *action("os-migrateLive", strict({"host": _HOST, **_BLOCK_OR_AUTO}, "host", "block_migration"), (2, 68)),
)
FORCE_COMPLETE = one((2, 22), strict({"force_complete": {"type": "null"}}, "force_complete"))
_RATE: Json = {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": LEAST_RATE, "maximum": 2**50}]}
LIMIT = one((2, 1), strict({"bytes_per_second": _RATE}, "bytes_per_second"))
_SHARED: Json = {"onSharedStorage": BOOLEAN}
_PLACE: Json = {"host": {"type": "string", "minLength": 1, "maxLength": 255}, "adminPass": {"type": "string"}}
EVACUATE = (
    *action("evacuate", strict({**_PLACE, **_SHARED}, "onSharedStorage")),
    *action("evacuate", strict(_PLACE), (2, 14)),
    *action("evacuate", strict({**_PLACE, "force": BOOLEAN}), (2, 29)),
    *action("evacuate", strict(_PLACE), (2, 68)),
)
RESIZE = action(
    "resize", strict({"flavorRef": FLAVOR_REF, "OS-DCF:diskConfig": DISK_CONFIG, **_WITH_BOOT}, "flavorRef")
)
REBOOT = action("reboot", strict({"type": {"enum": ["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]}}, "type"))
RESET_STATE = action("os-resetState", strict({"state": {"enum": ["active", "error"]}}, "state"))
LOCK = (
    *action("lock", {}),
    *action(
        "lock",
        {
            "anyOf": [
                {"type": "null"},
                strict({"locked_reason": {"type": "string", "minLength": 1, "maxLength": 255}}),
            ]
        },
        (2, 73),
    ),
)
MOST_LINES = 10**9 - 1
_LENGTH: Json = {
    "anyOf": [
        {"type": "null"},
        {"type": "integer", "minimum": -1, "maximum": MOST_LINES},
        {"type": "string", "pattern": r"^-?[0-9]{1,9}\Z"},
    ]
}
CONSOLE = action("os-getConsoleOutput", strict({"length": _LENGTH}))

SET_METADATA = one((2, 1), strict({"metadata": METADATA}, "metadata"))
SET_METADATA_ITEM = one((2, 1), strict({"meta": {**METADATA, "minProperties": 1, "maxProperties": 1}}, "meta"))
SET_TAGS = one((2, 26), strict({"tags": {**TAGS, "uniqueItems": True}}, "tags"))
