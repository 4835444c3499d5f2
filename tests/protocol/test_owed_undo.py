"""An undo that became a debt is paid after the others were done, and still finds what it has to undo."""

from __future__ import annotations

from tests.protocol.cluster import Cluster
from whimbrel.domain.migration import Mark
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
