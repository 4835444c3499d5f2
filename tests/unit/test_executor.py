"""The executor: one step at a time for each server, each order once, and an honest answer whatever happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import pytest

from tests.unit.orders import SERVER, order
from whimbrel.agent import control as control_module
from whimbrel.agent import executor as executor_module
from whimbrel.agent.control import Measure, StepControl
from whimbrel.agent.executor import Executor
from whimbrel.agent.ledger import Ledger
from whimbrel.agent.outbox import Relay
from whimbrel.agent.service import world
from whimbrel.domain.errors import BusError, Cancelled, CannotTell, TimedOut
from whimbrel.domain.migration import Answer, Verb
from whimbrel.migration.messages import Facts, Order, Outlook, Phase, Progress, Steering, StepReport
from whimbrel.migration.ports import Control, World
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

pytestmark = pytest.mark.anyio


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait up to 5 s until it is so."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to be so")


def deaf_until(event: Event) -> Callable[[Order, Control], Facts]:
    """A step that heeds nothing but the test."""

    def hang(order: Order, control: Control) -> Facts:
        event.wait(20)
        return {}

    return hang


@dataclass
class Bus:
    """What the agent sent; `broken` refuses."""

    reports: list[StepReport] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    broken: bool = False

    async def cast(self, queue: str, message: StepReport) -> None:
        assert queue == "conductor"
        if self.broken:
            raise BusError("no broker")
        self.reports.append(message)

    async def emit(self, topic: str, message: Progress) -> None:
        assert topic == "progress"
        self.progress.append(message)

    async def heard(self, count: int) -> list[StepReport]:
        """Wait until that many reports came, and none more."""
        await eventually(lambda: len(self.reports) >= count)
        await asyncio.sleep(0.02)
        assert len(self.reports) == count
        return self.reports


class Disks:
    """A Disks port whose `prepare` does what the test wants and counts how many run at once."""

    def __init__(self, behave: Callable[[Order, Control], Facts]) -> None:
        self.behave = behave
        self.prepared = False
        self.begun: list[int] = []
        self.running = self.most = 0

    def prepare(self, order: Order, control: Control) -> Facts:
        self.begun.append(order.number)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return self.behave(order, control)
        finally:
            self.running -= 1

    def is_prepared(self, order: Order) -> bool:
        return self.prepared


@dataclass
class Host:
    """One agent without its queue: what a test orders and asks."""

    agent: Agent
    ledger: Ledger
    bus: Bus
    disks: Disks
    executor: Executor
    relay: Relay


Make = Callable[[Callable[[Order, Control], Facts]], Awaitable[Host]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    hosts: list[tuple[Host, asyncio.Task[None]]] = []

    async def made(behave: Callable[[Order, Control], Facts]) -> Host:
        for host, relaying in hosts:  # the same host again: the agent before it is gone
            relaying.cancel()
            host.ledger.close()
        agent = Agent("h1", "h1", str(tmp_path / "instances"), str(tmp_path / "h1"), hypervisor="fake")
        (tmp_path / "instances").mkdir(exist_ok=True)
        ledger = Ledger(agent.state_dir, "boot-1")
        bus, disks = Bus(), Disks(behave)
        relay = Relay(ledger, bus)  # type: ignore[arg-type]
        parts: World = replace(world(agent, ledger, lambda: True), disks=disks)  # type: ignore[arg-type]
        executor = Executor(agent.host, ledger, parts, relay, 60)
        host = Host(agent, ledger, bus, disks, executor, relay)
        hosts.append((host, asyncio.create_task(relay.run())))
        return host

    yield made
    for host, relaying in hosts:
        await host.executor.close()
        relaying.cancel()
        host.ledger.close()


def until_cancelled(order: Order, control: Control) -> Facts:
    while True:
        control.wait(5)


async def begun(host: Host, *numbers: int) -> None:
    await eventually(lambda: host.disks.begun == list(numbers))


async def test_an_order_is_done_once_and_answered_as_often_as_it_comes(make: Make) -> None:
    host = await make(lambda order, control: {"free_bytes": 7})
    for _ in range(3):
        await host.executor.obey(order("prepare", 1))
    await host.executor.ask(order("prepare", 1))
    await begun(host, 1)
    await asyncio.sleep(0.05)
    await host.executor.ask(order("prepare", 1))
    await asyncio.sleep(0.05)
    done = [report for report in host.bus.reports if report.answer is Answer.DONE]
    assert host.disks.begun == [1] and len(done) >= 2
    assert {str(report.facts) for report in done} == {"{'free_bytes': 7}"}


async def test_an_older_order_is_refused_with_what_was_seen(make: Make) -> None:
    host = await make(lambda order, control: {})
    await host.executor.obey(order("prepare", 9, epoch=3))
    await host.bus.heard(1)
    await host.executor.obey(order("prepare", 8, epoch=3))
    refused = (await host.bus.heard(2))[1]
    assert (refused.answer, refused.facts) == (Answer.STALE, {"epoch": 3, "number": 9})
    assert host.disks.begun == [9]


async def test_a_newer_order_cancels_and_joins_the_one_that_runs(make: Make) -> None:
    leaving = Event()

    def slow_to_leave(order: Order, control: Control) -> Facts:
        if order.number > 2:
            return {}
        try:
            return until_cancelled(order, control)
        finally:
            leaving.wait(0.1)

    host = await make(slow_to_leave)
    await host.executor.obey(order("prepare", 1))
    await begun(host, 1)
    await host.executor.obey(order("prepare", 2))
    await host.executor.obey(order("prepare", 3))
    reports = {report.number: report for report in await host.bus.heard(3)}
    assert [reports[number].answer for number in (1, 2, 3)] == [Answer.FAILED, Answer.FAILED, Answer.DONE]
    assert "told to stop: order 2 came" in reports[1].reason
    assert reports[2].reason == "Order 3 came before this one was begun."
    assert host.disks.begun == [1, 3] and host.disks.most == 1


async def test_servers_do_not_wait_for_one_another(make: Make) -> None:
    host = await make(lambda order, control: until_cancelled(order, control) if order.server == SERVER else {})
    await host.executor.obey(order("prepare", 1))
    await host.executor.obey(order("prepare", 1, server=SERVER.replace("6f1c", "0000")))
    assert (await host.bus.heard(1))[0].answer is Answer.DONE


async def test_beside_a_step_that_does_not_end_nothing_is_begun(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "JOIN", 0.1)
    deaf = Event()
    host = await make(deaf_until(deaf))
    await host.executor.obey(order("prepare", 1))
    await begun(host, 1)
    await host.executor.obey(order("prepare", 2))
    told = (await host.bus.heard(1))[0]
    assert (told.number, told.answer) == (2, Answer.UNKNOWN) and "order 1) does not end" in told.reason
    await host.executor.ask(order("prepare", 2))
    assert (await host.bus.heard(2))[1].answer is Answer.UNKNOWN
    assert host.disks.begun == [1]
    deaf.set()
    assert (await host.bus.heard(3))[2].answer is Answer.DONE, "what the first one did is said in the end"
    await host.executor.ask(order("prepare", 2))
    assert (await host.bus.heard(4))[3].answer is Answer.NOT_DONE
    assert host.disks.begun == [1]


async def test_an_overrun_is_said_when_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "OVERRUN", 0.05)
    deaf = Event()
    host = await make(deaf_until(deaf))
    await host.executor.obey(order("prepare", 1, limit=0.2))
    await host.executor.ask(order("prepare", 1))
    running = (await host.bus.heard(1))[0]
    assert running.answer is Answer.RUNNING and running.elapsed < 0.2
    await asyncio.sleep(0.3)
    await host.executor.ask(order("prepare", 1))
    assert (await host.bus.heard(2))[1].answer is Answer.UNKNOWN
    deaf.set()
    assert (await host.bus.heard(3))[2].answer is Answer.DONE


async def test_a_question_brings_what_was_said_of_the_copy_to_the_step_that_runs(make: Make) -> None:
    seen: list[Steering] = []

    def copy(order: Order, control: Control) -> Facts:
        while not control.steering().hurry:
            seen.append(control.steering())
            control.wait(0.01)
        return {}

    host = await make(copy)
    first = order("prepare", 1)
    await host.executor.obey(replace(first, work=replace(first.work, steering=Steering(rate=1 << 20))))
    await begun(host, 1)
    await host.executor.ask(replace(first, work=replace(first.work, steering=Steering(rate=1 << 21, hurry=True))))
    told = await host.bus.heard(2)
    assert [each.answer for each in told] == [Answer.RUNNING, Answer.DONE]
    assert set(seen) == {Steering(rate=1 << 20)}


async def test_what_was_never_heard_of_is_not_done_and_nothing_is_begun(make: Make) -> None:
    host = await make(lambda order, control: {})
    await host.executor.ask(order("prepare", 5))
    told = (await host.bus.heard(1))[0]
    assert (told.answer, told.facts) == (Answer.NOT_DONE, {"unheard": True})
    await host.executor.obey(order("prepare", 5))
    assert (await host.bus.heard(2))[1].answer is Answer.DONE
    await host.executor.ask(order("prepare", 4))
    assert (await host.bus.heard(3))[2].answer is Answer.STALE


async def test_a_silent_hypervisor_leaves_the_order_open_until_a_probe_can_tell(make: Make) -> None:
    def silent(order: Order, control: Control) -> Facts:
        raise CannotTell("libvirt does not answer")

    host = await make(silent)
    await host.executor.obey(order("prepare", 1))
    told = (await host.bus.heard(1))[0]
    assert (told.answer, told.reason) == (Answer.UNKNOWN, "libvirt does not answer")
    assert [left.number for left in host.ledger.unfinished()] == [1]
    host.disks.prepared = True
    await host.executor.ask(order("prepare", 1))
    assert (await host.bus.heard(2))[1].answer is Answer.DONE
    assert host.ledger.unfinished() == [] and host.disks.begun == [1]


async def test_a_fault_of_ours_is_a_failed_step_and_the_next_one_is_obeyed(make: Make) -> None:
    host = await make(lambda order, control: {"answer": 1 // (order.number - 1)})
    await host.executor.obey(order("prepare", 1))
    failed = (await host.bus.heard(1))[0]
    assert failed.answer is Answer.FAILED and failed.reason.startswith("internal error: ZeroDivisionError")
    await host.executor.obey(order("prepare", 2))
    assert (await host.bus.heard(2))[1].answer is Answer.DONE


async def test_a_step_or_protocol_that_this_release_lacks_is_refused(make: Make) -> None:
    host = await make(lambda order, control: {})
    await host.executor.obey(order("prepare", 1, version=99))
    await host.bus.heard(1)
    await host.executor.obey(order("fly", 2))
    await host.bus.heard(2)
    await host.executor.obey(order("claim", 3))
    answers = {report.number: report for report in await host.bus.heard(3)}
    assert all(report.answer is Answer.FAILED for report in answers.values())
    assert "cold version 99" in answers[1].reason and "conductor's own" in answers[3].reason


async def test_what_a_dead_agent_had_begun_is_looked_at_and_not_done_again(make: Make) -> None:
    host = await make(lambda order, control: {})
    host.ledger.accept(order("prepare", 1))
    undo = order("prepare", 2, server=SERVER.replace("6f1c", "0000"), verb=Verb.UNDO)
    host.ledger.accept(undo)
    host = await make(lambda order, control: {})
    host.disks.prepared = True
    await host.executor.recover()
    answers = {report.number: report.answer for report in await host.bus.heard(2)}
    assert answers == {1: Answer.DONE, 2: Answer.NOT_DONE} and host.disks.begun == []


async def test_a_stopping_agent_leaves_its_steps_to_the_next_ones_probe(make: Make) -> None:
    host = await make(until_cancelled)
    await host.executor.obey(order("prepare", 1))
    await begun(host, 1)
    await host.executor.close()
    await host.executor.obey(order("prepare", 2, server=SERVER.replace("6f1c", "0000")))
    assert host.bus.reports == [] and host.disks.running == 0
    host = await make(until_cancelled)
    await host.executor.recover()
    assert {report.answer for report in await host.bus.heard(2)} == {Answer.NOT_DONE}


async def test_a_report_waits_for_the_broker_and_is_sent_once(make: Make) -> None:
    host = await make(lambda order, control: {})
    host.bus.broken = True
    await host.executor.obey(order("prepare", 1))
    await asyncio.sleep(0.3)
    host.bus.broken = False
    assert (await host.bus.heard(1))[0].answer is Answer.DONE


async def test_reports_of_a_dead_agent_are_sent_by_the_next_one(make: Make) -> None:
    host = await make(lambda order, control: {})
    host.bus.broken = True
    await host.executor.obey(order("prepare", 1))
    await begun(host, 1)
    await asyncio.sleep(0.05)
    host = await make(lambda order, control: {})
    assert (await host.bus.heard(1))[0].number == 1


async def test_progress_is_told_about_once_a_second_and_names_the_step(make: Make) -> None:
    def copy(order: Order, control: Control) -> Facts:
        for done in range(101):
            control.report(done, 100, "disk-0")
        return {}

    host = await make(copy)
    await host.executor.obey(order("prepare", 1))
    await host.bus.heard(1)
    assert [(told.done, told.total, told.step) for told in host.bus.progress] == [
        (0, 100, "prepare"),
        (100, 100, "prepare"),
    ]


async def test_thirty_three_steps_leave_one_waiting_that_says_it_is_in_hand(make: Make) -> None:
    release = Event()
    host = await make(deaf_until(release))
    servers = [f"{number:08x}{SERVER[8:]}" for number in range(executor_module.THREADS + 1)]
    for server in servers:
        await host.executor.obey(order("prepare", 1, server=server))
    await begun(host, *[1] * executor_module.THREADS)
    await host.executor.ask(order("prepare", 1, server=servers[-1]))
    told = (await host.bus.heard(1))[0]
    assert (told.answer, told.elapsed) == (Answer.RUNNING, 0)
    release.set()
    await host.bus.heard(executor_module.THREADS + 2)


class Time:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)


def test_a_step_is_stopped_by_its_limit_its_stall_and_by_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    step = StepControl(100, stall=10)
    for _ in range(5):
        time.now += 9
        step.report(int(time.now), 1000)
        step.check()
    time.now += 11
    step.report(int(time.now) - 11, 1000, "the same figure is no progress")
    with pytest.raises(TimedOut, match="Nothing moved for 10 s"):
        step.check()
    assert not step.overran()
    time.now += 10
    assert step.overran()
    step.restart_limit()
    assert step.left() == 100
    step.check()
    time.now += 9
    step.report(1, 1000)
    plain = StepControl(100)
    time.now += 101
    with pytest.raises(TimedOut, match="limit of 100 s"):
        plain.wait(5)
    plain.restart_limit()
    plain.cancel("order 5 came")
    with pytest.raises(Cancelled, match="order 5 came"):
        plain.wait(5)


def test_rate_and_remaining_time_follow_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    told: list[Measure] = []
    step = StepControl(1000, publish=told.append)
    for second in range(30):
        for part in range(4):
            time.now = 100 + second + part / 4
            step.report(1000 * second + 250 * part, 60_000)
    assert len(told) == 30, "once a second"
    assert told[0].eta is None
    assert told[-1].outlook is None and told[-1].phase is Phase.DISKS
    step.expect(Outlook(2, 5.0, 0.1))
    time.now += 1
    step.report(31_000, 60_000, Phase.MEMORY)
    assert (told[-1].outlook, told[-1].phase) == (Outlook(2, 5.0, 0.1), Phase.MEMORY)
    assert told[-2].rate == pytest.approx(1000) and told[-2].eta == pytest.approx(31)
