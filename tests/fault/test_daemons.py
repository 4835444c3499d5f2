"""What the agents and the conductor stand on goes away in the middle of moves of real guests: broker, libvirtd, QEMU."""

from __future__ import annotations

import pytest

from tests.cloud import Cloud, wait_for
from tests.fault.test_power_and_links import copying

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def test_a_broker_that_is_killed_in_the_copy_delays_nothing_but_the_news(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.kill("rabbitmq")
    cloud.lab.start("rabbitmq")
    cloud.lab.limit("h1", None)
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_libvirtd_that_is_killed_at_the_source_in_the_copy_is_not_missed(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.kill("libvirtd", "h1")
    cloud.lab.limit("h1", None)
    server.wait("VERIFY_RESIZE")
    cloud.lab.start("libvirtd", "h1")
    server.assert_nothing_lost("h2")
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_libvirtd_that_is_away_at_the_target_is_waited_for(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.kill("libvirtd", "h2")
    cloud.lab.limit("h1", None)
    server.at_step("verify_disks", "done")
    cloud.lab.start("libvirtd", "h2")
    server.wait("VERIFY_RESIZE", "ACTIVE")
    home = "h1" if server.show()["status"] == "ACTIVE" else "h2"
    if home == "h2":
        server.confirm()
    server.assert_nothing_lost(home)
    cloud.assert_tidy({server: home})


def test_a_target_that_cannot_start_the_guest_gives_it_back(cloud: Cloud) -> None:
    server = cloud.create()
    target = cloud.lab.host("h2")
    target.exec(["mount", "--bind", "/bin/false", "/usr/bin/qemu-system-x86_64"])
    try:
        server.migrate()
        wait_for("the migration to end", lambda: server.migration()["outcome"])
    finally:
        target.exec(["umount", "/usr/bin/qemu-system-x86_64"])
    assert server.migration()["outcome"] == "error"
    assert server.steps()["start_guest"]["mark"] == "undone", server.told()
    assert server.reason()
    server.wait("ACTIVE")
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_guest_that_crashes_in_the_undo_window_stays_in_it(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.wait_to_write("h2")
    cloud.lab.kill("qemu", "h2", server=server.id)
    wait_for("the crash to be noticed", lambda: server.show()["OS-EXT-STS:power_state"] == 4)
    assert server.show()["status"] == "VERIFY_RESIZE"
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})
