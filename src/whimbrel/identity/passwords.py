"""Passwords: Argon2id at 64 MiB, a few at a time, with a short memory so that repeated logins cost nothing.

An unknown user takes as long as a wrong password, so that nobody can ask who exists.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from whimbrel.domain.errors import Unavailable
from whimbrel.ops import clock, ids

T = TypeVar("T")

MEMORY_KIB = 64 * 1024
ITERATIONS = 3
LANES = 1
AT_ONCE = 2
WAITING_MAX = 64
REMEMBER_SECONDS = 300.0
REMEMBERED_MAX = 1024
MAX_PASSWORD_BYTES = 4096

_NOBODY = "$argon2id$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
"""A hash that no password matches, checked in the place of an unknown user's."""


def hash_now(password: str) -> str:
    """Return the password's hash in the PHC form; takes a moment of one CPU and 64 MiB."""
    salt = ids.new_secret(16).encode()
    kdf = Argon2id(salt=salt, length=32, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB)
    return kdf.derive_phc_encoded(password.encode())


def matches_now(password: str, stored: str) -> bool:
    """Return whether the password has this hash; takes a moment of one CPU and 64 MiB."""
    try:
        Argon2id.verify_phc_encoded(password.encode(), stored)
    except (InvalidKey, ValueError):
        return False
    return True


class Passwords:
    """Hashes and checks in threads, at most two at once; a login storm waits in a bounded line, then gets 503."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(AT_ONCE)
        self._waiting = 0
        self._secret = ids.new_secret().encode()
        self._remembered: OrderedDict[bytes, float] = OrderedDict()

    async def hash(self, password: str) -> str:
        """Return the hash to store; Unavailable when too many wait."""
        return await self._run(lambda: hash_now(password))

    async def matches(self, password: str, stored: str | None) -> bool:
        """Return whether the password has the stored hash; None stands for a user that does not exist."""
        if len(password.encode()) > MAX_PASSWORD_BYTES:
            return False
        memory = self._memory(password, stored or _NOBODY)
        if self._remembered.get(memory, 0.0) > clock.monotonic():
            return True
        good = await self._run(lambda: matches_now(password, stored or _NOBODY))
        if good:
            self._remember(memory)
        return good

    def _memory(self, password: str, stored: str) -> bytes:
        """Return what is kept of a good login: worthless outside this process, and void once the hash changes."""
        return hmac.digest(self._secret, f"{stored}\n{password}".encode(), hashlib.sha256)

    def _remember(self, memory: bytes) -> None:
        self._remembered[memory] = clock.monotonic() + REMEMBER_SECONDS
        self._remembered.move_to_end(memory)
        while len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise Unavailable("Too many logins are waiting. Try again in a moment.")
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._waiting -= 1
