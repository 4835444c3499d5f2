"""Tokens and tickets: sealed notes that say who the bearer is, so that no request needs the database to find out.

A token carries the user, the project and the roles as they were when it was issued, and holds until it expires:
a role or a user that is taken away meanwhile ends with the token's life. A ticket lets a host fetch one image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from whimbrel.domain.errors import SettingsError, Unauthorized
from whimbrel.identity.caller import Caller
from whimbrel.ops import clock, ids, keyfile

TICKET_SECONDS = 3600
MAX_TOKEN_CHARACTERS = 8192


class TokenData(msgspec.Struct, frozen=True, array_like=True, tag="token"):
    """What is sealed in a token. Times are epoch seconds."""

    caller: Caller
    methods: tuple[str, ...]
    audit_id: str
    issued_at: float
    expires_at: float


class _Ticket(msgspec.Struct, frozen=True, array_like=True, tag="ticket"):
    image_id: str
    expires_at: float


Sealed = TypeVar("Sealed", TokenData, _Ticket)
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(TokenData | _Ticket)


class Tokens:
    """Seals and opens, with the keys of one file (made at first use): the first key seals, each of them opens."""

    def __init__(self, key_file: Path, lifetime: int) -> None:
        self._lifetime = lifetime
        self._fernet = MultiFernet([Fernet(key) for key in _keys(key_file)])

    def issue(self, caller: Caller, methods: tuple[str, ...], not_after: float = math.inf) -> tuple[str, TokenData]:
        """Return a token for the caller and what it says; it ends with its lifetime, or at `not_after` if sooner."""
        now = clock.now()
        expires_at = min(now + self._lifetime, not_after)
        data = TokenData(caller, methods, ids.new_secret(16), now, expires_at)
        return self._seal(data), data

    def verify(self, token: str) -> Caller:
        """Return whom the token was given to; Unauthorized when it is not ours or no longer valid."""
        return self.read(token).caller

    def read(self, token: str) -> TokenData:
        """Return all that the token says; Unauthorized when it is not ours or no longer valid."""
        return self._open(token, TokenData, "The token is not valid, or no longer; log in again.")

    def ticket(self, image_id: str, lifetime: int = TICKET_SECONDS) -> str:
        """Return a ticket that lets whoever shows it fetch this one image, for `lifetime` seconds."""
        return self._seal(_Ticket(image_id, clock.now() + lifetime))

    def verify_ticket(self, ticket: str) -> str:
        """Return the id of the image that the ticket is for; Unauthorized when it is not ours or no longer valid."""
        return self._open(ticket, _Ticket, "The ticket is not valid, or no longer; ask again for the image.").image_id

    def _seal(self, data: TokenData | _Ticket) -> str:
        return self._fernet.encrypt_at_time(_encode(data), int(clock.now())).decode().rstrip("=")

    def _open(self, text: str, kind: type[Sealed], refusal: str) -> Sealed:
        if len(text) > MAX_TOKEN_CHARACTERS:
            raise Unauthorized(refusal)
        try:
            data = _decoder.decode(self._fernet.decrypt(text + "=" * (-len(text) % 4)))
        except (InvalidToken, msgspec.DecodeError, ValueError) as error:
            raise Unauthorized(refusal) from error
        if not isinstance(data, kind) or data.expires_at <= clock.now():
            raise Unauthorized(refusal)
        return data


def _keys(path: Path) -> list[bytes]:
    """Read the keys, one a line; make the file with one key when there is none."""
    try:
        if not path.exists():
            keyfile.make(path, Fernet.generate_key() + b"\n")
        keys = path.read_bytes().split()
        for key in keys:
            Fernet(key)
    except OSError as error:
        raise SettingsError(f"Cannot read or make the token keys {path}: {error.strerror}.") from error
    except ValueError as error:
        raise SettingsError(f"{path} holds something else than Fernet keys, one a line: {error}.") from error
    if not keys:
        raise SettingsError(f"{path} holds no key; remove the file to have one made.")
    return keys
