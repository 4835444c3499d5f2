"""The straight stories on real guests: what is moved is whole, what is given up is gone, the machine is the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.cloud import Cloud, Server, wait_for
from whimbrel.lab.configs import INSTANCES_DIR

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def assert_moved(cloud: Cloud, server: Server, target: str = "h2") -> None:
    """The server waits for its verdict: it runs at the target only, and the source keeps its copy, sealed."""
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost(target)
    assert len({path.parent.name for path in server.copies() if ".sealed-" in path.parent.name}) == 1
    taken, _, _ = cloud.books()
    assert sorted(host for owner, host, *_ in taken if owner == server.id) == ["h1", "h2"]


def assert_back(cloud: Cloud, server: Server) -> None:
    """The server was reverted: its guest runs at its source again, with all that it had when it left."""
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert server.migration()["outcome"] == "reverted"
    cloud.assert_tidy({server: "h1"})


def room(server: Server, host: str) -> tuple[int, int]:
    """Return the size of the root disk and of the memory, in MiB, as the guest sees them."""
    (found,) = re.findall(r"WRITER ROOM vda_mib=(\d+) ram_mib=(\d+)", server.console(host))[-1:]
    return int(found[0]), int(found[1])


def test_a_cold_migration_is_confirmed_and_the_machine_is_the_same(cloud: Cloud) -> None:
    server = cloud.create()
    before, definition = server.show(), identity(cloud, server, "h1")
    address = before["addresses"]["private"][0]["addr"]
    server.migrate()
    assert_moved(cloud, server)
    server.confirm()
    after = server.show()
    assert after["OS-EXT-SRV-ATTR:host"] == "h2" and after["addresses"] == before["addresses"]
    assert identity(cloud, server, "h2") == definition
    wait_for("an answer to ping", lambda: cloud.lab.on_switch(["ping", "-c1", "-W1", address]).returncode == 0)
    assert server.migration()["outcome"] == "confirmed"
    cloud.assert_tidy({server: "h2"})


def identity(cloud: Cloud, server: Server, host: str) -> list[str]:
    """Return by what a guest knows its machine: UUID, MAC, bus addresses, serials and models."""
    definition = cloud.lab.host(host).exec(["virsh", "dumpxml", "--inactive", server.id]).stdout
    return re.findall(r"<(?:uuid|mac|address|target|serial|model|memory|vcpu|type) ?[^>]*>[^<\n]*", definition)


def test_a_cold_migration_is_reverted(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate("h2")
    assert_moved(cloud, server)
    server.revert()
    assert_back(cloud, server)


def test_a_resize_grows_disk_and_memory(cloud: Cloud) -> None:
    server = cloud.create()
    disk, memory = room(server, "h1")
    assert disk == 1024 and 72 < memory < 128
    server.resize("medium")
    assert_moved(cloud, server)
    disk, memory = room(server, "h2")
    assert disk == 2048 and 136 < memory < 192
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_resize_is_reverted_to_the_old_size(cloud: Cloud) -> None:
    server = cloud.create()
    before = room(server, "h1")
    server.resize("medium")
    assert_moved(cloud, server)
    server.revert()
    assert_back(cloud, server)
    assert room(server, "h1") == before
    assert server.show()["flavor"]["original_name"] == "small"


@pytest.mark.parametrize("verdict", ["confirm", "revert"])
def test_a_resize_on_the_same_host_keeps_the_copies_apart(cloud: Cloud, verdict: str) -> None:
    server = cloud.create()
    with cloud.settings("conductor", same_host_resize=True), cloud.disabled("h2"):
        server.resize("medium")
        server.wait("VERIFY_RESIZE")
        server.assert_nothing_lost("h1")
        assert room(server, "h1")[0] == 2048
        getattr(server, verdict)()
    if verdict == "revert":
        assert_back(cloud, server)
    cloud.assert_tidy({server: "h1"})


def test_a_stopped_server_is_moved_and_stays_stopped(cloud: Cloud) -> None:
    server = cloud.create()
    server.act("os-stop")
    server.wait("SHUTOFF")
    server.migrate()
    server.wait("VERIFY_RESIZE")
    assert not cloud.runners(server.id)
    server.remember()
    server.confirm()
    assert server.show()["status"] == "SHUTOFF"
    cloud.assert_tidy({server: "h2"}, stopped=(server,))
    server.act("os-start")
    server.wait("ACTIVE")
    server.assert_nothing_lost("h2")


def test_an_ephemeral_disk_moves_and_swap_is_made_anew(cloud: Cloud) -> None:
    cloud.flavor("disks", vcpus=1, ram=128, disk=1, **{"OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64})
    server = cloud.create("second_disk=1", flavor="disks")
    server.migrate()
    assert_moved(cloud, server)
    (found,) = re.findall(r"WRITER DISK2 total=(\d+) bad=0", server.console("h2"))
    assert int(found) >= server.promised > 0
    assert "disk-2" not in server.fact("copy_disks", "disks")
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_raw_disk_keeps_its_holes(cloud: Cloud) -> None:
    with cloud.settings("agent", "h1", root_disk="raw"):
        server = cloud.create()
        server.migrate()
        assert_moved(cloud, server)
        disk = (cloud.instances("h2") / server.id / "disk-0").stat()
        sealed = next(cloud.instances("h1").glob(f"{server.id}.sealed-*")) / "disk-0"
        assert disk.st_size == 1 << 30 == sealed.stat().st_size
        assert disk.st_blocks * 512 < sealed.stat().st_blocks * 512 + (4 << 20) < 100 << 20
        server.revert()
        assert_back(cloud, server)


def test_on_shared_storage_nothing_is_copied(cloud: Cloud) -> None:
    with shared_storage(cloud):
        server = cloud.create()
        server.migrate()
        assert_moved(cloud, server)
        assert server.fact("open_channel", "shared") is True
        assert server.fact("copy_disks", "bytes") == 0
        server.confirm()
        assert {path.name for path in cloud.instances("h1").iterdir()} == {"_base", server.id}
        server.assert_nothing_lost("h2")
        server.migrate("h1")
        assert_moved(cloud, server, "h1")
        server.delete()
        assert {path.name for path in cloud.instances("h1").iterdir()} == {"_base"}


@contextmanager
def shared_storage(cloud: Cloud) -> Iterator[None]:
    """Let both hosts keep their servers in one directory."""
    shared = cloud.lab.dir / "shared"
    shared.mkdir()
    with ExitStack() as stack:
        for host in cloud.lab.hosts.values():
            host.exec(["mount", "--bind", shared, INSTANCES_DIR])
            stack.callback(host.exec, ["umount", "--lazy", INSTANCES_DIR])
        yield


def test_a_missing_base_image_is_fetched_before_the_guest_is_stopped(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.forget_images("h2")
    server.migrate()
    assert_moved(cloud, server)
    steps = server.steps()
    assert steps["prepare"]["ended_at"] < steps["stop_guest"]["started_at"]
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_base_image_that_the_store_has_lost_comes_from_the_source(cloud: Cloud) -> None:
    image = cloud.another_image()
    server = cloud.create(image=image)
    cloud.delete_image(image)
    server.migrate()
    assert_moved(cloud, server)
    server.confirm()
    cloud.assert_tidy({server: "h2"})


def test_a_window_that_runs_out_confirms(cloud: Cloud) -> None:
    server = cloud.create()
    server.remember()  # the window may end, and the copy at the source go, before this test looks
    with cloud.settings("conductor", confirm_window=2):
        server.migrate()
        wait_for("the window to run out", lambda: server.migration()["outcome"] == "confirmed")
    server.assert_nothing_lost("h2")
    cloud.assert_tidy({server: "h2"})


def test_a_server_is_deleted_while_it_waits_for_its_verdict(cloud: Cloud) -> None:
    server = cloud.create()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.delete()
    cloud.assert_tidy({})


def test_a_server_is_deleted_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=12")
    cloud.lab.limit("h2", "16mbit")
    server.migrate()
    server.at_step("precopy", "doing")
    server.delete()
    cloud.assert_tidy({})


def test_the_second_server_runs_until_a_copy_slot_is_free(cloud: Cloud) -> None:
    with cloud.settings("agent", "h1", max_copies=1):
        first, second = cloud.create("fill_mib=12"), cloud.create("fill_mib=12")
        cloud.lab.limit("h2", "32mbit")
        first.migrate()
        first.at_step("precopy", "doing")
        second.migrate()
        second.at_step("precopy", "doing")
        first.at_step("precopy", "doing")
        assert cloud.runners(second.id) == ["h1"]
        for server in (first, second):
            assert_moved(cloud, server)
        assert second.steps()["stop_guest"]["ended_at"] > first.steps()["copy_disks"]["ended_at"]
        for server in (first, second):
            server.confirm()
    cloud.assert_tidy({first: "h2", second: "h2"})
