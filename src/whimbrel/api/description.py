"""The API's own description, OpenAPI 3.1, made from the table of routes: for people, client generators and fuzzers.

It cannot lie about requests, because paths, methods, microversions and bodies are the very rows that answer them.
The rows of one path and method (its microversions, its actions) are one operation here, whose body is any of theirs.
Answers are described by their error bodies only; what a success holds is OpenStack's to document.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whimbrel.api import microversion
from whimbrel.api.call import Call, Reply, Route, Schema, Version

Json = dict[str, Any]

OPENAPI = "3.1.0"
TITLE = "Whimbrel"
_JSON = "application/json"
_BYTES = "application/octet-stream"
_VERSION_PARAMETER = {"$ref": "#/components/parameters/microversion"}
_TEXT: Json = {"type": "string"}
_CODE_AND_MESSAGE: Json = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "message": _TEXT},
    "required": ["code", "message"],
}
_ERRORS: Mapping[str, tuple[str, Json]] = {
    "compute": (
        _JSON,
        {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": _CODE_AND_MESSAGE},
    ),
    "identity": (_JSON, {"type": "object", "properties": {"error": _CODE_AND_MESSAGE}, "required": ["error"]}),
    "network": (
        _JSON,
        {
            "type": "object",
            "properties": {
                "NeutronError": {
                    "type": "object",
                    "properties": {"type": _TEXT, "message": _TEXT, "detail": _TEXT},
                    "required": ["type", "message", "detail"],
                }
            },
            "required": ["NeutronError"],
        },
    ),
    "placement": (
        _JSON,
        {"type": "object", "properties": {"errors": {"type": "array", "minItems": 1}}, "required": ["errors"]},
    ),
    "image": ("text/html; charset=UTF-8", _TEXT),
    "whimbrel": (_JSON, {"type": "object", "properties": {"error": _CODE_AND_MESSAGE}, "required": ["error"]}),
}


def described(table: Sequence[Route]) -> tuple[Route, ...]:
    """Return the table with one row more: the one that serves the description of them all."""

    async def show(call: Call) -> Reply:
        """Describe this API, as OpenAPI 3.1."""
        return Reply(body=document(whole, call.services.public_url))

    whole = (*table, Route("", "GET", "/openapi.json", show, public=True))
    return whole


def document(table: Sequence[Route], url: str) -> Json:
    """Describe every row of the table; `url` is where the API is."""
    paths: dict[str, dict[str, list[Route]]] = {}
    for row in table:
        paths.setdefault(row.url_path, {}).setdefault(row.method.lower(), []).append(row)
    schemas = {_error_name(service): body for service, (_, body) in _ERRORS.items()}
    schemas |= {_schema_name(row, one): portable(one.body) for row in table for one in row.schemas}
    return {
        "openapi": OPENAPI,
        "info": {"title": TITLE, "version": microversion.text(microversion.MAX)},
        "servers": [{"url": url}],
        "paths": {
            path: {
                **{method: _operation(path, rows) for method, rows in methods.items()},
                "parameters": [
                    {"name": name, "in": "path", "required": True, "schema": _TEXT}
                    for name in re.findall(r"{(\w+)}", path)
                ],
            }
            for path, methods in paths.items()
        },
        "components": {
            "schemas": schemas,
            "parameters": {"microversion": _microversion()},
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    }


def portable(schema: Any) -> Any:
    """Return a schema with its patterns in JSON Schema's dialect (ECMA-262), where `$` is what Python calls `\\Z`."""
    if isinstance(schema, Mapping):
        return {
            key: _pattern(value)
            if key == "pattern" and isinstance(value, str)
            else {_pattern(name): portable(each) for name, each in value.items()}
            if key == "patternProperties"
            else portable(value)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [portable(each) for each in schema]
    return schema


def _operation(path: str, rows: Sequence[Route]) -> Json:
    first = rows[0]
    service = first.service or "whimbrel"
    media_type = _ERRORS[service][0]
    operation: Json = {
        "operationId": re.sub(r"\W+", "_", f"{first.method.lower()}{path}").strip("_"),
        "tags": [service],
        "summary": _first_line(first) if len(rows) == 1 else " ".join(dict.fromkeys(map(_first_line, rows))),
        "security": [] if first.public else [{"token": []}],
        "parameters": [_VERSION_PARAMETER] if service == "compute" else [],
        "responses": {
            "2XX": {"description": "It was done, or will be."},
            "3XX": {"description": "There are several versions to choose from."},
            "4XX": _error(service, media_type, "The request was refused, and nothing was changed."),
            "503": _error(service, media_type, "Something that is needed is away; try again."),
        },
        "x-rows": [_row(row) for row in rows],
    }
    body = _body(rows)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _body(rows: Sequence[Route]) -> Json | None:
    """Return what a request may carry: bytes, one action, or the body of one of the microversions."""
    if rows[0].raw:
        return {"required": True, "content": {_BYTES: {"schema": {}}}}
    if not any(row.schemas for row in rows):
        return None
    if rows[0].action is None:
        schema = _any_of(rows)
    else:
        # Every action is an object with its own single key, so exactly one of them fits.
        actions = dict.fromkeys(row.action for row in rows)
        schema = {"oneOf": [_any_of([row for row in rows if row.action == name]) for name in actions]}
    return {"required": True, "content": {_JSON: {"schema": schema}}}


def _any_of(rows: Iterable[Route]) -> Json:
    names = dict.fromkeys(_schema_name(row, one) for row in rows for one in row.schemas)
    references = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _schema_name(row: Route, schema: Schema) -> str:
    """Name a body by its handler and the version that it came with; handlers have names of their own."""
    words = [row.service, row.handler.__module__.rpartition(".")[2], row.handler.__name__]
    return ".".join([*words, microversion.text(schema.since)])


def _row(row: Route) -> Json:
    """Tell what the standard has no word for: the microversions that know this row, its action and its policy."""
    return {
        "since": microversion.text(row.since),
        "until": _text_or_none(row.until),
        "action": row.action,
        "policy": row.policy,
        "summary": _first_line(row),
    }


def _text_or_none(version: Version | None) -> str | None:
    return None if version is None else microversion.text(version)


def _first_line(row: Route) -> str:
    return (inspect.getdoc(row.handler) or "").partition("\n")[0]


def _error(service: str, media_type: str, why: str) -> Json:
    schema = {"$ref": f"#/components/schemas/{_error_name(service)}"}
    return {"description": why, "content": {media_type: {"schema": schema}}}


def _error_name(service: str) -> str:
    return f"{service}.error"


def _microversion() -> Json:
    return {
        "name": microversion.LEGACY_HEADER,
        "in": "header",
        "description": f"{microversion.HEADER}: compute 2.x says the same, and goes before it.",
        "schema": {"type": "string", "pattern": "^(latest|2\\.([1-9][0-9]?|100))$"},
    }


def _pattern(pattern: str) -> str:
    return pattern.replace(r"\Z", "$")
