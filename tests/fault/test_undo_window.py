"""What happens to a guest while its user thinks: the undo window stays open, and both ways out of it still work."""

from __future__ import annotations

import pytest

from tests.cloud import Cloud, Server, wait_for

pytestmark = pytest.mark.real


def moved(cloud: Cloud) -> Server:
    """A server that was moved to h2, runs there and waits for its verdict."""
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.wait_to_write("h2")
    return server


def test_a_target_that_lost_power_is_confirmed_and_its_guest_started_by_the_user(cloud: Cloud) -> None:
    server = moved(cloud)
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


def test_a_guest_that_crashes_stays_in_the_window_and_can_be_taken_back(cloud: Cloud) -> None:
    server = moved(cloud)
    cloud.lab.kill("qemu", "h2", server=server.id)
    wait_for("the crash to be noticed", lambda: server.show()["OS-EXT-STS:power_state"] == 4)
    assert server.show()["status"] == "VERIFY_RESIZE"
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_revert_waits_for_the_word_of_a_target_that_is_off_and_says_so(cloud: Cloud) -> None:
    server = moved(cloud)
    cloud.lab.host("h2").crash()
    server.ask_to_revert()
    shown = server.wait("ERROR")
    assert "needs the word of host h2" in shown["fault"]["message"]
    assert cloud.runners(server.id) == [], "nobody knows whether the target's disk was written to since"
    cloud.lab.host("h2").boot()
    server.wait("ACTIVE")
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})
