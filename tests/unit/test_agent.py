"""The agent as a whole, fake hypervisor and local bus: what it says of itself, and a move ordered by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.orders import SERVER, WORK, order
from whimbrel.agent import service
from whimbrel.agent.guests.fake import FakeGuests
from whimbrel.agent.ledger import boot_marker
from whimbrel.bus.codec import registry
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.domain.errors import BusError
from whimbrel.domain.migration import Answer, Verb
from whimbrel.domain.server import Disk, DiskRole, PowerAction, PowerState
from whimbrel.migration.messages import MESSAGES, Ask, Console, Foresee, Foresight, Order, ReadConsole, StepReport, Way
from whimbrel.migration.presence import GuestReport, Heartbeat, Inspect, Inspection, Welcome
from whimbrel.migration.protocols import PROTOCOLS
from whimbrel.ops.settings import Agent, Settings

pytestmark = pytest.mark.anyio


class Conductor:
    """A conductor that does what the test says: numbers its orders and waits for each one's end."""

    def __init__(self, broker: LocalBroker, base: Path) -> None:
        self.broker = broker
        self.base = base
        self.bus = self.make_bus()
        self.reports: asyncio.Queue[StepReport] = asyncio.Queue()
        self.heartbeats: list[Heartbeat] = []
        self.number = 0
        self.results: dict[str, Any] = {}
        self.standings: dict[str, tuple[int, int]] = {}
        self.welcomes = True
        self.admitted = asyncio.Event()

    def make_bus(self) -> LocalBus:
        return LocalBus(self.broker, registry(*MESSAGES))

    def settings(self, host: str) -> Agent:
        base = self.base
        return Agent(
            host,
            host,
            instances_dir=str(base / host),
            state_dir=str(base / f"{host}-state"),
            run_dir=str(base / f"{host}-run"),
            hypervisor="fake",
            heartbeat_interval=30,
        )

    def guests(self, host: str) -> FakeGuests:
        """The same guests as the agent of this host sees."""
        settings = self.settings(host)
        return FakeGuests(settings, boot_marker(settings.run_dir))

    async def start(self) -> None:
        async def take(message: object) -> None:
            assert isinstance(message, StepReport)
            await self.reports.put(message)

        async def look(message: object) -> None:
            assert isinstance(message, Heartbeat)
            self.heartbeats.append(message)
            if message.admitted:
                self.admitted.set()
            elif self.welcomes:
                await self.bus.cast(f"agent.{message.host}", Welcome(message.host, message.admission, self.standings))

        await self.bus.start()
        await self.bus.consume("conductor", take)
        await self.bus.subscribe("heartbeats", look)

    @asynccontextmanager
    async def agent(self, host: str) -> AsyncIterator[None]:
        bus = self.make_bus()
        await bus.start()
        self.admitted.clear()
        task = asyncio.create_task(service.run(Settings(agent=self.settings(host)), bus))
        try:
            if self.welcomes:
                async with asyncio.timeout(10):
                    await self.admitted.wait()
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await bus.close()

    async def send(self, host: str, step: str, **changes: Any) -> Order:
        self.number += 1
        sent = order(step, self.number, host=host, results=dict(self.results), **changes)
        await self.bus.cast(f"agent.{host}", sent)
        return sent

    async def end(self, order: Order) -> StepReport:
        """The report of this order's end; others, repeated ones say, are no news."""
        async with asyncio.timeout(10):
            while True:
                report = await self.reports.get()
                if report.number == order.number and report.answer is not Answer.RUNNING:
                    return report

    async def do(self, host: str, step: str, **changes: Any) -> StepReport:
        sent = await self.send(host, step, **changes)
        report = await self.end(sent)
        assert report.host == host
        assert report.answer is Answer.DONE, report.reason
        if sent.verb is Verb.DO:
            self.results[step] = report.facts
        return report

    async def build(self, host: str) -> None:
        building = {"protocol": "build", "attempt": "1-1", "work": replace(WORK, source=None)}
        for step in ("prepare", "define_guest", "start_guest"):
            await self.do(host, step, **building)
        self.results.clear()

    async def seen(self, host: str, state: str, since: int = 0) -> GuestReport:
        """Wait for a heartbeat of the host, after so many, that gives the server this state."""
        for _ in range(1000):
            for beat in self.heartbeats[since:]:
                for line in beat.guests:
                    if (beat.host, line.server, line.power_state) == (host, SERVER, state):
                        return line
            await asyncio.sleep(0.01)
        raise AssertionError(f"no heartbeat said that the guest on {host} is {state}")


@pytest.fixture
async def conductor(tmp_path: Path) -> AsyncIterator[Conductor]:
    made = Conductor(LocalBroker(), tmp_path)
    await made.start()
    yield made
    await made.bus.close()


