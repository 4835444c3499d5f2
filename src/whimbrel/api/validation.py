"""Bodies: read within a bound, decoded, and checked against the row's schema, with Nova's words for what is wrong."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError, best_match

from whimbrel.api.call import Schema, Version
from whimbrel.api.faults import RequestTimeout
from whimbrel.domain.errors import Invalid, TooLarge
from whimbrel.migration.bounds import holds_nul

MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 30.0

_validators: dict[int, Draft202012Validator] = {}
_formats = FormatChecker()


@_formats.checks("base64", raises=ValueError)
def _is_base64(value: object) -> bool:
    """Accept base64 with the line breaks that tools put into it, and no space that is not ASCII's own."""
    if isinstance(value, str):
        base64.b64decode(b"".join(value.encode("ascii").split()), validate=True)
    return True


async def read_json(stream: AsyncIterator[bytes]) -> Any:
    """Return the decoded body, None when there is none; TooLarge above 1 MiB, Invalid when it is not JSON.

    RequestTimeout when it is not whole in time.
    """
    data = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in stream:
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise TooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes; send less.")
    except TimeoutError as error:
        raise RequestTimeout(f"The body was not whole within {BODY_SECONDS:.0f} s; send it again.") from error
    if not data:
        return None
    try:
        body = msgspec.json.decode(bytes(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"The body is not JSON: {error}.") from error
    if b"\\u0000" in data and holds_nul(body):
        raise Invalid("The body holds a NUL character, which no text here may have.")
    return body


def check(schemas: tuple[Schema, ...], version: Version, body: Any) -> None:
    """Check the body against the newest schema that the version knows; Invalid names the field, value and reason."""
    newest = max((schema for schema in schemas if schema.since <= version), key=lambda s: s.since, default=None)
    if newest is None:
        return
    error = best_match(_validator(newest).iter_errors(body))
    if error is not None:
        raise Invalid(_words(error))


def _validator(schema: Schema) -> Draft202012Validator:
    """Compile once; the rows live as long as the process, so their identity is a safe key."""
    found = _validators.get(id(schema))
    if found is None:
        found = _validators[id(schema)] = Draft202012Validator(schema.body, format_checker=_formats)
    return found


def _words(error: ValidationError) -> str:
    path = error.absolute_path
    if not path:
        return error.message if len(error.message) < 500 else "The body does not match what this request takes."
    value = repr(error.instance)[:200]
    return f"Invalid input for field/attribute {path[-1]}. Value: {value}. {error.message[:500]}"
