"""Obeys orders: for each server at most one step at a time, each in its own thread.

What must hold: an order is begun only after the ledger took it as new, and never a second time. A newer order for a
server first cancels and joins what runs; while that does not end, nothing is begun beside it, and the host says
that it cannot tell. What was begun and not ended (the agent died, the hypervisor was silent) is looked at by the
step's probe, not done again.

All but `_work` and what it calls runs on the event loop, so the lanes need no lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Thread

import msgspec
import structlog

from whimbrel.agent.control import Measure, StepControl
from whimbrel.agent.ledger import Ledger, Standing
from whimbrel.agent.outbox import Relay
from whimbrel.domain.errors import CannotTell, StepError
from whimbrel.domain.migration import Answer, Verb
from whimbrel.migration.messages import Facts, Order, Progress, StepReport
from whimbrel.migration.ports import Control, World
from whimbrel.migration.protocols import HostStep, protocol

THREADS = 32
"""Steps that may be at work at once on one host; further ones queue."""
JOIN = 10.0
"""Seconds that a step has to end when a newer order came."""
PROBE_LIMIT = 20.0
"""Seconds for looking at what became of a step."""
PARTING = 3.0
"""Seconds for the running steps to end when the agent stops; a probe finds out about the others later."""
REASON_LENGTH = 2000
ENDS = (Answer.DONE, Answer.FAILED, Answer.NOT_DONE)
"""Answers that end an order; they are written down and never change."""

log = structlog.get_logger(__name__)

Outcome = tuple[Answer, Facts, str]


@dataclass(eq=False)
class Work:
    """One order in a lane: to be done, or (`probing`) only to be looked at."""

    order: Order
    probing: bool
    control: StepControl | None = None

    def elapsed(self) -> float:
        """Return the seconds of work so far, 0 while it waits for its turn."""
        return self.control.elapsed() if self.control is not None else 0.0


@dataclass(eq=False)
class Lane:
    """What is at work and what came last for one server."""

    newest: Work | None = None
    running: Work | None = None
    free: asyncio.Event = field(default_factory=asyncio.Event)


class Executor:
    """The lanes of one host."""

    def __init__(self, host: str, ledger: Ledger, world: World, relay: Relay, stall_timeout: float) -> None:
        self._host = host
        self._ledger = ledger
        self._world = world
        self._relay = relay
        self._stall_timeout = stall_timeout
        self._lanes: dict[str, Lane] = {}
        self._slots = asyncio.Semaphore(THREADS)
        self._gate = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    async def obey(self, order: Order) -> None:
        """Write the order down and begin it; returns once it is durable, so that the message may be acknowledged."""
        async with self._gate:  # what is written first is also begun first
            heard = await asyncio.to_thread(self._ledger.accept, order)
            if heard.standing is Standing.NEW:
                self._begin(Work(order, probing=False))
        if heard.standing is Standing.STALE:
            log.warning("refused an order that is too old", number=order.number, seen=heard.number)
            self._tell(order, Answer.STALE, {"epoch": heard.epoch, "number": heard.number})
        elif heard.report is not None:
            self._relay.answer(heard.report)

    async def ask(self, order: Order) -> None:
        """Answer what became of an order, from the ledger or from what runs; else begin to look."""
        async with self._gate:
            heard = await asyncio.to_thread(self._ledger.find, order)
            if heard.standing is Standing.SAME and heard.report is None:
                self._ask_lane(order)
        match heard.standing:
            case Standing.NEW:
                self._tell(order, Answer.NOT_DONE, {"unheard": True})
            case Standing.STALE:
                self._tell(order, Answer.STALE, {"epoch": heard.epoch, "number": heard.number})
            case Standing.SAME if heard.report is not None:
                self._relay.answer(heard.report)

    async def recover(self) -> None:
        """Look at each order that an earlier run of the agent began and did not end."""
        async with self._gate:
            for order in await asyncio.to_thread(self._ledger.unfinished):
                if order.server not in self._lanes:
                    self._begin(Work(order, probing=True))

    async def close(self) -> None:
        """Tell all steps to stop and wait a moment; what did not end stays unfinished in the ledger."""
        self.closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(PARTING), self._gate:
                pass  # what is being written down now is written to its end
        for lane in self._lanes.values():
            if lane.running is not None and lane.running.control is not None:
                lane.running.control.cancel("the agent stops")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PARTING)
        for task in self._tasks:
            task.cancel()

    # Lanes

    def _ask_lane(self, order: Order) -> None:
        lane = self._lanes.get(order.server)
        if lane is None:
            self._begin(Work(order, probing=True))
            return
        works = [work for work in (lane.newest, lane.running) if work is not None]
        work = next((work for work in works if work.order.number == order.number), None)
        if work is None:
            self._tell(order, Answer.UNKNOWN, reason=f"{_name(works[-1].order)} is at work on this server.")
        elif work.control is not None and work.control.overran():
            self._tell(order, Answer.UNKNOWN, reason=f"{_name(order)} does not end.", elapsed=work.elapsed())
        elif not work.probing:
            if work.control is not None:
                work.control.steer(order.work.steering)
            self._tell(order, Answer.RUNNING, elapsed=work.elapsed())

    def _begin(self, work: Work) -> None:
        if self.closing:
            return  # it is written down: the next start looks at it and finds it not done
        lane = self._lanes.setdefault(work.order.server, Lane())
        lane.newest = work
        task = asyncio.create_task(self._run(lane, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Lane, work: Work) -> None:
        order = work.order
        structlog.contextvars.bind_contextvars(
            server=order.server, migration=order.migration, step=order.step, request_id=order.request_id
        )
        try:
            if await self._is_free(lane, work):
                async with self._slots:
                    report = await self._take_turn(lane, work)
                if report is not None:
                    self._relay.answer(report)
                self._relay.wake()
        finally:
            if lane.newest is work:
                lane.newest = None
            if lane.newest is None and lane.running is None:
                self._lanes.pop(order.server, None)

    async def _is_free(self, lane: Lane, work: Work) -> bool:
        """End what runs in the lane; if it does not end, say so and leave the order unfinished."""
        running = lane.running
        if running is None:
            return True
        if running.control is not None:
            running.control.cancel(f"order {work.order.number} came")
        try:
            async with asyncio.timeout(JOIN):
                await lane.free.wait()
        except TimeoutError:
            log.error("a step does not end", running=running.order.step, number=running.order.number)
            self._tell(work.order, Answer.UNKNOWN, reason=f"{_name(running.order)} does not end.")
            return False
        return True

    async def _take_turn(self, lane: Lane, work: Work) -> StepReport | None:
        """Do the work in a thread, unless a newer order came while this one waited."""
        order, newest = work.order, lane.newest
        name = f"{order.step}-{order.number}"
        if newest is not None and newest is not work:
            number = newest.order.number
            return await _in_thread(name, lambda: self._overtaken(order, number))
        work.control = control = self._control(order, work.probing)
        lane.running = work
        lane.free.clear()
        try:
            return await _in_thread(name, lambda: self._work(work, control))
        finally:
            lane.running = None
            lane.free.set()

    def _control(self, order: Order, probing: bool) -> StepControl:
        """Give the step its order's limit and, if its row has one, a stall limit that this host may shorten."""
        if probing:
            return StepControl(PROBE_LIMIT)
        try:
            stall = _row(order).limit.stall
        except StepError:
            stall = None  # performing it will say what is wrong
        loop = asyncio.get_running_loop()

        def publish(measure: Measure) -> None:
            with suppress(RuntimeError):  # the loop has closed; the step ends soon
                loop.call_soon_threadsafe(self._relay.progress, _progress(self._host, order, measure))

        bounded = None if stall is None else min(stall, self._stall_timeout)
        return StepControl(order.limit, stall=bounded, publish=publish, steering=order.work.steering)

    def _tell(
        self, order: Order, answer: Answer, facts: Facts | None = None, reason: str = "", elapsed: float = 0
    ) -> None:
        self._relay.answer(_report(self._host, order, (answer, facts or {}, reason), elapsed))

    # In the step's own thread

    def _work(self, work: Work, control: StepControl) -> StepReport | None:
        """Do or look, and write the end down; return what is to be said instead if there is no end to write."""
        order = work.order
        outcome = look(self._world, order, control) if work.probing else perform(self._world, order, control)
        if self.closing and control.cancelled and outcome[0] is Answer.FAILED:
            return None  # cut short by the agent's own end: the next start looks at it
        report = _report(self._host, order, outcome, work.elapsed())
        return self._write_down(order, report)

    def _overtaken(self, order: Order, newest: int) -> StepReport | None:
        reason = f"Order {newest} came before this one was begun."
        return self._write_down(order, _report(self._host, order, (Answer.FAILED, {}, reason), 0.0))

    def _write_down(self, order: Order, report: StepReport) -> StepReport | None:
        if report.answer not in ENDS:
            return report
        try:
            self._ledger.finish(order, report)
        except sqlite3.Error as error:
            log.error("the ledger cannot be written", reason=str(error))
            return replace(report, answer=Answer.UNKNOWN, facts={}, reason=f"The ledger cannot be written: {error}.")
        why = {"reason": report.reason} if report.reason else {}
        log.info("step ended", verb=order.verb, answer=report.answer, elapsed=report.elapsed, **why)
        return None