async def test_a_server_is_built_moved_and_confirmed_without_losing_a_write(conductor: Conductor) -> None:
    async with conductor.agent("h1"), conductor.agent("h2"):
        await conductor.build("h1")
        assert [conductor.guests("h1").write(SERVER) for _ in range(3)] == [2, 3, 4]
        await conductor.do("h2", "prepare")
        await conductor.do("h1", "open_channel")
        for host, way in (("h1", Way.WARM), ("h2", Way.NONE)):
            question = Foresee(SERVER, "cold", None, was_running=True, disks=(Disk(0, DiskRole.ROOT, "qcow2", 64),))
            foresight = await conductor.bus.call(f"agent.{host}", question, timeout=5)
            assert isinstance(foresight, Foresight) and foresight.way is way
        stopped = await conductor.do("h1", "stop_guest")
        assert stopped.facts["forced"] is False and '"host": "h1"' in stopped.facts["definition"]
        copied = await conductor.do("h1", "copy_disks")
        assert copied.facts["bytes"] > 0
        await conductor.do("h2", "verify_disks")
        defined = await conductor.do("h2", "define_guest")
        assert defined.facts["rewrites"] == ["host: h1 became h2"]
        conductor.results["hand_over"] = {"epoch": 2}
        await conductor.do("h2", "start_guest", epoch=2)
        assert conductor.guests("h2").state(SERVER) is PowerState.RUNNING
        assert conductor.guests("h1").state(SERVER) is None
        console = await conductor.bus.call("agent.h2", ReadConsole(SERVER, None), timeout=5)
        assert isinstance(console, Console)
        earlier, _, here = console.text.partition("WRITER DOWN last=5\n")
        assert "boot=1\n" in earlier and earlier.endswith("WRITER seq=5 mono_ms=0\n"), "its console came along"
        assert here == (
            "WRITER VERIFY total=5 intact=5 torn=0 bad=0 last=5 boot=2\nWRITER READY\nWRITER seq=6 mono_ms=0\n"
        )
        last = await conductor.bus.call("agent.h2", ReadConsole(SERVER, 1), timeout=5)
        assert last == Console("WRITER seq=6 mono_ms=0\n")
        await conductor.do("h1", "retire_source", protocol="confirm", epoch=2)
        names = sorted(path.name for path in (conductor.base / "h1").iterdir())
        assert names == ["fake-guests.json"]


async def test_a_failed_start_goes_back_to_the_source_with_every_write(conductor: Conductor) -> None:
    async with conductor.agent("h1"), conductor.agent("h2"):
        await conductor.build("h1")
        await conductor.do("h2", "prepare")
        for step in ("open_channel", "stop_guest", "copy_disks"):
            await conductor.do("h1", step)
        await conductor.do("h2", "verify_disks")
        await conductor.do("h2", "define_guest")
        conductor.results["hand_over"] = {"epoch": 2}
        (conductor.base / "h2" / SERVER / "disk-0").rename(conductor.base / "gone")
        failed = await conductor.end(await conductor.send("h2", "start_guest", epoch=2))
        assert failed.answer is Answer.FAILED and failed.facts == {"released": False}
        assert "disk-0" in failed.reason
        undo = {"verb": Verb.UNDO, "epoch": 3}
        revoked = await conductor.do("h2", "start_guest", **undo)
        assert revoked.facts["released"] is False
        await conductor.do("h2", "define_guest", **undo)
        await conductor.do("h1", "stop_guest", **undo)
        await conductor.do("h2", "prepare", **undo)
        assert conductor.guests("h1").state(SERVER) is PowerState.RUNNING
        assert "VERIFY total=2 intact=2" in (conductor.base / "h1" / SERVER / "console.log").read_text()
        assert [path.name for path in (conductor.base / "h2").iterdir()] == ["fake-guests.json"]


async def test_a_heartbeat_tells_room_protocols_and_guests_and_comes_at_once_after_a_change(
    conductor: Conductor,
) -> None:
    async with conductor.agent("h1"):
        await conductor.build("h1")
        assert await conductor.seen("h1", "running") == GuestReport(SERVER, "running", 1, 3, granted=1)
        beat = conductor.heartbeats[-1]
        assert beat.protocols == {name: table.version for name, table in PROTOCOLS.items()}
        assert beat.vcpus > 0 and beat.ram_mb > 0 and beat.disk_gb > 0 and "load average" in beat.uptime
        beats = len(conductor.heartbeats)
        stop = replace(WORK, source=None, action=PowerAction.STOP)
        await conductor.do("h1", "set_power", protocol="power", attempt="2-1", work=stop)
        assert (await conductor.seen("h1", "stopped", since=beats)).number == 4


