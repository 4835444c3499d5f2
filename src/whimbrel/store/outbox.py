"""Messages that a transaction wants sent: written with it, published after it, at least once.

The process that wrote a row is told its id at once and publishes it; a sweep, by any process, takes rows that are
due for a while (LEASE), so that another's sweep leaves them alone, and publishes them. A row is deleted some time after
it was sent, so a crash in between sends it twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from sqlalchemy import ColumnElement, Connection, bindparam, delete, or_, select, update

from whimbrel.domain.errors import BusError, Unavailable
from whimbrel.migration.messages import MESSAGES
from whimbrel.ops import clock
from whimbrel.store.engine import Store
from whimbrel.store.tables import outbox

CONDUCTOR_QUEUE = "conductor"
"""Where every conductor takes its work from."""
SWEEP_AGE = 2.0
"""Seconds that the writer of a row has for publishing it."""
LEASE = 10.0
"""Seconds that a sweep has for what it has taken; a process that dies over it leaves the rows to the next."""
SWEEP_EVERY = 1.0
BATCH = 200

_TYPES: dict[str, type[Any]] = {kind.__name__: kind for kind in MESSAGES}
_log = structlog.get_logger()

Cast = Callable[[str, object], Awaitable[None]]


def put(tx: Connection, queue: str, message: object) -> int:
    """Write a message for `queue` in this transaction and return the row's id."""
    row = {
        "queue": queue,
        "type": type(message).__name__,
        "body": msgspec.to_builtins(message),
        "due_at": clock.now() + SWEEP_AGE,
    }
    result = tx.execute(_INSERT, row)
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


_IS_DUE: tuple[ColumnElement[bool], ...] = (
    # From further in the future than any lease, whoever's clock: it was written before the clock was set back.
    or_(outbox.c.due_at <= bindparam("now"), outbox.c.due_at > bindparam("far_ahead")),
    outbox.c.id.not_in(bindparam("unreadable", expanding=True)),
)
_ANY_DUE = select(outbox.c.id).where(*_IS_DUE).limit(1)
_DUE = (
    select(outbox.c.id, outbox.c.queue, outbox.c.type, outbox.c.body)
    .where(*_IS_DUE)
    .order_by(outbox.c.id)
    .limit(BATCH)
    .with_for_update(skip_locked=True)
)
_INSERT = outbox.insert()
_THESE = outbox.c.id.in_(bindparam("ids", expanding=True))
_LEASE = update(outbox).where(_THESE).values(due_at=bindparam("until"))
_FORGET = delete(outbox).where(_THESE)


def _due_at(now: float, unreadable: set[int]) -> dict[str, Any]:
    return {"now": now, "far_ahead": now + 2 * LEASE, "unreadable": sorted(unreadable)}


def _any_due(tx: Connection, now: float, unreadable: set[int]) -> bool:
    return tx.execute(_ANY_DUE, _due_at(now, unreadable)).first() is not None


def _take_due(tx: Connection, now: float, unreadable: set[int]) -> list[tuple[int, str, str, Any]]:
    """Take the oldest rows that are due and that no other sweep is taking just now."""
    rows = tx.execute(_DUE, _due_at(now, unreadable)).all()
    tx.execute(_LEASE, {"ids": [row.id for row in rows], "until": now + LEASE})
    return [(row.id, row.queue, row.type, row.body) for row in rows]


def _forget(tx: Connection, sent: list[int]) -> None:
    tx.execute(_FORGET, {"ids": sent})


class Relay:
    """Publishes the outbox. `send_now` hands over what a transaction has just written; `run` sweeps the rest."""

    def __init__(self, store: Store, cast: Cast) -> None:
        self._store = store
        self._cast = cast
        self._sent: list[int] = []
        self._sending: set[int] = set()
        self._unreadable: set[int] = set()

    async def send_now(self, rows: list[tuple[int, str, object]]) -> None:
        """Publish rows (id, queue, message) just committed here, in order; what fails is left to the sweep."""
        for number, queue, message in rows:
            self._sending.add(number)
            try:
                await self._cast(queue, message)
                self._sent.append(number)
            except BusError as error:
                _log.warning("message not published yet", queue=queue, type=type(message).__name__, reason=str(error))
            finally:
                self._sending.discard(number)

    async def run(self) -> None:
        """Sweep until cancelled: forget what was sent, and publish what nobody has published."""
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            try:
                await self._sweep()
            except (BusError, Unavailable) as error:
                _log.warning("outbox sweep failed", reason=str(error))

    async def _sweep(self) -> None:
        sent, self._sent = self._sent, []
        if sent:
            try:
                await self._store.write(_forget, sent)
            except Unavailable:
                self._sent = sent + self._sent
                raise
        if not await self._store.read(_any_due, clock.now(), self._unreadable):
            return  # nearly always: looking does not write
        for number, queue, kind, body in await self._store.write(_take_due, clock.now(), self._unreadable):
            if number in self._sending or number in self._sent:
                continue
            try:
                message = msgspec.convert(body, _TYPES[kind])
            except (KeyError, msgspec.ValidationError) as error:
                # Another release wrote it, say. It stays for that one, and the rows behind it go on.
                self._unreadable.add(number)
                _log.error(
                    "message in the outbox cannot be read", row=number, queue=queue, type=kind, reason=str(error)
                )
                continue
            await self.send_now([(number, queue, message)])

    async def close(self) -> None:
        """Forget what was sent; what was not stays for the next process."""
        sent, self._sent = self._sent, []
        if sent:
            with contextlib.suppress(Unavailable):
                await self._store.write(_forget, sent)
