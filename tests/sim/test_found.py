"""What the simulation found, each as a small test named after what it prevents."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from tests.protocol.by_hand import SERVER, Cluster, Free
from tests.unit.orders import order
from whimbrel.agent import service
from whimbrel.agent.admission import Admission
from whimbrel.agent.directories import HostDirectories, write_manifest
from whimbrel.agent.heartbeat import Heart
from whimbrel.agent.ledger import Ledger
from whimbrel.bus.codec import registry
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.domain.errors import StepError
from whimbrel.domain.migration import Answer, Kind, Mark, Verb, Verdict
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.migration import protocols
from whimbrel.migration.messages import StepReport, Wake
from whimbrel.migration.steps import disks, guest
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent
from whimbrel.store import outbox
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata

UUID = "0c5a6d1e-7b1c-4f67-9a55-1f9d2a4b8c10"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store(f"sqlite:///{tmp_path}/test.db")
    made.write_now(lambda tx: metadata.create_all(tx))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the clock back that a cluster replaces."""
    monkeypatch.setattr(clock, "now", clock.now)


def test_a_commit_that_fails_does_not_leave_its_transaction_to_the_next(store: Store) -> None:
    def make(tx: Connection) -> None:
        tx.execute(text("CREATE TABLE one (id INTEGER PRIMARY KEY)"))
        tx.execute(text("CREATE TABLE two (one INTEGER REFERENCES one (id) DEFERRABLE INITIALLY DEFERRED)"))

    store.write_now(make)
    with pytest.raises(IntegrityError):  # the statement succeeds, and COMMIT itself does not
        store.write_now(lambda tx: tx.execute(text("INSERT INTO two VALUES (7)")))
    assert store.read_now(lambda tx: tx.execute(text("SELECT count(*) FROM two")).scalar_one()) == 0


def test_a_message_is_not_held_back_because_the_clock_was_set_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []

    async def cast(queue: str, message: object) -> None:
        sent.append(message)

    store.write_now(outbox.put, "conductor", Wake(1))
    hour_ago = clock.now() - 3600
    monkeypatch.setattr(clock, "now", lambda: hour_ago)
    asyncio.run(outbox.Relay(store, cast)._sweep())
    assert sent == [Wake(1)]


def test_a_clock_that_was_set_back_does_not_end_the_questions() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.step()
    cluster.queue.clear()  # the order is lost
    cluster.time -= 3600
    cluster.run()
    assert cluster.migration().window_open, cluster.story()


def test_a_host_is_called_silent_after_its_time_although_the_clock_was_set_back() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.step()
    cluster.queue.clear()
    for host in cluster.hosts.values():
        host.up = False
    cluster.time -= 3600
    for _ in range(30):
        cluster.tick()
    assert cluster.marks()["prepare"] not in (Mark.DOING, Mark.DONE), cluster.story()


@pytest.mark.parametrize("verdict", [Verdict.CONFIRM, Verdict.REVERT])
def test_a_lost_wake_does_not_leave_a_verdict_asleep(verdict: Verdict) -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    cluster.verdict(verdict)
    cluster.queue.clear()
    cluster.run()
    assert not cluster.migration().open, cluster.story()
    cluster.settled("h2" if verdict is Verdict.CONFIRM else "h1")


def test_a_lost_wake_does_not_leave_a_power_action_asleep() -> None:
    cluster = Cluster()
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.STOP)
    cluster.queue.clear()
    cluster.run()
    assert cluster.migration().outcome == "completed", cluster.story()


def test_a_domain_is_not_left_behind_when_its_directory_is_removed_before_its_undo() -> None:
    cluster = Cluster()
    host = cluster.hosts["h2"]
    host.live = {"attempt": "7-1", "writes": 0}
    host.domains[SERVER] = "xml"
    disks.discard(host.world(), order("prepare", 1, host="h2", server=SERVER, verb=Verb.UNDO), Free())
    assert host.live is None
    assert not host.domains


def test_a_late_heartbeat_without_a_guest_does_not_say_that_it_stopped() -> None:
    cluster = Cluster()
    host = cluster.hosts["h1"]
    live, host.live = host.live, None  # as it was before the build's directory got its name
    cluster.beat(host)
    host.live = live
    assert cluster.server().power_state == PowerState.RUNNING


def test_what_a_heartbeat_sees_in_mid_step_is_not_told(tmp_path: Path) -> None:
    conf = Agent("h1", "h1", str(tmp_path / "i"), str(tmp_path / "s"), str(tmp_path / "r"), hypervisor="fake")
    ledger = Ledger(conf.state_dir, "boot")
    admission = Admission(conf, ledger)
    world = service.world(conf, ledger, admission.may_run)
    doing = order("define_guest", 3)
    _fill_parents(tmp_path / "i" / doing.server)
    world.guests.define(doing.server, "{}")
    heart = Heart(conf, ledger, world, LocalBus(LocalBroker(), registry()), admission)
    ledger.accept(doing)
    assert [line.power_state for line in heart._guests()] == [PowerState.UNKNOWN]
    ledger.finish(doing, StepReport("h1", doing.server, 7, 0, "7-1", "define_guest", Verb.DO, 3, Answer.DONE))
    assert [line.power_state for line in heart._guests()] == [PowerState.STOPPED]
    ledger.close()


def _fill_parents(directory: Path) -> None:
    directory.parent.mkdir(parents=True)
    _fill(directory, "7-1")


def _fill(directory: Path, attempt: str) -> None:
    directory.mkdir()
    (directory / "disk-0").write_bytes(b"x" * 8192)
    write_manifest(directory, {"server": UUID, "attempt": attempt})


@pytest.mark.parametrize("way", ["discard", "remove_all", "remove_sealed"])
def test_a_removal_that_failed_after_its_rename_is_finished_by_the_next(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = HostDirectories(tmp_path)
    _fill(names.sealed(UUID, "2-1") if way == "remove_sealed" else names.live(UUID), "2-1")
    arguments = (UUID,) if way == "remove_all" else (UUID, "2-1")

    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", refuse)
        with pytest.raises(StepError):
            getattr(names, way)(*arguments)
    getattr(names, way)(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_not_called_gone_while_its_bytes_are_there() -> None:
    table = protocols.CONFIRM.step("retire_source")
    assert isinstance(table, protocols.HostStep)
    answer, _ = table.probe(Cluster().hosts["h1"].world(), order("retire_source", 1, protocol="confirm"), Free())
    assert answer is Answer.NOT_DONE


def test_a_guest_whose_unseal_was_given_up_is_brought_back_by_its_next_start() -> None:
    cluster = Cluster()
    host = cluster.hosts["h1"]
    host.sealed["5-1"], host.live, host.running = host.live or {}, None, None
    host.domains.clear()
    asked = order("set_power", 2, server=SERVER, protocol="power", epoch=1)
    world = host.world()
    start = replace(asked, work=replace(asked.work, action=PowerAction.START))
    guest.set_power(world, start, Free())
    assert host.running == "running"
    assert host.live and not host.sealed
