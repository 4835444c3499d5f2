"""Hosts and the broker lose their power in the middle of a move, and come back."""

from __future__ import annotations

import pytest

from tests.cloud import Cloud, wait_for
from tests.fault.midway import BALLAST, assert_back, assert_error, assert_goes_on, mid_copy
from tests.fault.test_guests import bridge_away, qemu_replaced
from whimbrel.ops import clock

pytestmark = pytest.mark.real


def test_the_broker_is_killed_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.kill("rabbitmq")
    cloud.lab.start("rabbitmq")
    assert_goes_on(cloud, server)


def test_the_source_loses_power_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.host("h1").crash()
    cloud.lab.host("h1").boot()
    assert_goes_on(cloud, server)


def test_the_target_loses_power_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.host("h2").crash()
    wait_for("the guest at the source", lambda: cloud.runners(server.id) == ["h1"])
    cloud.lab.host("h2").boot()
    assert_back(cloud, server, "h2")


def test_both_hosts_lose_power_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        for host in cloud.lab.hosts.values():
            host.crash()
    for host in cloud.lab.hosts.values():
        host.boot()
    assert_goes_on(cloud, server)


def test_the_target_loses_power_while_it_starts_the_guest(cloud: Cloud) -> None:
    server = cloud.create()
    with qemu_replaced(cloud, "h2", "sleep 15"):
        server.migrate()
        server.at_step("start_guest", "doing")
        cloud.lab.host("h2").crash()
        cloud.lab.host("h2").boot()
    assert_goes_on(cloud, server)


def test_the_target_loses_power_in_the_undo_window_and_the_user_goes_back(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    cloud.lab.host("h2").crash()
    cloud.lab.host("h2").boot()
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def test_a_guest_runs_again_after_its_host_has_lost_power(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.lab.host("h1").crash()
    cloud.lab.host("h1").boot()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    server.wait("ACTIVE")
    cloud.assert_tidy({server: "h1"})


def test_a_source_that_is_off_owes_what_the_user_confirmed(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    cloud.lab.host("h1").crash()
    server.confirm()
    assert server.steps()["retire_source"]["mark"] == "owed"
    cloud.lab.host("h1").boot()
    wait_for("the debt to be paid", lambda: cloud.books()[1] == 0)
    cloud.assert_tidy({server: "h2"})


def test_a_guest_runs_again_though_libvirtd_comes_up_late(cloud: Cloud) -> None:
    server = cloud.create()
    host = cloud.lab.host("h1")
    host.crash()
    host.power_on()
    host.kill("libvirtd")
    since = clock.now()
    host.start("agent")
    wait_for("the agent", lambda: cloud.heard_at("h1") > since + 2)
    host.start("libvirtd")
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")


def test_a_guest_runs_again_though_its_host_came_back_in_the_middle_of_a_move_that_failed(cloud: Cloud) -> None:
    server = cloud.create()
    source, target = cloud.lab.host("h1"), cloud.lab.host("h2")
    target.kill("agent")
    server.migrate()
    server.at_step("prepare", "doing")
    source.crash()
    since = clock.now()
    source.boot()
    wait_for("the source", lambda: cloud.heard_at("h1") > since)
    with bridge_away(cloud, "h2"):
        target.start("agent")
        server.wait_to_write("h1", boots=2)
    assert_error(server, "Host h2 has no bridge br-guests")
    server.wait("ACTIVE")
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})
