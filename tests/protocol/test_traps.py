"""What has gone wrong in systems of this kind, each trap as a test that it is not fallen into here."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from tests.protocol.audit import audit
from tests.protocol.cluster import FOR_GOOD, LARGE, AgentKilled, Cluster
from tests.protocol.faults import cut_at, fail, lift
from whimbrel.conductor import timers
from whimbrel.domain.errors import Conflict, Invalid
from whimbrel.domain.migration import Answer, Kind, Verdict, Witness
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.migration.messages import Order, StepReport
from whimbrel.store.tables import claims, debts
from whimbrel.store.tables import journal as journal_table
from whimbrel.store.tables import migrations as migrations_table


def moved(**conf: int) -> Cluster:
    """A cluster whose server was moved from h1 to h2 and waits for its verdict."""
    cluster = Cluster(**conf)
    cluster.start()
    cluster.run()
    assert cluster.migration().window_open
    return cluster


def wait(cluster: Cluster, minutes: int = 4) -> None:
    """Let some minutes pass."""
    for _ in range(minutes):
        cluster.drain()
        cluster.tick(later=60)
    cluster.drain()


def test_a_handed_over_server_starts_at_the_target_though_the_order_was_lost_and_the_source_is_gone() -> None:
    cluster = Cluster()
    cluster.start()
    while not any(isinstance(message, Order) and message.step == "start_guest" for message in cluster.queue):
        cluster.step()
    cluster.queue.clear()
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.run()
    assert cluster.hosts["h2"].running and cluster.migration().window_open, cluster.story()


@pytest.mark.parametrize("died_at", ["h1.promised", "h1.renamed", "h1.copying", "h1.copied"])
def test_a_restarted_source_leaves_no_half_copied_directory_and_no_claim(died_at: str) -> None:
    cluster = Cluster(names=("h1", "h2"))

    def strike(what: str) -> None:
        if what == died_at:
            fail(cluster, "h2.verify_disks")
            raise AgentKilled

    cluster.fault = strike
    cluster.start()
    cluster.run()
    assert cluster.migration().outcome == "error", cluster.story()
    cluster.settled("h1")


def test_a_copy_that_breaks_never_leaves_the_guest_off() -> None:
    cluster = Cluster()
    fail(cluster, ".copying")
    cluster.start()
    cluster.run()
    assert cluster.migration().outcome == "error" and "copying" in cluster.migration().reason
    cluster.settled("h1")
    assert cluster.longest_down < 60, "it ran again while the others were tried"


def test_a_confirm_of_a_dead_source_ends_at_once_for_the_user_and_stays_no_confirming() -> None:
    cluster = moved()
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.verdict(Verdict.CONFIRM)
    cluster.verdict(Verdict.CONFIRM)
    wait(cluster, 2)
    assert cluster.migration().outcome == "confirmed", cluster.story()
    assert cluster.hosts["h2"].running
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.REBOOT_SOFT)
    cluster.run()
    assert cluster.migration().outcome == "completed", "a source that is away holds nothing up"
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h2")


def test_an_undo_window_that_runs_out_while_the_source_is_dead_is_closed_all_the_same() -> None:
    cluster = moved(confirm_window=300)
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    wait(cluster, 8)
    assert cluster.migration().outcome == "confirmed", cluster.story()


def test_a_target_that_fails_for_ever_is_tried_a_bounded_number_of_times() -> None:
    cluster = Cluster(names=("h1", "h2", "h3", "h4", "h5", "h6"), max_attempts=3)
    fail(cluster, ".verify_disks")
    cluster.start()
    cluster.run()
    assert cluster.migration().outcome == "error" and len(cluster.migration().tried) == 3, cluster.story()
    cluster.settled("h1")


def test_no_lock_outlives_a_power_loss_of_every_machine() -> None:
    cluster = Cluster()
    cluster.start()
    while "copy_disks" not in cluster.marks():
        cluster.step()
    cluster.queue.clear()
    for host in cluster.hosts.values():
        cluster.cut(host)
    cluster.run()
    assert cluster.migration().window_open, cluster.story()
    cluster.verdict(Verdict.REVERT)
    cluster.run()
    cluster.settled("h1")


def test_a_target_that_vanishes_after_the_guest_was_stopped_leaves_no_server_without_a_host() -> None:
    cluster = Cluster(names=("h1", "h2"))
    cut_at(cluster, "h1.renamed", away=FOR_GOOD, host="h2")
    cluster.start()
    wait(cluster, 5)
    assert cluster.hosts["h1"].running and cluster.server().host == "h1", cluster.story()
    assert cluster.migration().outcome == "error"


def test_a_second_try_finds_nothing_of_the_first_in_its_way() -> None:
    cluster = Cluster(names=("h1", "h2"))
    for step in ("prepared", "copied", "verify_disks", "adopt", "created"):
        fail(cluster, f"h2.{step}", f"h1.{step}" if step == "copied" else "-")
        cluster.start()
        cluster.run()
        assert cluster.migration().outcome == "error", cluster.story()
        lift(cluster)
        cluster.settled("h1")
    cluster.start()
    cluster.run()
    assert cluster.migration().window_open, cluster.story()


@pytest.mark.parametrize("step", ["prepare", "copy_disks", "define_guest"])
def test_a_server_deleted_in_mid_move_leaves_no_disk_and_no_copy_that_goes_on(step: str) -> None:
    cluster = Cluster()
    cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)
    while cluster.marks().get(step) != "doing":
        cluster.step()
    cluster.delete()
    cluster.run()
    assert cluster.server().deleted_at is not None
    audit(cluster, at_rest=True)


def test_a_failed_move_removes_only_what_it_made_itself() -> None:
    cluster = moved()
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    assert cluster.hosts["h2"].live is not None
    before = list(cluster.hosts["h2"].live.writes)
    fail(cluster, ".verify_disks")
    cluster.start()
    cluster.run()
    cluster.settled("h2")
    assert cluster.hosts["h2"].live.writes[: len(before)] == before


def test_an_old_removal_never_destroys_a_server_that_came_back() -> None:
    cluster = moved()
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.verdict(Verdict.CONFIRM)
    wait(cluster, 2)
    old = [message for message in cluster.sent if isinstance(message, Order) and message.host == "h1"]
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.start(forced_host="h1")
    cluster.run()
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h1")
    assert {order.step for order in old} >= {"retire_source"}
    cluster.queue.extend(old)
    cluster.run()
    cluster.settled("h1")


def test_an_evacuated_host_that_returns_never_destroys_the_server_after_it_moved_back() -> None:
    cluster = Cluster(names=("h1", "h2"))
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.tick(later=70)
    cluster.prove("h1", Witness.ADMINISTRATOR)
    cluster.evacuate()
    wait(cluster)
    assert cluster.hosts["h2"].running and cluster.rows(debts), cluster.story()
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    old = [message for message in cluster.sent if isinstance(message, Order) and message.step == "remove_stale"]
    cluster.start()
    cluster.run()
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h1")
    cluster.queue.extend(old)
    cluster.cut(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h1")


@pytest.mark.parametrize("verdict", [Verdict.CONFIRM, Verdict.REVERT])
def test_no_claim_is_leaked_or_counted_twice_by_a_move_that_fails_and_one_that_does_not(verdict: Verdict) -> None:
    cluster = Cluster()
    fail(cluster, "h2.verify_disks")
    cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)
    cluster.run()
    assert sorted((row.host, row.vcpus) for row in cluster.rows(claims)) == [("h1", 1), ("h3", 2)]
    cluster.verdict(verdict)
    cluster.run()
    cluster.settled("h3" if verdict is Verdict.CONFIRM else "h1")


@pytest.mark.parametrize("verdict", [Verdict.CONFIRM, Verdict.REVERT])
def test_a_server_that_was_off_comes_back_off(verdict: Verdict) -> None:
    cluster = Cluster()
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.STOP)
    cluster.run()
    cluster.start()
    cluster.run()
    cluster.verdict(verdict)
    cluster.run()
    cluster.settled("h2" if verdict is Verdict.CONFIRM else "h1", running=False)


def test_a_dead_host_with_a_power_action_under_way_can_be_evacuated() -> None:
    cluster = Cluster()
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.STOP)
    cluster.drain()
    cluster.tick(later=30)
    cluster.evacuate()
    cluster.tick(later=40)
    cluster.prove("h1")
    wait(cluster)
    assert cluster.server().host == "h2", cluster.story()


def test_a_verdict_is_given_once() -> None:
    cluster = moved()
    cluster.verdict(Verdict.REVERT)
    with pytest.raises(Conflict, match="revert"):
        cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    with pytest.raises(Invalid):
        cluster.verdict(Verdict.REVERT)
    cluster.settled("h1")


def test_a_lost_power_order_leaves_no_wrong_power_state() -> None:
    cluster = Cluster()
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.REBOOT_SOFT)
    wait(cluster, 3)
    assert cluster.migration().outcome == "error", cluster.story()
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h1")


@pytest.mark.parametrize("wish", ["confirm", "delete", "stop"])
def test_a_wake_up_call_that_is_lost_is_missed(wish: str) -> None:
    cluster = Cluster() if wish == "stop" else moved()
    if wish == "stop":
        cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.STOP)
    elif wish == "delete":
        cluster.delete()
    else:
        cluster.verdict(Verdict.CONFIRM)
    cluster.queue.clear()
    cluster.run()
    assert not cluster.migration().open, cluster.story()
    audit(cluster, at_rest=True)


def test_an_attempt_that_is_over_is_not_asked_about_for_ever() -> None:
    cluster = Cluster()
    cut_at(cluster, "h2.verify_disks", away=FOR_GOOD)
    cluster.start()
    wait(cluster, 6)
    assert cluster.migration().window_open and cluster.migration().target == "h3", cluster.story()
    cluster.sent.clear()
    wait(cluster, 3)
    assert cluster.sent == []


def test_a_copy_that_could_not_be_brought_back_is_found_by_a_hard_reboot() -> None:
    cluster = Cluster(names=("h1", "h2"))
    fail(cluster, "h2.verify_disks", "h1.rename_back")
    cluster.start()
    cluster.run()
    assert cluster.migration().outcome == "error" and not cluster.hosts["h1"].running, cluster.story()
    lift(cluster)
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.REBOOT_HARD)
    cluster.run()
    cluster.settled("h1")


def test_nothing_that_was_half_started_is_left_behind() -> None:
    cluster = Cluster(names=("h1", "h2"))
    fail(cluster, "h2.release")
    cluster.start()
    cluster.run()
    assert cluster.migration().outcome == "error", cluster.story()
    cluster.settled("h1")
    assert len(cluster.rows(migrations_table)) == 1


def test_a_host_that_was_only_cut_off_stands_aside_before_the_server_runs_elsewhere() -> None:
    cluster = Cluster(names=("h1", "h2"))
    cluster.hosts["h1"].up = False
    cluster.tick(later=70)
    cluster.evacuate()
    wait(cluster, 2)
    assert cluster.migration().fence == "h1" and cluster.hosts["h1"].running, cluster.story()
    cluster.hosts["h1"].up = True
    cluster.run()
    assert cluster.migration().outcome == "completed", cluster.story()
    cluster.settled("h2")


def test_a_revert_without_a_copy_to_go_back_to_refuses_and_the_target_runs_on() -> None:
    cluster = moved()
    cluster.hosts["h1"].sealed.clear()
    cluster.verdict(Verdict.REVERT)
    cluster.drain()
    assert cluster.migration().window_open and "missing" in cluster.migration().reason, cluster.story()
    assert cluster.hosts["h2"].running


def test_a_channel_that_died_with_its_agent_is_opened_anew() -> None:
    cluster = Cluster()

    def strike(what: str) -> None:
        if what == "h1.open_channel":
            lift(cluster)
            raise AgentKilled

    cluster.fault = strike
    cluster.start()
    cluster.run()
    assert cluster.trace.count("h1.open_channel") == 2, cluster.story()


def test_a_disk_that_was_not_grown_before_its_agent_died_is_grown_by_the_next_one() -> None:
    cluster = Cluster()

    def strike(what: str) -> None:
        if what == "h2.resize_disks":
            lift(cluster)
            raise AgentKilled

    cluster.fault = strike
    cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)
    cluster.run()
    audit(cluster, at_rest=True)


def test_an_order_that_cannot_be_read_keeps_no_other_migration_waiting() -> None:
    cluster = Cluster()
    cluster.start()
    while "prepare" not in cluster.marks():
        cluster.step()
    poison = (
        update(journal_table).where(journal_table.c.step == "prepare").values(outstanding={"of": "another release"})
    )
    cluster.store.write_now(lambda tx: tx.execute(poison))
    cluster.queue.clear()
    cluster.time += 300
    due = cluster.store.read_now(timers.look, cluster.conf)
    (unreadable,) = due.unreadable
    assert unreadable[3] == "prepare" and not due.asks and not due.silent
    cluster.store.write_now(timers.note_asked, due.unreadable)
    assert not cluster.store.read_now(timers.look, cluster.conf).unreadable, (
        "it is told of now and then, not all the time"
    )


def test_a_host_that_claims_numbers_that_were_never_drawn_moves_nothing() -> None:
    cluster = Cluster()
    cluster.start()
    while not any(isinstance(message, Order) for message in cluster.queue):
        cluster.step()
    of = next(message for message in cluster.queue if isinstance(message, Order))
    before = cluster.server()
    named = (of.host, of.server, of.migration, of.segment, of.attempt, of.step, of.verb, of.number)
    cluster.deliver(StepReport(*named, Answer.STALE, {"epoch": before.epoch, "number": 500_000_000}))
    assert cluster.server().order_number == before.order_number + 1, "it is ordered anew, with the next number"
    cluster.run()
    assert cluster.migration().window_open, cluster.story()
