"""What the steps may rely on, whichever hypervisor is beneath: one suite for the fake ports and the real ones.

The real side is the fixture `real_hosts`: two hosts of a lab, one for all of these tests. A guest boots there for
seconds, so only a test that asks what a guest has written waits for it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import pytest

from whimbrel.agent.control import StepControl
from whimbrel.agent.ledger import Ledger
from whimbrel.agent.service import world
from whimbrel.domain.errors import Cancelled, StepError, TimedOut
from whimbrel.domain.migration import Answer, Verb
from whimbrel.domain.server import Disk, DiskRole, Guest, Image, Nic, PowerAction, PowerState
from whimbrel.migration.messages import Facts, Foresee, Order, Place, Steering, Way, Work
from whimbrel.migration.ports import World
from whimbrel.migration.protocols import PROTOCOLS, HostStep
from whimbrel.ops import clock, ids
from whimbrel.ops.settings import Agent

LONGEST_BOOT = 120.0
"""Seconds; an emulated guest on a busy machine needs many, on an idle one three."""


class Hosts(Protocol):
    """Two hosts, h1 and h2, that can reach each other and may run two copies at once."""

    image: Image | None
    root: Disk

    def world(self, host: str) -> World:
        """Return the host's ports, the same ones each time."""

    def control(self, host: str, limit: float) -> Any:
        """Return a StepControl for a step on that host."""

    def place(self, host: str) -> Place:
        """Return how the other host reaches it."""

    def instances(self, host: str) -> Path:
        """Return the directory in which its servers stand."""


class FakeHosts:
    """Two fake agents' worlds beside each other."""

    image: Image | None = None
    root: Disk = Disk(0, DiskRole.ROOT, "raw", 64)

    def __init__(self, base: Path) -> None:
        self._settings = {
            host: Agent(host, host, str(base / host), str(base / f"{host}-state"), hypervisor="fake")
            for host in ("h1", "h2")
        }
        self.ledgers = {host: Ledger(each.state_dir, "boot-1") for host, each in self._settings.items()}
        self._worlds: dict[str, World] = {}
        for host, each in self._settings.items():
            Path(each.instances_dir).mkdir()
            self._worlds[host] = world(each, self.ledgers[host], lambda: True)

    def world(self, host: str) -> World:
        return self._worlds[host]

    def control(self, host: str, limit: float) -> StepControl:
        return StepControl(limit)

    def place(self, host: str) -> Place:
        return Place(host, host)

    def signed(self, order: Order) -> Order:
        """These need no pass."""
        return order

    def instances(self, host: str) -> Path:
        return Path(self._settings[host].instances_dir)


REAL = pytest.param("real", marks=[pytest.mark.real, pytest.mark.xdist_group("real_hosts")])


@pytest.fixture(params=["fake", REAL])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    if request.param == "real":
        real: Hosts = request.getfixturevalue("real_hosts")
        yield real
        return
    made = FakeHosts(tmp_path)
    yield made
    for ledger in made.ledgers.values():
        ledger.close()


