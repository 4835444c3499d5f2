"""Live moves of real guests: they go on where they were held, and whatever fails on the way leaves them running."""

from __future__ import annotations

import re

import pytest

from tests.cloud import Cloud, Server, boots_of, wait_for
from tests.real.test_warm import traces

pytestmark = pytest.mark.real

WRITTEN = re.compile(r"WRITER seq=(\d+) mono_ms=(\d+)")


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def records(server: Server, host: str) -> list[tuple[int, int]]:
    """Return what the guest says on a host's console that it wrote: (number, milliseconds since its boot)."""
    return [(int(number), int(mono)) for number, mono in WRITTEN.findall(server.console(host))]


def newest(server: Server, host: str) -> tuple[int, int]:
    """Return the last record on a host's console, once there is one."""
    return wait_for("a record", lambda: records(server, host))[-1]  # type: ignore[no-any-return]


def goes_on(server: Server, host: str) -> None:
    """The guest writes on this host after now, in the boot that it was in."""
    number, mono = newest(server, host)
    wait_for("the next record", lambda: newest(server, host)[0] > number)
    assert newest(server, host)[1] > mono


def verify_at_next_boot(server: Server, host: str) -> None:
    """Let the guest read its disk back: it does so when it boots."""
    server.promised = newest(server, host)[0]
    boots = len(server.boots(host))
    server.act("reboot", {"type": "SOFT"})
    server.wait("ACTIVE")
    server.wait_to_write(host, boots + 1)
    server.assert_nothing_lost(host)


@pytest.mark.parametrize("memory", ["running", "held"])
def test_a_guest_moves_while_it_runs_and_back_again(cloud: Cloud, memory: str) -> None:
    with cloud.settings("agent", "h1", live_memory=memory), cloud.settings("agent", "h2", live_memory=memory):
        _there_and_back(cloud, taken_at_once=memory == "held")


