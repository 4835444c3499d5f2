"""The user reads why an attempt was given up, whatever has become of that cause since."""

from __future__ import annotations

from tests.protocol.cluster import Cluster
from whimbrel.migration.messages import Order


def test_a_host_that_answers_too_late_is_still_the_reason() -> None:
    cluster = Cluster(("h1", "h2"))
    cluster.start()
    while not (isinstance(order := cluster.queue[0], Order) and order.step == "verify_disks"):
        cluster.step()
    cluster.step()
    late = cluster.queue.popleft()
    cluster.tick(later=61.0)
    assert cluster.marks()["verify_disks"] == "lost", cluster.story()
    cluster.queue.appendleft(late)
    cluster.run()
    cluster.settled("h1")
    assert "Host h2 has not answered for 61 s" in str(cluster.migration().reason), cluster.story()