@dataclass
class Story:
    """One server on the two hosts, and the orders that befall it."""

    hosts: Hosts
    user_data: str | None = None
    server: str = field(default_factory=ids.new_uuid)
    attempt: str = "7-1"
    epoch: int = 1
    number: int = 0
    was_running: bool = True
    results: dict[str, Facts] = field(default_factory=dict)

    def guest(self) -> Guest:
        nic = Nic("fa:16:3e:00:00:01", "10.0.0.2", 24, "net")
        user_data = base64.b64encode(self.user_data.encode()).decode() if self.user_data else None
        return Guest(self.server, "vm", 1, 128, (self.hosts.root,), (nic,), user_data)

    def order(self, host: str, table: str, step: str, **changes: Any) -> Order:
        self.number += 1
        places = self.hosts.place("h1"), self.hosts.place("h2")
        work = Work(self.guest(), self.guest(), self.hosts.image, *places, self.was_running, grace=60)
        if table in ("build", "power"):
            work = replace(work, source=None, target=self.hosts.place(host))
        fields: dict[str, Any] = {
            "host": host,
            "server": self.server,
            "migration": int(self.attempt.split("-")[0]),
            "segment": 0,
            "attempt": self.attempt,
            "protocol": table,
            "version": PROTOCOLS[table].version,
            "step": step,
            "verb": Verb.DO,
            "epoch": self.epoch,
            "number": self.number,
            "limit": 60.0,
            "work": work,
            "results": self.results,
        }
        return self.hosts.signed(Order(**{**fields, **changes}))

    def do(self, host: str, table: str, step: str, control: Any = None, **changes: Any) -> Facts:
        """Do or undo a row as the agent would, and keep what it found."""
        order = self.order(host, table, step, **changes)
        row = PROTOCOLS[table].step(step)
        assert isinstance(row, HostStep)
        action = row.do if order.verb is Verb.DO else row.undo
        assert action is not None
        facts = action(self.hosts.world(host), order, control or self.hosts.control(host, 120))
        if order.verb is Verb.DO:
            self.results[step] = facts
        return facts

    def probe(self, host: str, table: str, step: str) -> Answer:
        row = PROTOCOLS[table].step(step)
        assert isinstance(row, HostStep)
        return row.probe(self.hosts.world(host), self.order(host, table, step), self.hosts.control(host, 60))[0]

    def define(self, was_running: bool = True) -> None:
        """Build the server on h1 as far as a stopped guest."""
        self.was_running = was_running
        attempt, self.attempt = self.attempt, "1-1"
        for step in ("prepare", "define_guest"):
            self.do("h1", "build", step)
        self.attempt = attempt
        self.results.clear()

    def start(self) -> None:
        """Build the server and let it run; it is not waited for."""
        self.define()
        self.do("h1", "build", "start_guest", attempt="1-1")
        self.results.clear()

    def build(self) -> None:
        """Build the server and wait until it writes."""
        self.start()
        self.verdict("h1", boot=1)

    def stop_and_copy(self) -> None:
        self.do("h2", "cold", "prepare")
        for step in ("open_channel", "stop_guest", "copy_disks"):
            self.do("h1", "cold", step)

    def state(self, host: str) -> PowerState | None:
        return self.hosts.world(host).guests.state(self.server)

    def console(self, host: str) -> str:
        texts = [
            path.read_text(errors="replace") for path in self.hosts.instances(host).glob(f"{self.server}*/console.log")
        ]
        return "".join(text[: text.rfind("\n") + 1] for text in texts)

    def last_write(self, host: str) -> int:
        return int(re.findall(r"^WRITER seq=(\d+) ", self.console(host), re.M)[-1])

    def verdict(self, host: str, boot: int) -> dict[str, int]:
        """Wait until the guest has read its disk back in this boot of it and writes again; return what it found."""
        end = clock.monotonic() + LONGEST_BOOT
        pattern = rf"^WRITER VERIFY (.* boot={boot})$(?=[\s\S]*^WRITER seq=)"
        while (found := re.search(pattern, self.console(host), re.M)) is None:
            assert clock.monotonic() < end, f"boot {boot} did not come:\n{self.console(host)[-2000:]}"
            Event().wait(0.05)
        return {key: int(value) for key, value in (pair.split("=") for pair in found[1].split())}


def test_a_guest_that_is_not_known_is_none_and_may_be_forgotten_or_stopped_again(hosts: Hosts) -> None:
    guests, server = hosts.world("h1").guests, ids.new_uuid()
    assert guests.state(server) is None and guests.definition(server) is None
    guests.destroy(server)
    guests.undefine(server)
    with pytest.raises(StepError):
        guests.create_paused(server)


def test_every_guest_is_listed_with_its_state(hosts: Hosts) -> None:
    guests, stopped, paused, running = hosts.world("h1").guests, Story(hosts), Story(hosts), Story(hosts)
    before = guests.known()
    for story in (stopped, paused, running):
        story.define()
    guests.create_paused(paused.server)
    guests.create_paused(running.server)
    guests.resume(running.server)
    assert guests.known() == before | {
        stopped.server: PowerState.STOPPED,
        paused.server: PowerState.PAUSED,
        running.server: PowerState.RUNNING,
    }
    assert not hosts.world("h2").guests.known()
    for story in (paused, running):
        guests.destroy(story.server)
    guests.undefine(stopped.server)
    assert guests.known() == before | dict.fromkeys((paused.server, running.server), PowerState.STOPPED)


