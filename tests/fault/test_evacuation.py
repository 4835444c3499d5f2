"""A host is lost, its servers are evacuated; it comes back, and there is one runner and no stale copy. Cancels too."""

from __future__ import annotations

import pytest

from tests.cloud import Cloud, Server, wait_for
from tests.fault.midway import BALLAST, mid_copy
from whimbrel.ops import clock

pytestmark = pytest.mark.real


def evacuate(cloud: Cloud, server: Server) -> None:
    """Ask for it as soon as the host counts as down."""
    wait_for("h1 to be down", lambda: "h1" not in cloud.up())
    server.act("evacuate", {"host": "h2"}, "2.94")  # from 2.95 on it would stay stopped


def assert_made_anew(cloud: Cloud, server: Server) -> None:
    """It runs on h2 from its image, and nowhere else."""
    server.wait("ACTIVE")
    boot = server.wait_to_write("h2")
    assert boot.found["boot"] == 1 and boot.found["total"] == 0, "made anew from its image, as was said beforehand"
    assert cloud.runners(server.id) == ["h2"]


def test_a_dead_hosts_server_waits_for_the_proof_and_the_host_that_comes_back_removes_its_copy(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.lab.host("h1").crash()
    evacuate(cloud, server)
    wait_for("the missing proof to be named", lambda: server.migration()["needs_fence"])
    assert server.migration()["fence"] == "h1"
    assert cloud.runners(server.id) == []
    cloud.force_down("h1", down=True)
    assert_made_anew(cloud, server)
    assert cloud.books()[1] == 1, "the dead host owes the removal of its copy"
    cloud.force_down("h1", down=False)
    cloud.lab.host("h1").boot()
    wait_for("the debt to be paid", lambda: cloud.books()[1] == 0)
    cloud.assert_tidy({server: "h2"})


def test_a_host_that_is_cut_off_stops_its_guests_by_itself_and_its_lease_is_the_proof(cloud: Cloud) -> None:
    with cloud.settings("conductor", lease_seconds=5.0), cloud.settings("agent", "h1", lease=True):
        cloud.lab.host("h1").start("keeper")
        server = cloud.create()
        wait_for("a lease", (cloud.lab.host("h1").dir / "run/whimbrel/lease.json").exists)
        cloud.lab.link("h1", up=False)
        evacuate(cloud, server)
        two = 0
        end = clock.monotonic() + 90
        while "h2" not in (runners := cloud.runners(server.id)):
            assert clock.monotonic() < end, server.told()
            two = max(two, len(runners))
        assert two <= 1 and cloud.runners(server.id) == ["h2"]
        assert server.fact("fence_source", "proof") == "lease"
        assert_made_anew(cloud, server)
        cloud.lab.link("h1", up=True)
        wait_for("the debt to be paid", lambda: cloud.books()[1] == 0)
        cloud.assert_tidy({server: "h2"})
        cloud.lab.host("h1").kill("keeper")


@pytest.mark.parametrize("asked", ["cancel", "delete"])
def test_a_move_is_turned_back_in_mid_copy_and_nothing_is_left(cloud: Cloud, asked: str) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        began = clock.monotonic()
        if asked == "cancel":
            cloud.delete(f"/servers/{server.id}/migrations/{server.migration()['id']}")
            server.wait("ACTIVE")
        else:
            server.delete()
        seconds = clock.monotonic() - began
    if asked == "cancel":
        assert server.migration()["outcome"] == "cancelled"
        server.wait_to_write("h1", boots=2)
        server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"} if asked == "cancel" else {})
    assert seconds < 20, "five seconds are promised of a machine that is not busy with tests"