def perform(world: World, order: Order, control: Control) -> Outcome:
    """Do or undo the order's step, and put whatever happens into an answer."""
    try:
        row = _row(order)
        action = row.do if order.verb is Verb.DO else row.undo
        if action is None:
            raise StepError(f"Step {order.step} of protocol {order.protocol} has no undo.")
        return Answer.DONE, _plain(action(world, order, control)), ""
    except CannotTell as error:
        return Answer.UNKNOWN, {}, str(error)
    except StepError as error:
        return Answer.FAILED, _plain(error.facts), str(error)
    except Exception as error:  # the agent, and every other server's step, must outlive a fault in one step
        log.exception("internal error in a step")
        return Answer.FAILED, {}, f"internal error: {type(error).__name__}: {error}"


def look(world: World, order: Order, control: Control) -> Outcome:
    """Ask the order's probe whether its effect is there; an undo is simply to be ordered again."""
    if order.verb is Verb.UNDO:
        return Answer.NOT_DONE, {}, ""
    try:
        answer, facts = _row(order).probe(world, order, control)
        return answer, _plain(facts), ""
    except StepError as error:
        return Answer.UNKNOWN, {}, str(error)
    except Exception as error:  # the agent must outlive it; a probe that fails has found nothing out
        log.exception("internal error in a probe")
        return Answer.UNKNOWN, {}, f"internal error: {type(error).__name__}: {error}"


