"""A guest whose memory comes from another host: what its disks name is looked at before QEMU opens them, and after."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.unit.orders import order
from tests.unit.test_formats import make
from whimbrel.agent.control import StepControl
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.guests import outflow
from whimbrel.agent.guests.holding import AT_ONCE_MB, crosses_once, holds_first, takes_at_once
from whimbrel.agent.guests.libvirt import LibvirtGuests
from whimbrel.agent.guests.memory import LibvirtMemory, _Expected
from whimbrel.agent.guests.outflow import Outflow
from whimbrel.domain.errors import StepError, TimedOut
from whimbrel.domain.server import Disk, DiskRole, PowerState
from whimbrel.migration.messages import Order
from whimbrel.ops.settings import Agent

ROOT = Disk(0, DiskRole.ROOT, "qcow2", 64)


class Nobody(LibvirtGuests):
    """No guest is here, and no hypervisor is asked."""

    def destroy(self, server: str) -> None: ...

    def definition(self, server: str) -> str | None:
        return None


@pytest.fixture
def memory(tmp_path: Path) -> LibvirtMemory:
    here = Agent("h2", "10.0.0.2", str(tmp_path), str(tmp_path / "state"))
    return LibvirtMemory(here, Nobody(here), SshChannels(here, None))  # type: ignore[arg-type]


@pytest.fixture
def arriving(tmp_path: Path) -> Order:
    """The order to a target, whose directory has its live name already."""
    made = order("expect_guest", 9)
    guest = replace(made.work.guest, disks=(ROOT,))
    (tmp_path / made.server).mkdir()
    return replace(made, work=replace(made.work, guest=guest, old=guest))


def test_no_process_is_made_for_a_disk_that_names_another_file(
    memory: LibvirtMemory, arriving: Order, tmp_path: Path
) -> None:
    disk = tmp_path / arriving.server / "disk-0"
    make(disk, "-b", "/etc/shadow", "-F", "raw")
    with pytest.raises(StepError, match="stands on '/etc/shadow'"):
        memory.expect(arriving, StepControl(10))
    make(disk)
    with pytest.raises(StepError, match="is not defined"):  # the next thing that is looked for
        memory.expect(arriving, StepControl(10))


@pytest.mark.parametrize(
    ("live_memory", "virt_type", "protocol", "held"),
    [
        ("held", "qemu", "live", True), ("held", "kvm", "live", True), ("running", "qemu", "live", False),
        ("running", "kvm", "live", False), ("running", "qemu", "suspended", True),
    ],
)  # fmt: skip
def test_memory_is_taken_before_only_for_a_guest_that_is_held_and_where_there_is_room_for_it(
    live_memory: Any, virt_type: str, protocol: str, held: bool
) -> None:
    here = Agent("h2", "10.0.0.2", live_memory=live_memory, virt_type=virt_type)
    fitting, larger, small = (
        replace(made, work=replace(made.work, old=replace(made.work.old, ram_mb=ram)))
        for made in [order("expect_guest", 9, protocol=protocol)]
        for ram in (AT_ONCE_MB, AT_ONCE_MB + 1, 128)
    )
    assert holds_first(here, fitting) is held
    assert crosses_once(here) is (virt_type == "qemu"), "an emulated guest's log of pages is not read while it runs"
    assert takes_at_once(here, fitting) is held
    assert not takes_at_once(here, larger), "the step would outlast its limit"
    here.ram_ratio = 1.5
    assert not takes_at_once(here, small), "what is claimed may be more than there is"


@pytest.mark.parametrize("file", ["/etc/shadow", "disk-0"])
def test_a_guest_is_let_run_only_with_its_own_files(
    memory: LibvirtMemory, arriving: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    opened = [{"drv": "qcow2", "file": "json:{}"}, {"drv": "file", "file": str(tmp_path / arriving.server / file)}]
    asked: list[str] = []

    def answer(server: str, command: str, **arguments: Any) -> Any:
        asked.append(command)
        return opened

    monkeypatch.setattr(memory, "_monitor", answer)
    expected = _Expected(os.open(os.devnull, os.O_RDONLY))
    expected.arrived.set()
    memory._expected[arriving.server] = expected
    if file == "disk-0":
        memory.await_arrival(arriving, StepControl(10))
    else:
        with pytest.raises(StepError, match="has opened '/etc/shadow'"):
            memory.await_arrival(arriving, StepControl(10))
    assert asked == ["query-named-block-nodes"]


def test_memory_that_does_not_move_is_given_up_whatever_else_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disks' rounds go on meanwhile, so the step's own stall limit does not see it."""
    monkeypatch.setattr(outflow, "SILENT", 0.05)
    outgoing = Outflow("server", None, tmp_path / "memory")  # type: ignore[arg-type]
    outgoing.check(moving=True)
    Event().wait(0.1)
    outgoing.check(moving=False)
    with pytest.raises(TimedOut, match="Nothing of the memory of server server has moved"):
        outgoing.check(moving=True)
    outgoing._moved = None  # it waits for its turn
    outgoing.check(moving=True)


@pytest.mark.parametrize(
    ("virt_type", "expected"),
    [("qemu", ["limit 0", "hold", "migrate", "look", "look", "resume"]), ("kvm", ["limit 100", "migrate"])],
)
def test_the_log_of_an_emulated_guests_pages_is_begun_while_it_is_held_and_not_read_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virt_type: str, expected: list[str]
) -> None:
    said: list[str] = []

    class Running(Nobody):
        def state(self, server: str) -> PowerState | None:
            return PowerState.RUNNING

        def resume(self, server: str) -> None:
            said.append("resume")

    class NoWay(SshChannels):
        def open_for_memory(self, order: Order, control: Any) -> Any:
            return None

    def answer(server: str, command: str, **arguments: Any) -> Any:
        if command == "migrate-set-parameters":
            said.append(f"limit {arguments['downtime-limit']}")
        elif command == "migrate":
            said.append("migrate")
        elif command == "query-migrate" and "migrate" in said:
            said.append("look")
            return {"status": "setup" if said.count("look") < 2 else "active"}
        return None

    here = Agent("h1", "10.0.0.1", str(tmp_path), str(tmp_path / "state"), run_dir=str(tmp_path), virt_type=virt_type)
    made = LibvirtMemory(here, Running(here), NoWay(here, None))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_monitor", answer)
    monkeypatch.setattr(made._hypervisor, "call", lambda what, work: said.append(what.split()[0]))
    monkeypatch.setattr(Outflow, "begin", lambda self, pace, control: None)
    assert made.begin(order("move_memory", 9), StepControl(10)) is None, "it runs"
    assert said == expected