async def test_a_guest_runs_on_while_its_agent_is_away_and_not_after_the_host_was(conductor: Conductor) -> None:
    async with conductor.agent("h1"):
        await conductor.build("h1")
    beats = len(conductor.heartbeats)
    unheard = await conductor.send("h1", "prepare")
    await conductor.bus.cast("agent.h1", Ask(unheard))
    async with conductor.agent("h1"):
        assert (await conductor.end(unheard)).facts == {"unheard": True}, "it came before the agent was admitted"
        await conductor.bus.cast("agent.h1", unheard)
        assert (await conductor.end(unheard)).answer is Answer.DONE
        await conductor.seen("h1", "running", since=beats)
    (conductor.base / "h1-run" / "boot").unlink()
    async with conductor.agent("h1"):
        assert (await conductor.seen("h1", "stopped", since=beats)).number == unheard.number
    boots = {beat.boot for beat in conductor.heartbeats[beats:]}
    ledgers = {beat.ledger for beat in conductor.heartbeats}
    assert len(boots) == 2 and len(ledgers) == 1


async def test_an_agent_obeys_nothing_before_it_is_welcome_and_nothing_older_than_it_was_told(
    conductor: Conductor,
) -> None:
    async with conductor.agent("h1"):
        await conductor.build("h1")
    (conductor.base / "h1-run" / "boot").unlink()
    conductor.welcomes, beats = False, len(conductor.heartbeats)
    old = await conductor.send("h1", "start_guest", protocol="build", attempt="1-1", work=replace(WORK, source=None))
    async with conductor.agent("h1"):
        await conductor.bus.cast("agent.h1", Welcome("h1", "of an earlier start", {SERVER: (1, 1)}))
        await conductor.bus.cast("agent.h1", Ask(old))
        assert (await conductor.end(old)).facts == {"unheard": True}
        assert conductor.guests("h1").state(SERVER) is PowerState.STOPPED
        assert (await conductor.seen("h1", "stopped", since=beats)).interrupted
        asked = conductor.heartbeats[-1]
        assert not asked.admitted
        await conductor.bus.cast("agent.h1", Welcome("h1", asked.admission, {SERVER: (2, 9)}))
        await asyncio.wait_for(conductor.admitted.wait(), 10)
        await conductor.bus.cast("agent.h1", old)
        refused = await conductor.end(old)
        assert (refused.answer, refused.facts) == (Answer.STALE, {"epoch": 2, "number": 9})
        assert conductor.guests("h1").state(SERVER) is PowerState.STOPPED


async def test_an_order_for_another_host_is_not_obeyed_and_a_console_that_is_not_there_is_empty(
    conductor: Conductor,
) -> None:
    async with conductor.agent("h1"):
        assert await conductor.bus.call("agent.h1", ReadConsole(SERVER, None), timeout=5) == Console("")
        with pytest.raises(ValueError, match=r"'\.\./h1-state' is no name"):
            ReadConsole("../h1-state", None)
        with pytest.raises(BusError, match="is for host h2, this is h1"):
            await conductor.bus.call("agent.h1", order("prepare", 1, host="h2"), timeout=5)
        with pytest.raises(BusError, match="does not take Console"):
            await conductor.bus.call("agent.h1", Console(""), timeout=5)


async def test_an_inspection_tells_what_is_on_the_host_and_a_heartbeat_follows(conductor: Conductor) -> None:
    async with conductor.agent("h1"):
        await conductor.build("h1")
        root, stranger = conductor.base / "h1", "99999999-2222-4333-8444-555555555555"
        (root / f"{SERVER}.incoming-9-1").mkdir()
        (root / f"{stranger}.sealed-8-2").mkdir()
        (root / f"{stranger}.sealed-8-2" / "disk-0").write_bytes(b"x" * 5000)
        (root / ".trash-x").mkdir()
        (root / "notes.txt").touch()
        (root / os.fsdecode(b"zz\xff")).touch()
        (root / f"{stranger}.sealed-x").touch()
        beats = len(conductor.heartbeats)
        found = await conductor.bus.call("agent.h1", Inspect(), timeout=5)
        await conductor.seen("h1", "running", since=beats)
        assert isinstance(found, Inspection) and (found.host, found.fault) == ("h1", "")
        ours, other = found.servers
        assert (ours.server, ours.power, ours.granted, ours.grant_epoch) == (SERVER, PowerState.RUNNING, True, 1)
        assert [(one.state, one.attempt) for one in ours.directories] == [("live", "1-1"), ("incoming", "9-1")]
        assert (other.server, other.power, other.number, other.granted) == (stranger, None, 0, False)
        assert [(one.state, one.attempt) for one in other.directories] == [("sealed", "8-2")]
        assert other.directories[0].bytes >= 5000
        assert found.leftovers == (".trash-x",) and found.children == ()
        assert found.strange == (f"{stranger}.sealed-x", "notes.txt", "zz?")
    (conductor.base / "h1-run" / "boot").unlink()
    async with conductor.agent("h1"):
        found = await conductor.bus.call("agent.h1", Inspect(), timeout=5)
        assert isinstance(found, Inspection)
        assert (found.servers[0].power, found.servers[0].granted) == (PowerState.STOPPED, False)
        assert found.leftovers == ()  # collected at the start
