"""Evacuations and proofs: a silent host is never taken for dead, and one that comes back finds its stale copy gone."""

from __future__ import annotations

import pytest

from tests.protocol.cluster import FOR_GOOD, AgentKilled, Cluster
from tests.protocol.faults import cut_at, fail
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Kind, Verb, Verdict, Witness
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.migration.messages import Order
from whimbrel.store.tables import debts, migrations


def dark(host: str = "h1", **conf: int) -> Cluster:
    """A cluster in which this host has lost its power."""
    cluster = Cluster(**conf)
    if host == "h1":
        cluster.cut(cluster.hosts[host], away=FOR_GOOD)
    return cluster


def wait(cluster: Cluster, looks: int = 4) -> None:
    """Let time pass until nothing more happens by itself."""
    for _ in range(looks):
        cluster.drain()
        cluster.tick(later=70)
    cluster.drain()


def running(cluster: Cluster) -> list[str]:
    return [host.name for host in cluster.hosts.values() if host.running]


@pytest.mark.parametrize("witness", Witness)
def test_an_evacuation_waits_for_a_proof_and_the_old_host_removes_its_stale_copy(witness: Witness) -> None:
    cluster = dark()
    cluster.evacuate()
    wait(cluster)
    assert cluster.migration().fence == "h1", cluster.story()
    assert running(cluster) == []
    cluster.prove("h1", witness)
    wait(cluster)
    assert cluster.migration().outcome == "completed", cluster.story()
    assert running(cluster) == ["h2"]
    assert [(row.host, row.step) for row in cluster.rows(debts)] == [("h1", "remove_stale")]
    cluster.boot(cluster.hosts["h1"])
    assert cluster.hosts["h1"].live, "nothing goes before the host was told that the server runs elsewhere"
    cluster.run()
    cluster.settled("h2")


def test_a_silent_host_that_answers_after_all_is_believed_itself() -> None:
    cluster = dark()
    cluster.evacuate()
    wait(cluster)
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    assert cluster.migration().outcome == "completed", cluster.story()
    cluster.settled("h2")


def test_an_old_order_that_waited_for_a_dead_host_starts_nothing_twice() -> None:
    cluster = dark()
    old = _a_start_order(cluster)
    cluster.evacuate()
    wait(cluster)
    cluster.prove("h1")
    wait(cluster)
    assert running(cluster) == ["h2"]
    cluster.boot(cluster.hosts["h1"])
    cluster.queue.appendleft(old)  # it has waited in the host's queue, so it comes first, and once more afterwards
    cluster.queue.append(old)
    cluster.run()
    cluster.settled("h2")


def _a_start_order(cluster: Cluster):  # type: ignore[no-untyped-def]
    """The order of a user who started the server while its host was already dark."""
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.START)
    cluster.step()
    return next(message for message in cluster.queue if getattr(message, "step", "") == "set_power")


def test_a_proof_is_refused_for_a_host_that_speaks_and_for_another_boot() -> None:
    cluster = Cluster()
    with pytest.raises(Conflict, match="was heard"):
        cluster.prove("h1")
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    cluster.time += 100
    cluster.prove("h1")
    cluster.evacuate()
    cluster.boot(cluster.hosts["h1"])
    cluster.cut(cluster.hosts["h1"], away=FOR_GOOD)
    wait(cluster)
    assert cluster.migration().fence == "h1", "the proof was about the boot before, and the host has spoken since"


def test_a_cancelled_evacuation_leaves_the_server_to_its_host() -> None:
    cluster = dark()
    cluster.evacuate()
    wait(cluster)
    cluster.cancel()
    wait(cluster)
    assert cluster.migration().outcome == "cancelled", cluster.story()
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h1")


def test_a_guest_that_is_brought_back_runs_though_its_agent_died_in_the_middle_of_that() -> None:
    cluster, late = Cluster(), list[Order]()
    h1 = cluster.hosts["h1"]
    h1.up = False  # its link is cut; the guest runs on, and orders wait in its queue
    cluster.evacuate()
    for step in ("fence_source", "restart"):
        while not any(order.step == step or order.verb is Verb.UNDO for order in late[-1:]):
            late += [message for message in cluster.queue if isinstance(message, Order) and message not in late]
            cluster.turn()
        if step == "fence_source":
            wait(cluster)
            cluster.cancel()
    wait(cluster)
    assert cluster.migration().outcome == "cancelled", cluster.story()

    def strike(what: str) -> None:
        if what == "h1.granted":
            cluster.fault = lambda _: None
            raise AgentKilled

    h1.up, cluster.fault = True, strike
    for order in late:
        cluster.deliver(order)
    assert not h1.running and late[-1].verb is Verb.UNDO, cluster.story()
    cluster.run()
    cluster.settled("h1")


