"""The conductor's process: messages and time in, transactions, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from whimbrel.audit.auditor import Auditor, tell_news
from whimbrel.audit.findings import Identity
from whimbrel.bus.port import Bus
from whimbrel.conductor import hosts, reports, restore, timers
from whimbrel.conductor.drive import Driver, Effects
from whimbrel.conductor.fencing import Fencer
from whimbrel.conductor.passes import Passes
from whimbrel.domain.errors import BusError, Unavailable
from whimbrel.migration.messages import Ask, SelectTargets, StepReport, Targets, Wake
from whimbrel.migration.presence import Heartbeat
from whimbrel.ops import clock, settings
from whimbrel.store import migrations
from whimbrel.store.engine import Store
from whimbrel.store.outbox import Relay

_log = structlog.get_logger()

TICK = 1.0
LOOK_AGAIN = 0.2
SELECT_TIMEOUT = 5.0
CHOOSING = 64
"""At most so many questions to the scheduler at once."""


class Conductor:
    """Consumes the conductor's queue and the heartbeats, keeps the timers, publishes what transactions leave."""

    def __init__(
        self,
        conf: settings.Settings,
        store: Store,
        bus: Bus,
        ticket_url: Callable[[str], str],
        passes: Passes | None = None,
    ) -> None:
        self._conf = conf.conductor
        self._store = store
        self._bus = bus
        self._relay = Relay(store, bus.cast)
        self._passes = passes
        self._driver = Driver(self._conf, ticket_url, passes)
        self._fencer = Fencer(conf.fencing, self._conf, store)
        self._choosing = asyncio.Semaphore(CHOOSING)
        self._choosing_for: dict[int, asyncio.Task[None]] = {}
        self._listening_since = clock.now()

    async def run(self) -> None:
        """Take up what is unfinished, then serve until cancelled."""
        await self._bus.subscribe("heartbeats", self._on_heartbeat)
        await self._hear_every_host()
        for migration_id in await self._store.read(migrations.open_ids):
            await self._apart(self._driver.advance, migration_id)
        await self._bus.consume("conductor", self._on_message, prefetch=64)
        _log.info("conductor ready")
        try:
            async with asyncio.TaskGroup() as group:  # none of these lives on without the others
                for work in (self._relay.run, self._audit_for_ever, self._fence, self._keep_time):
                    group.create_task(work())
        finally:
            for task in self._choosing_for.values():
                task.cancel()
            await self._relay.close()

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            await self._survive(self._tick)

    async def _hear_every_host(self) -> None:
        """Before anything is ordered: what the hosts know may be newer than this database, if that was restored."""
        began, end = clock.now(), clock.monotonic() + self._conf.census
        while missing := await self._store.read(restore.unheard, began):
            if clock.monotonic() > end:
                _log.warning("hosts not heard yet", hosts=missing[:20])
                return
            await asyncio.sleep(LOOK_AGAIN)

    async def _audit_for_ever(self) -> None:
        """Audit now and then, and log each drift when it is first seen and when it is gone."""
        auditor = Auditor(self._store, self._bus, self._relay, self._conf.service_down_after)
        known: set[Identity] = set()
        while self._conf.audit_every:
            await asyncio.sleep(self._conf.audit_every)
            try:
                known = tell_news(await auditor.run(), known)
            except (BusError, Unavailable) as error:
                _log.warning("audit put off", reason=str(error))
            except Exception:  # the conductor must outlive a fault in an audit
                _log.exception("internal error in an audit")

    async def _on_message(self, message: object) -> object | None:
        match message:
            case StepReport():
                await self._publish(await self._store.write(reports.take, self._driver, message))
            case Wake(migration):
                await self._publish(await self._store.write(self._driver.advance, migration))
            case _:
                _log.error("message of a type that a conductor does not take", type=type(message).__name__)
        return None

    async def _on_heartbeat(self, message: object) -> None:
        if isinstance(message, Heartbeat):
            await self._publish(await self._store.write(hosts.hear, message, self._conf))

    async def _tick(self) -> None:
        now = clock.now()
        if not self._bus.healthy() or self._listening_since > now:  # deaf, or the clock was set back
            self._listening_since = now
        due = await self._store.read(timers.look, self._conf, listening_since=self._listening_since)
        for key in due.silent:
            await self._apart(timers.call_silent, self._driver, key)
        for server in due.windows:
            await self._apart(timers.close_window, server)
        for migration_id in due.unplaced:
            await self._apart(timers.place_again, self._driver, migration_id)
        for migration_id in due.asleep:
            await self._apart(self._driver.advance, migration_id)
        await self._apart(timers.collect_debts, self._conf)
        await self._apart(restore.settle, self._conf)
        if asked := [key for key, _ in due.asks] + due.unreadable:
            await self._store.write(timers.note_asked, asked)
        orders = [ask.order for _, ask in due.asks]
        if orders:
            orders = await self._store.read(migrations.steered, orders)
        if orders and self._passes is not None:
            orders = await self._store.read(self._passes.renew, orders)
        for order in orders:  # one host's queue may take nothing; the others' must all the same
            await self._pass(f"agent.{order.host}", Ask(order))

    async def _fence(self) -> None:
        """Look for proofs for ever, beside the timers: a fence device may take its time."""
        while True:
            await asyncio.sleep(TICK)
            await self._survive(self._look_for_proofs)

    async def _look_for_proofs(self) -> None:
        await self._relay.send_now(await self._fencer.look())

    async def _apart(self, function: Callable[..., Effects], *args: object) -> None:
        """Run one transaction and publish what it leaves."""
        try:
            await self._publish(await self._store.write(function, *args))
        except (BusError, Unavailable):
            raise
        except Exception:  # every other migration must outlive a fault in this one
            _log.exception("internal error in a timer", what=function.__name__, on=str(args[-1])[:200])

    async def _publish(self, effects: Effects) -> None:
        for migration_id, question in effects.select:
            if migration_id not in self._choosing_for:  # the timer wishes for an answer again and again
                self._choosing_for[migration_id] = asyncio.create_task(self._choose(migration_id, question))
        if effects.outbox:
            await self._relay.send_now(effects.outbox)
        for queue, message in effects.passing:
            await self._pass(queue, message)
        for change in effects.changed:
            await self._bus.emit("changed", change)

    async def _pass(self, queue: str, message: object) -> None:
        """Send what may be lost."""
        try:
            await self._bus.cast(queue, message)
        except BusError as error:
            _log.info("a message was lost", queue=queue, type=type(message).__name__, reason=str(error))

    async def _choose(self, migration_id: int, question: SelectTargets) -> None:
        """Ask a scheduler; when none answers, the timer asks again."""
        async with self._choosing:
            try:
                answer = await self._bus.call("scheduler", question, timeout=SELECT_TIMEOUT)
                if not isinstance(answer, Targets):
                    raise BusError(f"The scheduler answered with {type(answer).__name__} instead of Targets.")
                await self._publish(await self._store.write(timers.keep_targets, self._driver, migration_id, answer))
            except (BusError, Unavailable) as error:
                _log.warning("no targets yet", migration=migration_id, reason=str(error))
            finally:
                self._choosing_for.pop(migration_id, None)

    async def _survive(self, work: Callable[[], Awaitable[None]]) -> None:
        """A timer outlives a broker or database that is away for a while."""
        try:
            await work()
        except (BusError, Unavailable) as error:
            _log.warning("timer put off", reason=str(error))
