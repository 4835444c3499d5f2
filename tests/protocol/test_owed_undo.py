"""What became a debt is paid after others were done, and still finds what it has to do."""

from __future__ import annotations

import pytest

from tests.protocol.cluster import Cluster
from tests.protocol.faults import fail, lift
from whimbrel.domain.migration import Kind, Mark, Verdict
from whimbrel.migration import protocols
from whimbrel.migration.messages import Order


def test_a_definition_whose_undo_is_owed_is_forgotten_though_its_files_went_first() -> None:
    cluster = Cluster(("h1", "h2"))
    cluster.start()
    while not (isinstance(order := cluster.queue[0], Order) and order.step == "define_guest"):
        cluster.step()
    cluster.step()
    cluster.queue.clear()  # what the target reports is lost, and for a while it hears nothing either
    target = cluster.hosts["h2"]
    assert target.defined
    target.up = False
    while cluster.marks().get("define_guest") != Mark.UNDONE:
        cluster.queue.clear()
        cluster.tick(later=21.0)
    target.up = True
    cluster.run()
    cluster.tick()
    cluster.run()
    cluster.settled("h1")
    assert not target.defined, cluster.story()


@pytest.mark.parametrize("verdict", [Verdict.CONFIRM, Verdict.REVERT])
def test_a_verdict_comes_before_the_source_has_put_aside_what_was_suspended(verdict: Verdict) -> None:
    cluster = Cluster(("h1", "h2"))
    fail(cluster, "h1.rename")
    cluster.start(Kind.MIGRATION, protocols.SUSPENDED)
    cluster.drain()
    while not cluster.migration().window_open:
        cluster.tick()
        cluster.drain()
    source = cluster.hosts["h1"]
    assert cluster.marks()["put_aside"] == Mark.OWED and source.live and not source.sealed
    lift(cluster)
    cluster.verdict(verdict)
    cluster.run()
    cluster.settled("h2" if verdict is Verdict.CONFIRM else "h1")
    assert not source.sealed and bool(source.live) is (verdict is Verdict.REVERT), cluster.story()