def test_a_guest_is_made_paused_runs_and_stops_and_each_may_be_said_twice(hosts: Hosts) -> None:
    story, guests = Story(hosts), hosts.world("h1").guests
    story.define()
    assert story.state("h1") is PowerState.STOPPED
    definition = guests.definition(story.server)
    assert definition is not None and story.server in definition
    guests.define(story.server, definition)
    guests.create_paused(story.server)
    assert story.state("h1") is PowerState.PAUSED
    with pytest.raises(StepError):
        guests.create_paused(story.server)
    for _ in range(2):
        guests.resume(story.server)
        assert story.state("h1") is PowerState.RUNNING
    with pytest.raises(StepError):
        guests.undefine(story.server)
    assert story.state("h1") is PowerState.RUNNING
    for _ in range(2):
        guests.destroy(story.server)
        assert story.state("h1") is PowerState.STOPPED
    with pytest.raises(StepError):
        guests.resume(story.server)
    (hosts.instances("h1") / story.server / "disk-0").unlink()
    with pytest.raises(StepError, match="disk-0"):
        guests.create_paused(story.server)
    assert story.state("h1") is PowerState.STOPPED
    for _ in range(2):
        guests.undefine(story.server)
        assert story.state("h1") is None


def test_a_guest_is_asked_to_stop_and_only_one_that_does_not_heed_is_forced(hosts: Hosts) -> None:
    polite, deaf = Story(hosts), Story(hosts, user_data="acpi=ignore\n")
    for story in (polite, deaf):
        story.start()
    for story in (polite, deaf):
        story.verdict("h1", boot=1)
    guests = hosts.world("h1").guests
    assert guests.shut_down(deaf.server, 1, hosts.control("h1", 60)) is True
    for _ in range(2):
        assert guests.shut_down(polite.server, 60, hosts.control("h1", 90)) is False
    assert "WRITER DOWN" in polite.console("h1") and "WRITER DOWN" not in deaf.console("h1")
    assert {polite.state("h1"), deaf.state("h1")} == {PowerState.STOPPED}


def test_a_paused_guest_cannot_heed_and_is_stopped_without_waiting(hosts: Hosts) -> None:
    story, guests = Story(hosts), hosts.world("h1").guests
    story.define()
    guests.create_paused(story.server)
    assert guests.shut_down(story.server, 3600, hosts.control("h1", 60)) is True
    assert story.state("h1") is PowerState.STOPPED


def test_waiting_for_a_guest_to_stop_ends_at_a_cancel_and_at_the_limit(hosts: Hosts) -> None:
    story = Story(hosts, user_data="acpi=ignore\n")
    story.start()
    guests = hosts.world("h1").guests
    cancelled = hosts.control("h1", 60)
    cancelled.cancel("a test")
    with pytest.raises(Cancelled):
        guests.shut_down(story.server, 30, cancelled)
    with pytest.raises(TimedOut):
        guests.shut_down(story.server, 30, hosts.control("h1", 0.2))
    assert story.state("h1") is PowerState.RUNNING
    guests.destroy(story.server)


def test_a_move_keeps_every_write_and_each_of_its_rows_may_be_done_twice(hosts: Hosts) -> None:
    story = Story(hosts)
    story.build()
    rows = (
        ("h2", "prepare"),
        ("h1", "open_channel"),
        ("h1", "stop_guest"),
        ("h1", "copy_disks"),
        ("h2", "verify_disks"),
        ("h2", "define_guest"),
    )
    for host, step in rows:
        if step != "prepare":
            assert story.probe(host, "cold", step) is Answer.NOT_DONE, step
        first = story.do(host, "cold", step)
        again = story.do(host, "cold", step)
        if step == "copy_disks":
            assert first["disks"] == again["disks"] and first["bytes"] > 0
        if step in ("prepare", "stop_guest", "copy_disks", "define_guest"):
            assert story.probe(host, "cold", step) is Answer.DONE, step
    before = story.last_write("h1")
    assert story.state("h1") is None and story.state("h2") is PowerState.STOPPED
    story.epoch = 2
    for _ in range(2):
        assert story.do("h2", "cold", "start_guest")["released"] is True
    assert story.probe("h2", "cold", "start_guest") is Answer.DONE
    verdict = story.verdict("h2", boot=2)
    assert verdict["total"] == verdict["intact"] == verdict["last"] >= before and verdict["bad"] == 0
    story.do("h1", "confirm", "retire_source")
    assert not list(hosts.instances("h1").glob(f"{story.server}*"))
    assert story.state("h2") is PowerState.RUNNING


