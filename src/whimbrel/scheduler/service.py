"""The scheduler's process: keeps the table of hosts in memory and answers `SelectTargets`."""

from __future__ import annotations

import asyncio

import structlog

from whimbrel.bus.port import Bus
from whimbrel.migration.messages import SelectTargets, Targets
from whimbrel.ops import clock, settings
from whimbrel.scheduler import table
from whimbrel.scheduler.choose import choose
from whimbrel.store.engine import Store

_log = structlog.get_logger()

FRESH = 0.5
"""A table that is younger than this, in seconds, is used again; a claim that it missed is refused by its guard."""


class Scheduler:
    """Answers the conductor's question; writes nothing."""

    def __init__(self, conf: settings.Scheduler, down_after: float, store: Store, bus: Bus) -> None:
        self._conf = conf
        self._down_after = down_after
        self._store = store
        self._bus = bus
        self._table: table.HostTable | None = None
        self._read_at = 0.0
        self._reading = asyncio.Lock()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._bus.consume("scheduler", self._on_message, prefetch=64)
        _log.info("scheduler ready")
        await asyncio.Event().wait()

    async def _on_message(self, message: object) -> Targets | None:
        if not isinstance(message, SelectTargets):
            _log.error("message of a type that a scheduler does not take", type=type(message).__name__)
            return None
        answer = choose(await self._hosts(FRESH), message, self._conf)
        if not answer.hosts:
            # A host may have been enabled a moment ago: nobody is refused on old news.
            answer = choose(await self._hosts(0.0), message, self._conf)
        _log.info(
            "targets chosen",
            hosts=list(answer.hosts),
            weights=list(answer.weights),
            refusals={refusal.host: refusal.reason for refusal in answer.refusals[:20]},
        )
        return answer

    async def _hosts(self, age: float) -> table.HostTable:
        """Return the table, at most `age` seconds old."""
        async with self._reading:
            if self._table is None or clock.monotonic() - self._read_at > age:
                self._table = await self._store.read(table.read, clock.now(), self._down_after)
                self._read_at = clock.monotonic()
            return self._table