def _there_and_back(cloud: Cloud, *, taken_at_once: bool) -> None:
    server = cloud.create("fill_mib=24\ndirty_kib=1000")
    for source, target in (("h1", "h2"), ("h2", "h1")):
        before = newest(server, source)
        server.migrate_live()
        assert server.show()["status"] == "MIGRATING"
        server.wait("ACTIVE")
        assert server.migration()["outcome"] == "completed"
        wait_for("records at the target", lambda target=target: records(server, target))
        first = records(server, target)[0]
        assert first[0] > before[0] and first[1] > before[1], "it is the same boot"
        numbers = [number for number, _ in records(server, target)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert server.fact("move_memory", "bytes") < 8 << 20, "the disks had crossed before"
        assert traces(cloud, server, source) == [] == traces(cloud, server, target)
        goes_on(server, target)
        cloud.assert_tidy({server: target})
        running, kept = (described(cloud, server, target, *flags) for flags in ((), ("--inactive",)))
        assert ("<allocation mode='immediate'/>" in running) is taken_at_once and "memoryBacking" not in kept
    verify_at_next_boot(server, "h1")


def described(cloud: Cloud, server: Server, host: str, *flags: str) -> str:
    """Return the guest's definition on a host: that of its process, or with `--inactive` the kept one."""
    return cloud.lab.host(host).exec(["virsh", "dumpxml", *flags, server.id]).stdout


def listening(cloud: Cloud, host: str) -> set[tuple[str, str]]:
    """Return who listens where on a host."""
    lines = cloud.lab.host(host).exec(["ss", "-Hltnp"]).stdout.splitlines()
    return {(line.split()[3], *re.findall(r'users:\(\("([^"]+)"', line)) for line in lines}  # type: ignore[misc]


def shown(cloud: Cloud, server: Server) -> str:
    """Return the console as the API shows it."""
    return str(cloud.post(f"/servers/{server.id}/action", {"os-getConsoleOutput": {}})["output"])


def test_a_live_move_opens_no_port_and_every_move_takes_the_console_along(cloud: Cloud) -> None:
    """CVE-2017-2637: what listens on a host while memory crosses is the sshd of its channels, as at any time."""
    server = cloud.create()
    first = newest(server, "h1")[0]
    before = {host: listening(cloud, host) for host in ("h1", "h2")}
    cloud.lab.limit("h2", "40mbit")
    server.migrate_live()
    server.at_step("move_memory", "doing")
    for host in ("h1", "h2"):
        found = listening(cloud, host)
        assert found == before[host] and {program for _, program in found} == {"sshd"}, found
    cloud.lab.limit("h2", None)
    server.wait("ACTIVE")
    goes_on(server, "h2")
    numbers = [int(number) for number, _ in WRITTEN.findall(shown(cloud, server))]
    assert numbers[0] <= first and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    server.promised = newest(server, "h2")[0]
    server.migrate("h1")
    server.wait("VERIFY_RESIZE")
    server.wait_to_write("h1")
    assert len(server.boots("h1")) == 1 and len(boots_of(shown(cloud, server))) == 2
    server.assert_nothing_lost("h1")
    server.act("confirmResize")
    server.wait("ACTIVE")
    cloud.assert_tidy({server: "h1"})


def test_a_cancel_while_the_memory_crosses_leaves_the_guest_where_it_runs(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.lab.limit("h2", "40mbit")
    server.migrate_live()
    server.at_step("move_memory", "doing")
    found = cloud.get(f"/servers/{server.id}/migrations")["migrations"]
    assert [(row["status"], row["server_uuid"]) for row in found] == [("running", server.id)]
    wait_for("progress", lambda: _memory_told(cloud, server))
    cloud.delete(f"/servers/{server.id}/migrations/{found[0]['id']}")
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "cancelled"
    assert cloud.get(f"/servers/{server.id}/migrations")["migrations"] == []
    goes_on(server, "h1")
    assert traces(cloud, server) == []
    cloud.assert_tidy({server: "h1"})
    verify_at_next_boot(server, "h1")


def _memory_told(cloud: Cloud, server: Server) -> bool:
    rows = cloud.get(f"/servers/{server.id}/migrations")["migrations"]
    return bool(rows and rows[0]["memory_processed_bytes"])


@pytest.mark.parametrize("lost", ["agent h1", "agent h2", "libvirtd h2", "link h2"])
def test_whatever_is_lost_while_the_memory_crosses_the_guest_runs_on(cloud: Cloud, lost: str) -> None:
    server = cloud.create()
    cloud.lab.limit("h2", "40mbit")
    server.migrate_live()
    server.at_step("move_memory", "doing")
    wait_for("progress", lambda: _memory_told(cloud, server))
    what, host = lost.split()
    if what == "link":
        cloud.lab.link(host, up=False)
        wait_for("the move to be turned back", lambda: server.steps()["move_memory"]["mark"] != "doing")
        cloud.lab.link(host, up=True)
    else:
        cloud.lab.kill(what, host)
        cloud.lab.start(what, host)
    cloud.lab.limit("h2", None)
    server.wait("ACTIVE")
    home = server.show()["OS-EXT-SRV-ATTR:host"]
    assert (server.migration()["outcome"], home) in (("error", "h1"), ("completed", "h2"))
    goes_on(server, home)
    assert len(server.boots("h1") if home == "h1" else []) <= 1, "it was never started anew"
    cloud.assert_tidy({server: home})
    verify_at_next_boot(server, home)


def test_a_guest_that_is_off_is_refused(cloud: Cloud) -> None:
    server = cloud.create()
    server.act("os-stop")
    server.wait("SHUTOFF")
    answer = cloud.http.post(
        f"/compute/v2.1/servers/{server.id}/action",
        json={"os-migrateLive": {"host": None, "block_migration": "auto"}},
        headers={"OpenStack-API-Version": "compute 2.95"},
    )
    assert answer.status_code == 409 and "stopped" in answer.text