def test_a_move_that_failed_leaves_the_source_as_it_was_and_nothing_at_the_target(hosts: Hosts) -> None:
    story = Story(hosts)
    story.build()
    story.stop_and_copy()
    story.do("h2", "cold", "verify_disks")
    story.do("h2", "cold", "define_guest")
    before = story.last_write("h1")
    story.epoch = 2
    for _ in range(2):
        story.do("h2", "cold", "define_guest", verb=Verb.UNDO)
        story.do("h1", "cold", "stop_guest", verb=Verb.UNDO)
        story.do("h2", "cold", "prepare", verb=Verb.UNDO)
    assert story.state("h1") is PowerState.RUNNING and story.state("h2") is None
    verdict = story.verdict("h1", boot=2)
    assert verdict["total"] == verdict["intact"] >= before
    assert not list(hosts.instances("h2").glob(f"{story.server}*"))


LIVE_ROWS = (
    ("h1", "describe_guest"),
    ("h2", "check_processor"),
    ("h2", "prepare"),
    ("h1", "open_channel"),
    ("h1", "precopy"),
    ("h2", "define_guest"),
    ("h2", "expect_guest"),
    ("h1", "move_memory"),
    ("h2", "verify_disks"),
)


@pytest.mark.parametrize("hurry", [False, True])
def test_a_guest_that_moves_while_it_runs_keeps_every_write_and_runs_nowhere_until_the_hand_over(
    hosts: Hosts, hurry: bool
) -> None:
    story = Story(hosts)
    story.build()
    for host, step in LIVE_ROWS:
        control = hosts.control(host, 120)
        control.steer(Steering(hurry=hurry))
        story.do(host, "live", step, control)
    assert len(story.results["precopy"].get("rounds", ())) < (2 if hurry else 9)
    assert story.probe("h1", "live", "move_memory") is Answer.DONE
    story.do("h1", "live", "move_memory")
    assert story.state("h1") is story.state("h2") is PowerState.PAUSED
    before = story.last_write("h1")
    story.epoch = 2
    for _ in range(2):
        assert story.do("h2", "live", "resume_guest")["released"] is True
    assert story.state("h2") is PowerState.RUNNING
    story.results["hand_over"] = {"epoch": 2}
    for _ in range(2):
        story.do("h1", "live", "retire_source")
    assert not list(hosts.instances("h1").glob(f"{story.server}*")) and story.state("h1") is None
    assert story.last_write("h2") >= before


def test_a_guest_whose_live_move_is_turned_back_goes_on_at_the_source(hosts: Hosts) -> None:
    story = Story(hosts)
    story.build()
    for host, step in LIVE_ROWS:
        story.do(host, "live", step)
    before = story.last_write("h1")
    story.epoch = 2
    for host, step in (
        ("h1", "move_memory"),
        ("h2", "expect_guest"),
        ("h2", "define_guest"),
        ("h1", "precopy"),
        ("h2", "prepare"),
    ):
        story.do(host, "live", step, verb=Verb.UNDO)
    assert story.state("h1") is PowerState.RUNNING and story.state("h2") is None
    assert not list(hosts.instances("h2").glob(f"{story.server}*"))
    assert story.last_write("h1") >= before


def test_a_suspended_guest_is_put_aside_at_its_source_and_a_revert_brings_it_back(hosts: Hosts) -> None:
    story = Story(hosts)
    story.build()
    for host, step in LIVE_ROWS:
        story.do(host, "suspended", step)
    assert story.state("h1") is story.state("h2") is PowerState.PAUSED
    before = story.last_write("h1")
    story.epoch = 2
    assert story.do("h2", "suspended", "resume_guest")["released"] is True
    for _ in range(2):
        story.do("h1", "suspended", "put_aside")
        assert story.state("h1") is None and story.state("h2") is PowerState.RUNNING
    story.do("h1", "revert", "check_source")
    story.epoch = 3
    story.do("h2", "revert", "stop_target")
    story.epoch = 4
    story.do("h1", "revert", "start_source")
    for _ in range(2):
        story.do("h1", "suspended", "put_aside")  # a debt that comes late: it is not for the guest that is back
    assert story.state("h1") is PowerState.RUNNING and story.state("h2") is None
    assert story.last_write("h1") >= before


