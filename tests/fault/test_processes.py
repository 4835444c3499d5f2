"""Whimbrel's own processes are killed in the middle of a move: each is started again, and the move goes on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cloud import Cloud, wait_for
from tests.fault.midway import BALLAST, assert_error, assert_goes_on, assert_refused, incoming, mid_copy

pytestmark = pytest.mark.real


@pytest.mark.parametrize("role", ["api", "conductor"])
def test_a_control_process_is_away_while_the_copy_ends(cloud: Cloud, role: str) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.kill(role)
    if role == "api":
        wait_for("the guest at the target", lambda: cloud.runners(server.id) == ["h2"])
    else:
        wait_for("the copy", lambda: any(path.name == "received.json" for path in incoming(cloud, server)))
    cloud.lab.start(role)
    wait_for("the API", cloud.answers)
    assert_goes_on(cloud, server)


def test_a_move_waits_for_a_scheduler(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.lab.kill("scheduler")
    server.migrate()
    assert server.migration()["target"] is None
    cloud.lab.start("scheduler")
    assert_goes_on(cloud, server)


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_an_agent_is_killed_in_mid_copy(cloud: Cloud, host: str) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.kill("agent", host)
        cloud.lab.start("agent", host)
    assert_goes_on(cloud, server)


def test_the_source_agent_is_killed_while_the_guest_shuts_down(cloud: Cloud) -> None:
    server = cloud.create("acpi=ignore")
    server.migrate()
    server.at_step("stop_guest", "doing")
    cloud.lab.kill("agent", "h1")
    assert cloud.runners(server.id) == ["h1"]
    cloud.lab.start("agent", "h1")
    assert_goes_on(cloud, server)
    assert server.fact("stop_guest", "forced") is True


@pytest.mark.parametrize("way", ["forth", "back"])
def test_everything_is_killed_in_turn_all_the_way(cloud: Cloud, way: str) -> None:
    server = cloud.create(BALLAST)
    if way == "back":
        server.migrate()
        server.wait("VERIFY_RESIZE")
        server.wait_to_write("h2")
        server.ask_to_revert()
    else:
        cloud.lab.limit("h2", "64mbit")
        server.migrate()
    for role, host in 2 * [("conductor", None), ("agent", "h1"), ("conductor", None), ("agent", "h2")]:
        cloud.lab.kill(role, host)
        cloud.lab.start(role, host)
    cloud.lab.limit("h2", None)
    if way == "forth":
        assert_goes_on(cloud, server)
        return
    server.wait("ACTIVE")
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert server.migration()["outcome"] == "reverted"
    cloud.assert_tidy({server: "h1"})


def test_an_agent_that_hangs_and_wakes_up_late_does_no_harm(cloud: Cloud) -> None:
    server = cloud.create()
    agent = cloud.lab.running()["agent@h2"]
    assert agent is not None
    os.kill(agent, signal.SIGSTOP)
    server.migrate()
    server.wait("ACTIVE")
    assert_error(server, "Host h2 has not answered")
    os.kill(agent, signal.SIGCONT)
    wait_for("the debt to be paid", lambda: cloud.books()[1] == 0)
    assert_refused(cloud, server, "Host h2 has not answered")
