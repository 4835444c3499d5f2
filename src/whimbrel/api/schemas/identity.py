"""Bodies of the identity service. What a client sends beyond these (an e-mail address, options) is left aside."""

from __future__ import annotations

from typing import Any

from whimbrel.api.call import Schema

_ID = {"type": "string", "minLength": 1, "maxLength": 64}
_NAME = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"\S"}
_TEXT = {"type": ["string", "null"], "maxLength": 4096}
_SECRET = {"type": "string", "minLength": 1, "maxLength": 1024}
_DOMAIN = {"type": "object", "properties": {"id": _ID, "name": _NAME}}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _schema(noun: str, properties: dict[str, Any], *required: str) -> tuple[Schema, ...]:
    return (Schema((2, 1), _object({noun: _object(properties, *required)}, noun)),)


_USER = {"id": _ID, "name": _NAME, "domain": _DOMAIN, "password": _SECRET}
_PROJECT = _object({"id": _ID, "name": _NAME, "domain": _DOMAIN})
_IDENTITY = _object(
    {
        "methods": {"type": "array", "minItems": 1, "maxItems": 4, "items": {"type": "string"}},
        "password": _object({"user": _object(_USER, "password")}, "user"),
        "token": _object({"id": {"type": "string", "minLength": 1}}, "id"),
    },
    "methods",
)
_SCOPE = {
    "anyOf": [
        {"const": "unscoped"},
        {"type": "object", "properties": {"project": _PROJECT}, "minProperties": 1, "maxProperties": 1},
    ]
}

AUTHENTICATE = _schema("auth", {"identity": _IDENTITY, "scope": _SCOPE}, "identity")

_PROJECT_FIELDS = {
    "name": {**_NAME, "maxLength": 64},
    "description": _TEXT,
    "enabled": {"type": "boolean"},
    "domain_id": {"enum": ["default", None]},
    "is_domain": {"const": False},
}
CREATE_PROJECT = _schema("project", _PROJECT_FIELDS, "name")
UPDATE_PROJECT = _schema("project", _PROJECT_FIELDS)

_USER_FIELDS = {
    "name": _NAME,
    "password": {**_SECRET, "type": ["string", "null"]},
    "enabled": {"type": "boolean"},
    "domain_id": {"enum": ["default", None]},
}
CREATE_USER = _schema("user", _USER_FIELDS, "name")
UPDATE_USER = _schema("user", _USER_FIELDS)
