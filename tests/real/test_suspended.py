"""Suspended moves of real guests: held while their memory crosses, never booted anew, and with a verdict at the end."""

from __future__ import annotations

import pytest

from tests.cloud import Cloud, Server, wait_for
from tests.real.test_live import goes_on, newest, records, verify_at_next_boot
from tests.real.test_story import identity
from tests.real.test_warm import traces

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def suspend(server: Server) -> None:
    """Ask for a move in which the guest is held."""
    server.act("migrate", {"whimbrel:move": "suspended"}, version="2.56")


def moved(cloud: Cloud, server: Server, before: tuple[int, int]) -> None:
    """The guest goes on at h2 in the boot that it was in, and h1 keeps its copy as it keeps one that was stopped."""
    server.wait("VERIFY_RESIZE")
    first = wait_for("records at the target", lambda: records(server, "h2"))[0]
    assert first[0] > before[0] and first[1] > before[1], "it is the same boot"
    goes_on(server, "h2")
    assert cloud.runners(server.id) == ["h2"] and traces(cloud, server, "h1") == [] == traces(cloud, server, "h2")
    assert len({path.parent.name for path in server.copies() if ".sealed-" in path.parent.name}) == 1
    assert server.id not in cloud.lab.host("h1").exec(["virsh", "list", "--all", "--uuid"]).stdout


def test_a_guest_moves_suspended_and_is_confirmed(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=24\ndirty_kib=1000")
    definition, before = identity(cloud, server, "h1"), newest(server, "h1")
    suspend(server)
    moved(cloud, server, before)
    numbers = [number for number, _ in records(server, "h2")]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert server.fact("move_memory", "bytes") < 8 << 20, "the disks had crossed before"
    server.confirm()
    cloud.assert_tidy({server: "h2"})
    assert identity(cloud, server, "h2") == definition and server.migration()["outcome"] == "confirmed"
    verify_at_next_boot(server, "h2")


def test_a_guest_that_was_suspended_is_reverted_to_its_disks_as_they_were(cloud: Cloud) -> None:
    """Its memory has moved on, so it boots at the source, as after a power cut in the moment of the move."""
    server = cloud.create()
    before = newest(server, "h1")
    suspend(server)
    moved(cloud, server, before)
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert server.promised >= before[0] and server.migration()["outcome"] == "reverted"
    cloud.assert_tidy({server: "h1"})


@pytest.mark.parametrize("lost", ["agent", "libvirtd"])
def test_a_target_that_is_lost_while_the_guest_is_held_gives_it_back_as_it_was(cloud: Cloud, lost: str) -> None:
    server = cloud.create()
    cloud.lab.limit("h2", "40mbit")
    suspend(server)
    server.at_step("move_memory", "doing")
    wait_for(
        "the guest to be held",
        lambda: cloud.lab.host("h1").exec(["virsh", "domstate", server.id]).stdout.strip() == "paused",
    )
    cloud.lab.kill(lost, "h2")
    cloud.lab.start(lost, "h2")
    cloud.lab.limit("h2", None)
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "error", server.told()
    goes_on(server, "h1")
    cloud.assert_tidy({server: "h1"})
    assert len(server.boots("h1")) == 1
    verify_at_next_boot(server, "h1")
