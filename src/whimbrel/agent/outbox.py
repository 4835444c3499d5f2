"""The way of reports to the conductor: one that ends an order is sent until it is confirmed, however long it takes.

The rows are the ledger's, so memory holds one batch at most and a restart loses nothing. The writer wakes the
relay at once; a sweep each second catches the rest.
"""

from __future__ import annotations

import asyncio
import sqlite3

import structlog

from whimbrel.agent.ledger import Ledger, OutboxRow
from whimbrel.bus.port import Bus
from whimbrel.bus.queues import CONDUCTOR
from whimbrel.domain.errors import BusError
from whimbrel.migration.messages import Progress, StepReport

BATCH = 100
SWEEP = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds before the next try after the bus did not confirm; doubled each time."""

PASSING = 256
"""Answers and figures that may be on their way at once; what is beyond is dropped, and asked for again."""
PASSING_LIMIT = 10.0

log = structlog.get_logger(__name__)


class Relay:
    """Sends what the ledger's outbox holds, and passes on what may be lost."""

    def __init__(self, ledger: Ledger, bus: Bus) -> None:
        self._ledger = ledger
        self._bus = bus
        self._awake = asyncio.Event()
        self._passing: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Say that the outbox has a new row."""
        self._awake.set()

    def answer(self, report: StepReport) -> None:
        """Send, once, a report that changes nothing: if it is lost, the conductor asks again."""
        self._pass(report)

    def progress(self, progress: Progress) -> None:
        """Tell whoever looks how far a step is."""
        self._pass(progress)

    async def run(self) -> None:
        """Send reports for ever, in the order in which they were written."""
        last, pause = 0, FIRST_PAUSE
        while True:
            self._awake.clear()
            try:
                rows = await asyncio.to_thread(self._ledger.outbox, after=last, limit=BATCH)
                for row in rows:
                    await self._send(row)
                    last = row.id
            except (BusError, sqlite3.Error) as error:
                log.warning("a report could not be sent yet", reason=str(error), again_in=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if len(rows) < BATCH:
                await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(SWEEP):
                await self._awake.wait()
        except TimeoutError:
            pass

    async def _send(self, row: OutboxRow) -> None:
        report = row.report
        with structlog.contextvars.bound_contextvars(request_id=row.request_id, migration=report.migration):
            await self._bus.cast(CONDUCTOR, report)
        self._ledger.sent(row)

    def _pass(self, message: StepReport | Progress) -> None:
        if len(self._passing) < PASSING:
            task = asyncio.create_task(self._pass_on(message))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass_on(self, message: StepReport | Progress) -> None:
        try:
            async with asyncio.timeout(PASSING_LIMIT):
                if isinstance(message, Progress):
                    await self._bus.emit("progress", message)
                else:
                    await self._bus.cast(CONDUCTOR, message)
        except (BusError, TimeoutError) as error:
            log.info("an answer was lost", message=type(message).__name__, step=message.step, reason=str(error))