def test_a_revert_brings_the_sources_copy_back(hosts: Hosts) -> None:
    story = Story(hosts)
    story.build()
    story.stop_and_copy()
    before = story.last_write("h1")
    story.do("h2", "cold", "verify_disks")
    story.do("h2", "cold", "define_guest")
    story.epoch = 2
    story.do("h2", "cold", "start_guest")
    assert story.state("h2") is PowerState.RUNNING
    story.do("h1", "revert", "check_source")
    story.epoch = 3
    story.do("h2", "revert", "stop_target")
    assert story.probe("h2", "revert", "stop_target") is Answer.DONE and story.state("h2") is None
    story.epoch = 4
    story.do("h1", "revert", "start_source")
    assert story.probe("h1", "revert", "start_source") is Answer.DONE
    story.do("h2", "revert", "discard_target")
    verdict = story.verdict("h1", boot=2)
    assert verdict["total"] == verdict["intact"] >= before
    assert not list(hosts.instances("h2").glob(f"{story.server}*"))


def test_a_copy_that_differs_is_refused_and_the_source_is_whole(hosts: Hosts) -> None:
    story = Story(hosts)
    story.define(was_running=False)
    story.stop_and_copy()
    copied = hosts.instances("h2") / f"{story.server}.incoming-7-1" / "disk-0"
    with copied.open("r+b") as disk:
        first = disk.read(1)
        disk.seek(0)
        disk.write(bytes([first[0] ^ 1]))
    with pytest.raises(StepError, match="disk-0"):
        story.do("h2", "cold", "verify_disks")
    story.do("h1", "cold", "copy_disks")
    story.do("h2", "cold", "verify_disks")


@pytest.mark.parametrize("live", [False, True])
def test_a_plan_of_a_server_that_runs_changes_nothing(hosts: Hosts, live: bool) -> None:
    story = Story(hosts)
    story.start()
    disks = hosts.world("h1").disks
    question = Foresee(story.server, "live" if live else "cold", None, was_running=True, disks=story.guest().disks)
    foresight = disks.foresee(question)
    assert (foresight.way, foresight.reason, foresight.allocated > 0) == (Way.LIVE if live else Way.WARM, "", True)
    off = disks.foresee(replace(question, was_running=False))
    assert (off.way, off.reason) == (Way.NONE if live else Way.COLD, "The guest is off.")
    with pytest.raises(StepError, match="No such file"):
        hosts.world("h2").disks.foresee(question)


def test_disks_of_a_guest_that_is_not_sealed_are_not_sent(hosts: Hosts) -> None:
    story = Story(hosts)
    story.start()
    story.do("h2", "cold", "prepare")
    story.do("h1", "cold", "open_channel")
    with pytest.raises(StepError, match="not sealed"):
        story.do("h1", "cold", "copy_disks")
    assert story.state("h1") is PowerState.RUNNING
    assert story.probe("h1", "cold", "copy_disks") is Answer.NOT_DONE


def test_a_cancelled_copy_is_not_taken_for_a_whole_one(hosts: Hosts) -> None:
    story = Story(hosts)
    story.define(was_running=False)
    story.do("h2", "cold", "prepare")
    for step in ("open_channel", "stop_guest"):
        story.do("h1", "cold", step)
    for _ in range(2):  # the second time a whole copy is there already
        cancelled = hosts.control("h1", 60)
        cancelled.cancel("a test")
        with pytest.raises(Cancelled):
            story.do("h1", "cold", "copy_disks", cancelled)
        assert story.probe("h1", "cold", "copy_disks") is Answer.NOT_DONE
        story.do("h1", "cold", "copy_disks")
        assert story.probe("h1", "cold", "copy_disks") is Answer.DONE
    story.do("h2", "cold", "verify_disks")


