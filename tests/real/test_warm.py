"""Warm moves of real guests: the disks cross while the guest runs, and nothing of it stays on the source."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cloud import Cloud, Server, wait_for
from whimbrel.agent.disks.mapping import read_bitmaps
from whimbrel.lab.processes import wait_until

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def traces(cloud: Cloud, server: Server, host: str = "h1") -> list[str]:
    """Return whatever a copy of a running guest may have left on a host: checkpoints, bitmaps, sockets, scratch."""
    one = cloud.lab.host(host)
    found = one.exec(["virsh", "checkpoint-list", "--name", server.id], check=False).stdout.split()
    found += [name for disk in cloud.instances(host).glob(f"{server.id}*/disk-0") for name in read_bitmaps(disk)]
    run = Path("/run/whimbrel")
    return found + one.exec(["find", str(run), "-name", f"{server.id}*"], check=False).stdout.split()


def test_what_crosses_after_the_stop_does_not_depend_on_the_size_of_the_disk(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=60")
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    rounds = server.fact("precopy", "rounds")
    assert len(rounds) >= 2 and rounds[0]["bytes"] > 60 << 20
    assert server.fact("copy_disks", "bytes") < 8 << 20
    assert traces(cloud, server) == [] == traces(cloud, server, "h2")
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert traces(cloud, server) == []
    cloud.assert_tidy({server: "h1"})


def test_a_cancel_while_the_disks_cross_leaves_the_guest_as_it_was(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=12")
    cloud.lab.limit("h2", "16mbit")
    server.migrate()
    server.at_step("precopy", "doing")
    cloud.delete(f"/servers/{server.id}/migrations/{server.migration()['id']}")
    server.wait("ACTIVE")
    assert len(server.boots("h1")) == 1, "it was never stopped"
    assert traces(cloud, server) == []
    cloud.assert_tidy({server: "h1"})


def test_a_move_whose_agent_is_killed_while_the_disks_cross_is_taken_up_again(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=24")
    cloud.lab.limit("h2", "64mbit")
    server.migrate()
    server.at_step("precopy", "doing")
    incoming = cloud.instances("h2") / f"{server.id}.incoming-{server.migration()['id']}-1" / "disk-0"
    wait_for("half of it to be there", lambda: incoming.exists() and incoming.stat().st_blocks * 512 > 12 << 20)
    cloud.lab.kill("agent", "h1")
    cloud.lab.start("agent", "h1")
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    assert server.fact("precopy", "bytes") < 20 << 20, "what had arrived was not sent again"
    assert traces(cloud, server) == []
    server.confirm()
    cloud.assert_tidy({server: "h2"})


@pytest.mark.parametrize("live", [False, True])
def test_a_copy_is_bounded_and_hurried_on_while_it_runs(cloud: Cloud, live: bool) -> None:
    server = cloud.create("fill_mib=12")
    cloud.lab.limit("h2", "8mbit")
    server.migrate_live() if live else server.migrate()
    server.at_step("precopy", "doing")
    number = server.migration()["id"]
    cloud.limit(number, 128 << 10)
    server.cloud.post(f"/servers/{server.id}/migrations/{number}/action", {"force_complete": None})
    wait_for("the limit to hold", lambda: 0 < cloud.progress(number).get("rate", 0) < 200 << 10)
    cloud.lab.limit("h2", None)
    assert not wait_until(lambda: server.steps()["precopy"]["mark"] != "doing", 6.0), "the link alone has room for all"
    cloud.limit(number, None)
    if live:
        server.wait("ACTIVE")
        assert cloud.runners(server.id) == ["h2"]
    else:
        server.wait("VERIFY_RESIZE")
        server.assert_nothing_lost("h2")
    assert len(server.fact("precopy", "rounds")) == 1, "there was no second round"


def test_a_hosts_limit_is_read_again_while_a_copy_runs_and_a_faulty_file_changes_nothing(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=12")
    agent, config = cloud.lab.host("h1").find("agent"), cloud.lab.host("h1").dir / "agent.toml"
    assert agent is not None
    normal = config.read_text()
    assert "\n[agent]\n" in normal

    def reread(content: str) -> None:
        config.write_text(content)
        os.kill(agent, signal.SIGHUP)

    try:
        reread(normal.replace("\n[agent]\n", f"\n[agent]\ncopy_rate = {256 << 10}\n"))
        server.migrate()
        server.at_step("precopy", "doing")
        number = server.migration()["id"]
        wait_for("the limit to hold", lambda: 0 < cloud.progress(number).get("rate", 0) < 400 << 10)
        reread(normal.replace("\n[agent]\n", '\n[agent]\ncopy_rate = "fast"\n'))
        assert not wait_until(lambda: cloud.progress(number).get("rate", 0) > 400 << 10, 5.0)
        assert server.steps()["precopy"]["mark"] == "doing"
    finally:
        reread(normal)
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    assert cloud.lab.host("h1").find("agent") == agent
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_server_that_wants_to_be_moved_cold_is_stopped_first_and_the_row_says_so(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=12")
    server.stop_first()
    plan = cloud.plan(server, {"migrate": None})
    server.migrate()
    server.wait("VERIFY_RESIZE")
    row = server.steps()["precopy"]
    assert (row["mark"], row["reason"]) == ("skipped", "The request or the server's metadata say whimbrel:move=cold.")
    assert (plan["way"], plan["reason"]) == ("cold", row["reason"])
    assert server.fact("copy_disks", "bytes") > 12 << 20
    server.assert_nothing_lost("h2")
    server.confirm()
    cloud.assert_tidy({server: "h2"})