def test_a_guest_that_an_evacuated_move_had_sealed_runs_again_when_no_host_could_take_it() -> None:
    cluster = Cluster()
    cut_at(cluster, "h1.renamed", away=FOR_GOOD)
    cluster.start()
    wait(cluster)
    assert cluster.migration().fence == "h1", cluster.story()
    fail(cluster, "h2.prepare", "h3.prepare")
    cluster.evacuate()
    wait(cluster)
    assert cluster.migration().outcome == "error" and cluster.server().host == "h1", cluster.story()
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h1")


def test_a_guest_is_started_again_though_its_host_lost_its_power_twice() -> None:
    cluster = Cluster()
    h1 = cluster.hosts["h1"]
    cluster.cut(h1)
    while not any(isinstance(message, Order) and message.step == "set_power" for message in cluster.queue):
        cluster.turn()
    cluster.cut(h1, away=FOR_GOOD)
    wait(cluster)
    assert [row.outcome for row in cluster.rows(migrations)] == ["error"], cluster.story()
    cluster.boot(h1)
    cluster.run()
    cluster.settled("h1")


@pytest.mark.parametrize("step", ["prepare", "create_paused"])
def test_an_evacuation_that_no_host_can_take_leaves_the_server_to_its_host(step: str) -> None:
    cluster = dark()
    fail(cluster, f"h2.{step}", f"h3.{step}")
    cluster.evacuate()
    wait(cluster)
    if step != "prepare":
        cluster.prove("h1")
        wait(cluster, 8)
    assert cluster.migration().outcome == "error", cluster.story()
    assert cluster.server().host == "h1"
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h1")


def test_a_server_that_is_to_stay_stopped_is_evacuated_and_not_started() -> None:
    cluster = dark()
    cluster.evacuate(leave_stopped=True)
    wait(cluster)
    cluster.prove("h1")
    wait(cluster)
    assert running(cluster) == [] and cluster.server().host == "h2", cluster.story()
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h2", running=False)


def test_recovery_outranks_a_move_that_is_stuck_on_the_dead_source() -> None:
    cluster = dark("none")
    cut_at(cluster, "h1.copy_disks", away=FOR_GOOD)
    cluster.start()
    wait(cluster)
    assert cluster.migration().fence == "h1"
    cluster.evacuate("h3")
    wait(cluster)
    cluster.prove("h1")
    wait(cluster)
    assert running(cluster) == ["h3"], cluster.story()
    cluster.boot(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h3")


def test_a_debt_from_before_never_removes_a_server_that_has_come_back() -> None:
    cluster = dark()
    cluster.evacuate("h2")
    wait(cluster)
    cluster.prove("h1")
    wait(cluster)
    cluster.boot(cluster.hosts["h1"])
    cluster.drain()
    host = cluster.hosts["h1"]
    host.live = host.defined = None  # somebody has moved the stale copy out of the way
    cluster.start(forced_host="h1")
    cluster.drain()
    assert cluster.migration().window_open and running(cluster) == ["h1"], cluster.story()
    assert [row.paid_at for row in cluster.rows(debts)] == [None], "it was not paid before the server came back"
    wait(cluster)
    assert running(cluster) == ["h1"], cluster.story()
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h1")


def test_a_server_with_a_whole_copy_elsewhere_is_not_made_anew_from_its_image() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    cluster.cut(cluster.hosts["h2"], away=FOR_GOOD)
    with pytest.raises(Conflict, match="revert migration"):
        cluster.evacuate()
    cluster.verdict(Verdict.REVERT)
    wait(cluster)
    assert cluster.migration().fence == "h2", cluster.story()
    cluster.prove("h2", Witness.LEASE)
    wait(cluster)
    assert running(cluster) == ["h1"], cluster.story()
    cluster.boot(cluster.hosts["h2"])
    cluster.run()
    cluster.settled("h1")


def test_what_a_silent_target_may_have_written_is_given_up_only_by_an_administrator() -> None:
    cluster = Cluster()
    cut_at(cluster, "h2.create_paused", away=FOR_GOOD)
    cluster.start()
    wait(cluster)
    assert cluster.migration().fence == "h2", cluster.story()
    cluster.prove("h2", Witness.FENCE_AGENT)
    wait(cluster)
    assert cluster.migration().fence == "h2", "a device knows nothing of what was written there"
    cluster.prove("h2", Witness.ADMINISTRATOR)
    wait(cluster, 8)
    assert running(cluster) in (["h1"], ["h3"]), cluster.story()
    cluster.boot(cluster.hosts["h2"])
    cluster.run()
    assert running(cluster) in (["h1"], ["h3"]), cluster.story()