def _row(order: Order) -> HostStep:
    try:
        row = protocol(order.protocol, order.version).step(order.step)
    except KeyError as error:
        raise StepError(f"Host {order.host} cannot obey: {error.args[0]}. Upgrade its agent.") from error
    if not isinstance(row, HostStep):
        raise StepError(f"Step {order.step} is the conductor's own; no host does it.")
    return row


def _plain(facts: Facts) -> Facts:
    """Return the facts as JSON knows them; TypeError if they cannot be written down."""
    plain: Facts = msgspec.to_builtins(facts)
    return plain


def _report(host: str, order: Order, outcome: Outcome, elapsed: float) -> StepReport:
    answer, facts, reason = outcome
    return StepReport(
        host=host,
        server=order.server,
        migration=order.migration,
        segment=order.segment,
        attempt=order.attempt,
        step=order.step,
        verb=order.verb,
        number=order.number,
        answer=answer,
        facts=facts,
        reason=reason[:REASON_LENGTH].replace("\0", ""),
        elapsed=round(elapsed, 3),
    )


def _progress(host: str, order: Order, measure: Measure) -> Progress:
    return Progress(
        host=host,
        server=order.server,
        migration=order.migration,
        attempt=order.attempt,
        step=order.step,
        done=measure.done,
        total=measure.total,
        rate=measure.rate,
        eta=measure.eta,
        phase=measure.phase,
        outlook=measure.outlook,
    )


def _name(order: Order) -> str:
    return f"Step {order.step} (order {order.number})"


async def _in_thread(name: str, call: Callable[[], StepReport | None]) -> StepReport | None:
    """Run the call in a thread of its own, which does not keep the process from ending."""
    outcome: Future[StepReport | None] = Future()
    outcome.set_running_or_notify_cancel()  # from here on only the thread ends it
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(call))
        except BaseException as error:  # carried to the awaiting side, whatever it is
            outcome.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(outcome)
