"""The ledger: what a host has promised, it keeps, whoever dies in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.orders import SERVER, order
from whimbrel.agent import ledger as ledger_module
from whimbrel.agent.children import end_children, start_time
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.ledger import Ledger, Standing, boot_marker
from whimbrel.domain.errors import StepError, Unavailable
from whimbrel.domain.migration import Answer, Verb
from whimbrel.migration.messages import Order, StepReport
from whimbrel.ops import clock


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path, "boot-1")
    yield made
    made.close()


def reopen(ledger: Ledger, tmp_path: Path, boot: str = "boot-1") -> Ledger:
    ledger.close()
    return Ledger(tmp_path, boot)


def holds_grant(ledger: Ledger) -> bool:
    """Whether this boot of the host may run the server now."""
    seen = ledger.server(SERVER)
    return seen is not None and seen.sealed is None and seen.grant_boot == ledger.boot


def report(of: Order, answer: Answer = Answer.DONE) -> StepReport:
    return StepReport("h1", of.server, 7, 0, of.attempt, of.step, of.verb, of.number, answer, {"bytes": 5})


def test_an_order_is_new_once_and_its_end_is_remembered(ledger: Ledger, tmp_path: Path) -> None:
    first = order("prepare", 3)
    assert ledger.accept(first).standing is Standing.NEW
    assert ledger.accept(first).standing is Standing.SAME
    assert ledger.unfinished() == [first]
    assert ledger.finish(first, report(first))
    assert not ledger.finish(first, report(first, Answer.FAILED)), "an end never changes"
    ledger = reopen(ledger, tmp_path)
    assert ledger.accept(first).report == report(first)
    assert ledger.unfinished() == []
    ledger.close()


@pytest.mark.parametrize(("epoch", "number"), [(4, 9), (5, 6), (4, 6)])
def test_nothing_older_is_obeyed_and_the_refusal_names_what_was_seen(ledger: Ledger, epoch: int, number: int) -> None:
    ledger.accept(order("prepare", 7, epoch=5))
    heard = ledger.accept(order("prepare", number, epoch=epoch))
    assert (heard.standing, heard.epoch, heard.number) == (Standing.STALE, 5, 7)
    assert ledger.accept(order("prepare", 8, epoch=5)).standing is Standing.NEW


def test_a_number_that_two_orders_bear_answers_for_neither(ledger: Ledger) -> None:
    ledger.accept(order("prepare", 7))
    for other in (order("stop_guest", 7), order("prepare", 7, verb=Verb.UNDO), order("prepare", 7, attempt="8-1")):
        assert ledger.accept(other).standing is Standing.STALE


def test_looking_an_order_up_changes_nothing(ledger: Ledger) -> None:
    assert ledger.find(order("prepare", 9)).standing is Standing.NEW
    assert ledger.accept(order("prepare", 2)).standing is Standing.NEW


def test_a_report_leaves_the_outbox_only_after_it_was_sent(ledger: Ledger, tmp_path: Path) -> None:
    for number in (1, 2):
        ledger.accept(order("prepare", number))
        ledger.finish(order("prepare", number), report(order("prepare", number)))
    ledger = reopen(ledger, tmp_path)
    rows = ledger.outbox(after=0, limit=10)
    assert [row.report.number for row in rows] == [1, 2] and rows[0].request_id == "req-1"
    ledger.sent(rows[0])
    assert len(ledger.outbox(after=0, limit=10)) == 2, "it goes with the next write, not with one of its own"
    ledger.accept(order("prepare", 3))
    assert [row.report.number for row in ledger.outbox(after=0, limit=10)] == [2]
    ledger.close()


def test_only_the_newest_order_of_a_server_is_looked_at_after_a_crash(ledger: Ledger) -> None:
    ledger.accept(order("prepare", 1))
    ledger.accept(order("prepare", 2))
    assert [left.number for left in ledger.unfinished()] == [2]


def test_old_orders_are_forgotten_and_still_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "ORDERS_KEPT", 3)
    for number in range(1, 9):
        ledger.accept(order("prepare", number))
    assert ledger.find(order("prepare", 6)).standing is Standing.SAME
    assert ledger.find(order("prepare", 5)).standing is Standing.STALE


def test_orders_of_a_server_that_gets_none_any_more_are_kept_for_thirty_days(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, day = 1_000_000_000.0, 86400.0
    monkeypatch.setattr(clock, "now", lambda: now)
    for number in (1, 2):
        ledger.accept(order("prepare", number))
    for days, standing in ((29, Standing.SAME), (31, Standing.STALE)):
        monkeypatch.setattr(clock, "now", lambda days=days: now + days * day)
        ledger = reopen(ledger, tmp_path)
        assert ledger.find(order("prepare", 1)).standing is standing
        assert ledger.find(order("prepare", 2)).standing is Standing.SAME
    ledger.close()


def test_a_late_step_cannot_let_a_guest_run_after_a_newer_epoch_was_seen(ledger: Ledger) -> None:
    grants = LedgerGrants(ledger, lambda: True)
    late = order("start_guest", 1, epoch=2)
    ledger.accept(late)
    grants.grant(late)
    ledger.accept(order("start_guest", 2, epoch=3, verb=Verb.UNDO))
    with pytest.raises(StepError, match="revoked"):
        grants.release(late)
    with pytest.raises(StepError, match="revoked"):
        grants.grant(late)
    assert not grants.was_released(SERVER, 2)


def test_a_late_step_cannot_let_a_guest_run_after_a_newer_order_number_was_seen(ledger: Ledger) -> None:
    grants, late = LedgerGrants(ledger, lambda: True), order("set_power", 1, epoch=2)
    ledger.accept(late)
    grants.grant(late)
    ledger.catch_up({SERVER: (2, 2)})  # a conductor told it when the agent was admitted anew
    for late_step in (grants.release, grants.grant):
        with pytest.raises(StepError, match="overtaken by order 2") as refused:
            late_step(late)
        assert refused.value.facts["revoked"], "it did not fail, so the guest is still wanted"
    assert not grants.was_released(SERVER, 2)


def test_a_slow_step_cannot_let_a_guest_run_when_the_lease_has_run_out(ledger: Ledger) -> None:
    leased = [True]
    grants, slow = LedgerGrants(ledger, lambda: leased[0]), order("set_power", 1, epoch=2)
    grants.grant(slow)
    leased[0] = False
    with pytest.raises(StepError, match="lease has run out"):
        grants.release(slow)
    with pytest.raises(StepError, match="lease has run out"):
        grants.grant(slow)
    assert not grants.was_released(SERVER, 2)


def test_an_order_that_the_agents_end_cut_short_is_told_apart_from_one_that_failed(ledger: Ledger) -> None:
    for number, answer in ((1, Answer.FAILED), (2, Answer.NOT_DONE), (3, Answer.DONE)):
        taken = order("set_power", number)
        ledger.accept(taken)
        ledger.finish(taken, report(taken, answer))
        seen = ledger.server(SERVER)
        assert seen is not None and seen.was_cut_short is (answer is Answer.NOT_DONE)


def test_a_release_is_remembered_and_needs_a_grant_that_no_seal_took_away(ledger: Ledger) -> None:
    grants, first = LedgerGrants(ledger, lambda: True), order("start_guest", 1)
    with pytest.raises(StepError, match="no grant"):
        grants.release(first)
    grants.grant(first)
    grants.release(first)
    grants.seal(SERVER, "7-1")
    assert grants.is_sealed(SERVER) and not holds_grant(ledger)
    with pytest.raises(StepError, match="no grant"):
        grants.release(first)
    grants.grant(order("start_guest", 2, epoch=4))
    assert not grants.is_sealed(SERVER) and holds_grant(ledger)
    assert grants.was_released(SERVER, 1) and not grants.was_released(SERVER, 4)


def test_a_grant_ends_with_the_boot_of_the_host_and_not_with_the_agent(ledger: Ledger, tmp_path: Path) -> None:
    first = order("start_guest", 1)
    LedgerGrants(ledger, lambda: True).grant(first)
    ledger = reopen(ledger, tmp_path)
    assert holds_grant(ledger)
    ledger = reopen(ledger, tmp_path, boot="boot-2")
    grants = LedgerGrants(ledger, lambda: True)
    assert not holds_grant(ledger)
    with pytest.raises(StepError, match="no grant"):
        grants.release(first)
    ledger.close()


def test_the_boot_marker_stays_until_its_directory_is_emptied(tmp_path: Path) -> None:
    first = boot_marker(tmp_path / "run")
    assert boot_marker(tmp_path / "run") == first
    (tmp_path / "run" / "boot").unlink()
    assert boot_marker(tmp_path / "run") != first


def test_a_second_agent_on_the_same_ledger_is_refused_and_the_id_stays(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Another agent"):
        Ledger(tmp_path, "boot-1")
    identity = ledger.id
    ledger = reopen(ledger, tmp_path)
    assert ledger.id == identity
    ledger.close()


def test_what_was_accepted_survives_a_kill_at_the_next_instruction(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.unit.orders import order\n"
        "from whimbrel.agent.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), 'boot-1'); ledger.accept(order('prepare', 5))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=root, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    ledger = Ledger(tmp_path, "boot-1")
    assert ledger.unfinished() == [order("prepare", 5)]
    ledger.close()


def test_a_process_left_behind_is_ended_but_never_another_one_with_its_pid(ledger: Ledger) -> None:
    theirs, other = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        for child, shift in ((theirs, 0), (other, 1)):
            began = start_time(child.pid)
            assert began is not None
            ledger.record_child(child.pid, began + shift, "channel")
        end_children(ledger)
        assert theirs.wait(5) == -signal.SIGTERM
        assert other.poll() is None
        assert ledger.children() == []
    finally:
        for child in (theirs, other):
            child.kill()
            child.wait(5)
    assert start_time(os.getpid()) is not None and start_time(theirs.pid) is None


def test_processes_of_an_earlier_boot_are_forgotten(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record_child(1, 1, "channel")
    ledger = reopen(ledger, tmp_path)
    assert len(ledger.children()) == 1, "the agent was started again"
    ledger = reopen(ledger, tmp_path, "boot-2")
    assert ledger.children() == []
    ledger = reopen(ledger, tmp_path)
    assert ledger.children() == [], "they are not only hidden"
    ledger.close()


def test_every_server_is_known_in_the_order_of_its_name_and_nothing_is_read_after_the_end(ledger: Ledger) -> None:
    for server in (SERVER, SERVER.replace("1", "0")):
        ledger.accept(replace(order("prepare", 1), server=server))
    assert [seen.server for seen in ledger.servers()] == sorted((SERVER, SERVER.replace("1", "0")))
    ledger.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        ledger.servers()


def test_a_failed_write_leaves_nothing_half_done(ledger: Ledger) -> None:
    first = order("prepare", 1)
    ledger.accept(first)
    with pytest.raises(TypeError):
        ledger.finish(first, replace(report(first), facts={"bad": object()}))
    assert ledger.unfinished() == [first] and ledger.outbox(after=0, limit=10) == []