def test_a_copied_disk_grows_may_be_told_so_twice_and_never_shrinks(hosts: Hosts) -> None:
    story = Story(hosts)
    story.define(was_running=False)
    story.stop_and_copy()
    story.do("h2", "cold", "verify_disks")

    def resize(size_mb: int) -> Facts:
        work = story.order("h2", "resize", "resize_disks").work
        larger = replace(work.guest, disks=(replace(hosts.root, size_mb=size_mb),))
        return story.do("h2", "resize", "resize_disks", work=replace(work, guest=larger))

    size = hosts.root.size_mb
    assert resize(size) == {"grown_to_mb": {}}
    for _ in range(2):
        assert resize(2 * size) == {"grown_to_mb": {"disk-0": 2 * size}}
    with pytest.raises(StepError, match="shrink"):
        resize(size // 2)


def test_a_definition_is_carried_or_refused_but_never_invented_in_a_move(hosts: Hosts) -> None:
    story = Story(hosts)
    story.define(was_running=False)
    story.stop_and_copy()
    carried = story.results.pop("stop_guest")
    with pytest.raises(StepError, match="definition"):
        story.do("h2", "cold", "define_guest")
    story.results["stop_guest"] = carried
    story.do("h2", "cold", "define_guest")
    assert story.state("h2") is PowerState.STOPPED


def test_a_channel_needs_a_target_that_was_prepared_and_a_closed_one_may_be_closed(hosts: Hosts) -> None:
    story = Story(hosts)
    story.define(was_running=False)
    with pytest.raises(StepError, match="prepared"):
        story.do("h1", "cold", "open_channel")
    story.do("h2", "cold", "prepare")
    facts = story.do("h1", "cold", "open_channel")
    assert facts["shared"] is False and facts["free_bytes"] > facts["needed_bytes"] > 0
    assert story.probe("h1", "cold", "open_channel") is Answer.DONE
    for _ in range(2):
        story.do("h1", "cold", "open_channel", verb=Verb.UNDO)
    assert story.probe("h1", "cold", "open_channel") is Answer.NOT_DONE


def test_a_third_copy_waits_for_a_slot_and_a_cancel_leaves_the_line(hosts: Hosts) -> None:
    channels = hosts.world("h1").channels
    stories = [Story(hosts) for _ in range(4)]
    orders = [story.order("h1", "cold", "stop_guest") for story in stories]
    for order in orders[:2]:
        channels.reserve_slot(order, hosts.control("h1", 60))
        channels.reserve_slot(order, hosts.control("h1", 60))
    patience = hosts.control("h1", 60)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(channels.reserve_slot, orders[2], patience)
        assert not wait([waiting], timeout=0.5).done
        patience.cancel("a test")
        with pytest.raises(Cancelled):
            waiting.result(30)
    channels.close(orders[0])
    channels.reserve_slot(orders[3], hosts.control("h1", 60))
    for order in orders:
        channels.close(order)


def test_only_what_an_attempt_made_is_discarded(hosts: Hosts) -> None:
    story = Story(hosts)
    story.start()
    world = hosts.world("h1")
    assert world.directories.discard(story.server, "7-1") == 0
    assert world.directories.is_live(story.server, "1-1") and story.state("h1") is PowerState.RUNNING
    story.do("h2", "cold", "prepare")
    assert hosts.world("h2").directories.discard(story.server, "7-2") == 0
    assert story.probe("h2", "cold", "prepare") is Answer.DONE


def test_power_is_what_was_ordered_and_a_hard_reboot_defines_the_guest_anew(hosts: Hosts) -> None:
    story = Story(hosts)
    story.define()

    def order(action: PowerAction) -> None:
        story.attempt = f"{int(story.attempt.split('-')[0]) + 1}-1"
        work = replace(story.order("h1", "power", "set_power").work, action=action)
        story.do("h1", "power", "set_power", work=work)

    hosts.world("h1").guests.undefine(story.server)
    order(PowerAction.REBOOT_HARD)
    assert story.verdict("h1", boot=1)["bad"] == 0
    order(PowerAction.REBOOT_SOFT)
    assert story.verdict("h1", boot=2)["bad"] == 0
    order(PowerAction.STOP)
    assert story.state("h1") is PowerState.STOPPED
    order(PowerAction.START)
    assert story.state("h1") is PowerState.RUNNING


def test_the_end_of_a_server_removes_everything_of_it_and_nothing_else(hosts: Hosts) -> None:
    story, other = Story(hosts), Story(hosts)
    story.start()
    other.start()
    for _ in range(2):
        story.do("h1", "delete", "remove_guest")
    assert story.state("h1") is None and other.state("h1") is PowerState.RUNNING
    assert not list(hosts.instances("h1").glob(f"{story.server}*"))
