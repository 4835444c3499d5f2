"""Messages as bytes and back: plain frozen dataclasses inside a JSON envelope that names their type.

    {"type": "Order", "body": {...}, "context": {"request_id": "req-...", "migration": 17}}

The context is the part of the logs' context that must follow a request through all processes. What does not
decode exactly (an unknown type, an unknown or ill-typed field) is refused: a receiver never guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from whimbrel.domain.errors import BusError
from whimbrel.migration.bounds import holds_nul

MAX_BYTES = 4 * 1024 * 1024
CONTEXT_KEYS = ("request_id", "migration")

Context = dict[str, str | int]


class DecodeError(BusError):
    """Bytes that are not one of our messages; receiving them again would not help."""


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    body: msgspec.Raw
    context: Context = {}


class Codec:
    """Encodes and decodes the registered message types, and nothing else."""

    def __init__(self, types: Mapping[str, type]) -> None:
        self._decoders: dict[str, msgspec.json.Decoder[object]] = {
            name: msgspec.json.Decoder(type_) for name, type_ in types.items()
        }
        self._names = {type_: name for name, type_ in types.items()}
        self._envelopes = msgspec.json.Decoder(_Envelope)

    def encode(self, message: object, context: Context) -> bytes:
        """Return the message in its envelope; BusError if its type is not registered or it is above 4 MiB."""
        name = self._names.get(type(message))
        if name is None:
            raise BusError(f"{type(message).__name__} is not a registered message; add it to the registry.")
        data = msgspec.json.encode(_Envelope(name, msgspec.Raw(msgspec.json.encode(message)), context))
        if len(data) > MAX_BYTES:
            raise BusError(f"{name} takes {len(data)} bytes; a message may take {MAX_BYTES} at most.")
        return data

    def decode(self, data: bytes) -> tuple[object, Context]:
        """Return the message and its context; DecodeError says what is wrong and where."""
        try:
            envelope = self._envelopes.decode(data)
            decoder = self._decoders.get(envelope.type)
            if decoder is None:
                raise DecodeError(f"Message type {envelope.type!r} is unknown here.")
            message = decoder.decode(envelope.body)
            # msgspec ignores a dataclass's unknown fields. Decoded and encoded again they would be gone.
            given = msgspec.json.decode(envelope.body)
            unknown = _first_unknown(given, msgspec.to_builtins(message, str_keys=True), "$")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError(f"Malformed message: {error}.") from error
        if unknown is not None:
            raise DecodeError(f"{envelope.type} has an unknown field {unknown}.")
        if b"\\u0000" in data and holds_nul([given, envelope.context]):
            raise DecodeError(f"{envelope.type} holds a NUL character, which no text here may have.")
        return message, envelope.context


def registry(*types: type) -> Codec:
    """Return a codec of these dataclasses; their class names are their names on the wire."""
    return Codec({type_.__name__: type_ for type_ in types})


def current_context() -> Context:
    """Return what a message sent now carries along, from the context of the logs."""
    bound = structlog.contextvars.get_contextvars()
    return {key: bound[key] for key in CONTEXT_KEYS if key in bound}


def _first_unknown(given: Any, known: Any, path: str) -> str | None:
    """Return the path of the first key that `given` has and `known` lacks, at any depth."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key not in known:
                return f"{path}.{key}"
            found = _first_unknown(value, known[key], f"{path}.{key}")
            if found is not None:
                return found
    elif isinstance(given, list) and isinstance(known, list | tuple):
        for number, (value, other) in enumerate(zip(given, known, strict=False)):
            found = _first_unknown(value, other, f"{path}[{number}]")
            if found is not None:
                return found
    return None
