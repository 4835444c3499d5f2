"""Power cuts and cut cables, in the middle of moves of real guests."""

from __future__ import annotations

from threading import Event

import pytest

from tests.cloud import Cloud, Server, wait_for

pytestmark = pytest.mark.real

LOAD = "fill_mib=48\n"
SLOW = "60mbit"
"""A copy of the load takes about seven seconds at this rate, long enough to hit."""


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def copying(cloud: Cloud) -> Server:
    """A server whose disk is on its way from h1 to h2, for some seconds yet."""
    server = cloud.create(LOAD)
    cloud.lab.limit("h1", SLOW)
    server.migrate()
    server.at_step("copy_disks", "doing")
    Event().wait(1.0)
    return server


def test_a_source_that_loses_power_in_the_copy_comes_back_and_the_move_goes_on(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.host("h1").crash()
    cloud.lab.limit("h1", None)
    cloud.lab.host("h1").boot()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_target_that_loses_power_in_the_copy_leaves_the_guest_running_where_it_was(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.host("h2").crash()
    cloud.lab.limit("h1", None)
    server.wait_to_write("h1", boots=2)
    assert cloud.runners(server.id) == ["h1"], "the guest runs again while the target is still dark"
    cloud.lab.host("h2").boot()
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "error"
    assert "h2" in server.reason()
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_target_that_loses_power_in_the_undo_window_can_be_confirmed_and_started(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.wait_to_write("h2")
    server.remember()
    cloud.lab.host("h2").crash()
    cloud.lab.host("h2").boot()
    wait_for("the power cut to be noticed", lambda: server.show()["OS-EXT-STS:power_state"] == 4)
    assert server.show()["status"] == "VERIFY_RESIZE"
    server.confirm()
    server.wait("SHUTOFF")
    assert cloud.runners(server.id) == [], "nobody starts a guest that was not ordered to run"
    server.act("os-start")
    server.wait("ACTIVE")
    server.wait_to_write("h2", boots=2)
    server.assert_nothing_lost("h2")
    cloud.assert_tidy({server: "h2"})


def test_a_target_that_loses_power_in_the_undo_window_can_be_reverted(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    cloud.lab.host("h2").crash()
    cloud.lab.host("h2").boot()
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_host_that_loses_power_starts_its_guests_again_by_new_orders(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.lab.host("h1").crash()
    cloud.lab.host("h1").boot()
    server.wait_to_write("h1", boots=2)
    server.wait("ACTIVE")
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_cable_pulled_at_the_target_in_the_copy_is_noticed_and_the_guest_goes_back(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.link("h2", up=False)
    cloud.lab.limit("h1", None)
    server.wait_to_write("h1", boots=2)
    assert cloud.runners(server.id) == ["h1"], "the guest runs again while the cable is still out"
    cloud.lab.link("h2", up=True)
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "error"
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_cable_pulled_at_the_source_for_a_while_ends_by_itself(cloud: Cloud) -> None:
    server = copying(cloud)
    cloud.lab.link("h1", up=False)
    Event().wait(12.0)
    cloud.lab.link("h1", up=True)
    cloud.lab.limit("h1", None)
    server.wait("ACTIVE", "VERIFY_RESIZE")
    home = "h1" if server.show()["status"] == "ACTIVE" else "h2"
    if home == "h2":
        server.confirm()
    server.assert_nothing_lost(home)
    cloud.assert_tidy({server: home})
