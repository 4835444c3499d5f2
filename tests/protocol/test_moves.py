"""The tables, driven by the real conductor: the straight way, a failure at each step, a crash at each boundary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.protocol.audit import audit
from tests.protocol.cluster import FOR_GOOD, LARGE, Cluster
from tests.protocol.endings import ends_well
from tests.protocol.explore import explorer
from tests.protocol.faults import Fault, cut_at, fail, lift
from tests.protocol.scenarios import STORIES, Scenario
from whimbrel.domain.errors import Invalid
from whimbrel.domain.migration import Answer, Kind, Mark, Verb, Verdict
from whimbrel.migration import protocols
from whimbrel.migration.messages import Order, StepReport
from whimbrel.store.tables import claims, debts


def test_a_cold_migration_is_confirmed() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    assert cluster.migration().window_open, cluster.story()
    assert cluster.hosts["h1"].sealed, "the source keeps its copy until the verdict"
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    assert cluster.migration().outcome == "confirmed", cluster.story()
    cluster.settled("h2")


def test_a_cold_migration_is_reverted() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    cluster.verdict(Verdict.REVERT)
    cluster.run()
    assert cluster.migration().outcome == "reverted", cluster.story()
    cluster.settled("h1")


def test_a_resize_changes_the_flavor_and_a_revert_changes_it_back() -> None:
    cluster = Cluster()
    cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)
    cluster.run()
    assert cluster.server().flavor["id"] == "large"
    cluster.verdict(Verdict.REVERT)
    cluster.run()
    cluster.settled("h1")
    assert cluster.server().flavor["id"] == "small"


def test_a_resize_on_the_same_host_keeps_two_copies_apart() -> None:
    for verdict in (Verdict.CONFIRM, Verdict.REVERT):
        cluster = Cluster(names=("h1",))
        cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)
        cluster.run()
        assert cluster.migration().window_open, cluster.story()
        assert cluster.hosts["h1"].sealed and cluster.hosts["h1"].live
        cluster.verdict(verdict)
        cluster.run()
        cluster.settled("h1")


BEFORE_HAND_OVER = ["prepare", "open_channel", "copy_disks", "verify_disks", "create_paused"]


@pytest.mark.parametrize("step", BEFORE_HAND_OVER)
def test_a_step_that_fails_everywhere_leaves_the_guest_where_it_was(step: str) -> None:
    cluster = Cluster()
    fail(cluster, *(f"{name}.{step}" for name in cluster.hosts if (name, step) != ("h1", "create_paused")))
    cluster.start()
    cluster.run()
    assert cluster.migration().outcome == "error", cluster.story()
    assert cluster.migration().reason, cluster.story()
    cluster.settled("h1")


@pytest.mark.parametrize("step", ["prepare", "verify_disks", "create_paused"])
def test_a_target_that_fails_is_followed_by_the_next_one(step: str) -> None:
    cluster = Cluster()
    fail(cluster, f"h2.{step}")
    cluster.start()
    cluster.run()
    assert cluster.migration().target == "h3", cluster.story()
    assert cluster.migration().attempt == 2
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h3")


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_power_cut_at_any_boundary_ends_with_one_whole_running_guest(story: Scenario) -> None:
    walk = explorer(story)
    assert len(walk.plain.boundaries) > 70
    for _ in walk.courses(Fault.POWER_CUT):
        ends_well(story, walk.cluster, ill=story.fragile)


def test_a_source_that_dies_in_the_copy_is_waited_for_and_named() -> None:
    cluster = Cluster()
    cut_at(cluster, "h1.copy_disks", away=FOR_GOOD)
    cluster.start()
    for _ in range(4):
        cluster.drain()
        cluster.tick(later=70)
    assert cluster.migration().fence == "h1", cluster.story()
    assert cluster.migration().open
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    assert not cluster.migration().open or cluster.migration().window_open, cluster.story()
    assert [h.name for h in cluster.hosts.values() if h.running], cluster.story()


def test_a_target_that_dies_for_good_leaves_a_debt_and_its_disk_claim() -> None:
    cluster = Cluster(names=("h1", "h2"))
    cut_at(cluster, "h1.copy_disks", away=FOR_GOOD, host="h2")
    cluster.start()
    cluster.drain()
    for _ in range(6):
        cluster.tick(later=70)
        cluster.drain()
    assert cluster.migration().outcome == "error", cluster.story()
    assert cluster.hosts["h1"].running
    assert [row.host for row in cluster.rows(debts)] == ["h2"]
    cluster.boot(cluster.hosts["h2"])
    cluster.run()
    assert all(row.paid_at for row in cluster.rows(debts)), cluster.story()
    cluster.settled("h1")


def test_a_revert_refuses_when_the_source_is_away_and_the_target_runs_on() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.verdict(Verdict.REVERT)
    cluster.drain()
    cluster.tick(later=70)
    cluster.drain()
    assert cluster.migration().window_open and cluster.migration().verdict is None, cluster.story()
    assert cluster.hosts["h2"].running
    cluster.verdict(Verdict.CONFIRM)
    cluster.drain()
    cluster.tick(later=70)
    cluster.drain()
    assert cluster.migration().outcome == "confirmed", "confirming does not wait for a source that is away"
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h2")


@pytest.mark.parametrize("after", range(0, 24, 2))
def test_a_delete_at_any_moment_leaves_nothing(after: int) -> None:
    cluster = Cluster()
    cluster.start()
    for _ in range(after):
        if cluster.queue:
            cluster.step()
    cluster.delete()
    cluster.run()
    assert cluster.server().deleted_at is not None, cluster.story()
    audit(cluster, at_rest=True)


def test_lost_messages_are_asked_about_and_sent_again() -> None:
    for lost in range(20):
        cluster = Cluster()
        cluster.start()
        delivered = 0
        while cluster.queue:
            if delivered == lost + 1:
                cluster.queue.popleft()
            else:
                cluster.step()
            delivered += 1
        cluster.run()
        assert cluster.migration().window_open, f"lost {lost}\n{cluster.story()}"


def test_every_message_twice_changes_nothing() -> None:
    cluster = Cluster()
    cluster.start()
    seen: set[int] = set()
    while cluster.queue:
        message = cluster.queue[0]
        if id(message) not in seen:
            seen.add(id(message))
            cluster.queue.append(message)
        cluster.step()
    cluster.run()
    assert cluster.migration().window_open, cluster.story()
    assert cluster.marks()["start_guest"] == Mark.DONE
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h2")


def test_an_undo_window_that_has_run_out_confirms_itself() -> None:
    cluster = Cluster(confirm_window=300)
    cluster.start()
    cluster.run()
    cluster.tick(later=200)
    assert cluster.migration().window_open
    cluster.tick(later=101)
    cluster.run()
    assert cluster.migration().outcome == "confirmed", cluster.story()
    cluster.settled("h2")


def test_a_promise_is_on_the_disk_before_the_world_is_changed() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    trace = cluster.trace
    assert trace.index("h1.promise") < trace.index("h1.shut_down"), "sealed before it is stopped"
    assert trace.index("h2.grant") < trace.index("h2.create_paused"), "granted before it is made"
    assert trace.index("h2.released") < trace.index("h2.resume"), "released before it is let run"


def test_a_report_is_believed_only_from_the_host_and_for_the_order_that_the_journal_names() -> None:
    cluster = Cluster()
    cluster.start()
    while cluster.marks().get("copy_disks") != Mark.DOING:
        cluster.step()
    (order,) = [message for message in cluster.queue if isinstance(message, Order)]
    true = StepReport(
        "h1", order.server, order.migration, 0, order.attempt, "copy_disks", Verb.DO, order.number, Answer.DONE
    )
    for forged in (
        replace(true, host="h2"),
        replace(true, number=order.number - 1),
        replace(true, verb=Verb.UNDO),
        replace(true, step="start_guest"),
        replace(true, segment=1),
        replace(true, migration=99),
    ):
        cluster.deliver(forged)
        assert cluster.marks()["copy_disks"] == Mark.DOING, forged
    cluster.run()
    assert cluster.migration().window_open, cluster.story()


def test_each_turn_of_the_runner_raises_the_epoch() -> None:
    cluster = Cluster(names=("h1", "h2"))
    fail(cluster, "h2.verify_disks")
    cluster.start()
    cluster.run()
    assert cluster.server().epoch == 2, "unsealing the source is a turn"
    lift(cluster)
    cluster.start()
    cluster.run()
    assert cluster.server().epoch == 3, "the hand-over is a turn"
    cluster.verdict(Verdict.REVERT)
    cluster.run()
    assert cluster.server().epoch == 4, "taking the server back is a turn"


def test_a_debt_keeps_its_room_and_is_collected_only_when_nothing_runs_there() -> None:
    cluster = Cluster(names=("h1", "h2"))
    cut_at(cluster, "h1.copy_disks", away=FOR_GOOD, host="h2")
    cluster.start()
    cluster.drain()
    while cluster.migration().open:
        cluster.tick(later=70)
        cluster.drain()
    (owed,) = [row for row in cluster.rows(claims) if row.host == "h2"]
    assert (owed.vcpus, owed.ram_mb, owed.disk_gb) == (0, 0, 1), "the files may still be there"
    cluster.boot(cluster.hosts["h2"])
    cluster.start()
    while cluster.marks().get("prepare") != Mark.DOING or cluster.migration().id == 1:
        cluster.step()
    cluster.tick()
    debts_sent = [m for m in cluster.queue if isinstance(m, Order) and m.migration == 1]
    assert debts_sent == [], "an order for the debt would end the step that runs"
    cluster.run()
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h2")


@pytest.mark.parametrize("after", range(24))
def test_a_cancel_before_the_hand_over_leaves_the_guest_where_it_was(after: int) -> None:
    cluster = Cluster()
    cluster.start()
    for _ in range(after):
        if cluster.queue:
            cluster.step()
    if "hand_over" in cluster.marks():
        with pytest.raises(Invalid, match=r"handed over|Revert it"):
            cluster.cancel()
        cluster.run()
        assert cluster.migration().window_open, cluster.story()
        return
    cluster.cancel()
    cluster.cancel()
    cluster.run()
    assert cluster.migration().outcome == "cancelled", cluster.story()
    cluster.settled("h1")


def test_a_revert_that_is_cancelled_before_it_turned_leaves_the_guest_at_the_target() -> None:
    for after in range(1, 6):
        cluster = Cluster()
        cluster.start()
        cluster.run()
        cluster.verdict(Verdict.REVERT)
        for _ in range(after):
            cluster.step()
        assert cluster.marks()["check_source"]
        if "take_back" in cluster.marks():
            break
        cluster.cancel()
        cluster.run()
        assert cluster.migration().window_open and cluster.migration().verdict is None, cluster.story()
        assert cluster.hosts["h2"].running, cluster.story()
        cluster.verdict(Verdict.CONFIRM)
        cluster.run()
        cluster.settled("h2")
    assert after > 2, "the revert was cancelled at its first two steps"


def test_what_only_goes_forward_cannot_be_cancelled_and_says_so() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    with pytest.raises(Invalid, match="Revert it to go back"):
        cluster.cancel()
    cluster.verdict(Verdict.CONFIRM)
    with pytest.raises(Invalid, match="closed by a confirm"):
        cluster.cancel()
    cluster.run()
    with pytest.raises(Invalid, match="has ended"):
        cluster.cancel()
