"""The way between the hosts, the room and the image at the target: refused before the guest is stopped, or undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.cloud import Cloud, wait_for
from tests.fault.midway import BALLAST, assert_back, assert_goes_on, assert_refused, mid_copy
from whimbrel.lab.configs import INSTANCES_DIR

pytestmark = pytest.mark.real


def test_a_way_that_is_barred_costs_the_guest_nothing(cloud: Cloud) -> None:
    server = cloud.create()
    bars = (
        (another_host_key(cloud, "h2"), ("the host key of h2", "is not the one that h2 told of itself")),
        (no_authority(cloud, "h2"), ("h2", "refused the pass of h1", "channel_authorities")),
        (no_route(cloud), ("h1 cannot reach h2",)),
        (no_daemon(cloud), ("nothing listens on h2", "Start the sshd")),
    )
    for bar, words in bars:
        with bar:
            server.migrate()
            assert_refused(cloud, server, *words)


@contextmanager
def replaced(path: Path, change: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """Change the lines of a file for a while."""
    before = path.read_text()
    path.write_text("".join(f"{line}\n" for line in change(before.splitlines())))
    yield
    path.write_text(before)


@contextmanager
def another_host_key(cloud: Cloud, host: str) -> Iterator[None]:
    """Let a host's sshd be known by another key than the host has told of."""
    own = cloud.lab.host(host).dir / "var-lib-libvirt/channel"
    with replaced(own / "host_key", lambda _: (own / "channel_key").read_text().splitlines()):
        cloud.lab.kill("sshd", host)
        cloud.lab.start("sshd", host)
        yield
    cloud.lab.kill("sshd", host)
    cloud.lab.start("sshd", host)


def no_authority(cloud: Cloud, host: str) -> AbstractContextManager[None]:
    """Let a host's sshd take nobody's passes."""
    return replaced(cloud.lab.host(host).dir / "var-lib-libvirt/channel/authorities", lambda _: [])


@contextmanager
def no_route(cloud: Cloud) -> Iterator[None]:
    """Let the source find no way to the target."""
    route = ["unreachable", f"{cloud.lab.host('h2').address}/32"]
    cloud.lab.host("h1").exec(["ip", "route", "add", *route])
    yield
    cloud.lab.host("h1").exec(["ip", "route", "del", *route])


@contextmanager
def no_daemon(cloud: Cloud) -> Iterator[None]:
    """Let nobody listen at the target."""
    cloud.lab.kill("sshd", "h2")
    yield
    cloud.lab.start("sshd", "h2")


def test_a_silent_cut_at_the_target_is_noticed_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.link("h2", up=False)
    wait_for("the guest at the source", lambda: cloud.runners(server.id) == ["h1"])
    cloud.lab.link("h2", up=True)
    assert_back(cloud, server, "Nothing moved for 5 s")


def test_a_silent_cut_at_the_source_is_noticed_in_mid_copy(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.link("h1", up=False)
        wait_for("the source to give up", lambda: not cloud.ssh_clients("h1"))
        cloud.lab.link("h1", up=True)
    assert_back(cloud, server, "Nothing moved for 5 s")


def test_a_short_cut_is_bridged(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.link("h2", up=False)
        cloud.lab.link("h2", up=True)
    assert_goes_on(cloud, server)


def test_a_channel_that_breaks_in_mid_copy_is_replaced_and_the_rest_crosses(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        clients = cloud.lab.host("h1").exec(["pgrep", "-x", "ssh"]).stdout.split()
        cloud.lab.host("h1").exec(["kill", "-KILL", *clients])
    assert_goes_on(cloud, server)


@contextmanager
def small_disk(cloud: Cloud, mib: int) -> Iterator[None]:
    """Give the target a small disk; what is left on it when the test ends is only the cache and a `filler`."""
    target = cloud.lab.host("h2")
    target.limit_disk(mib)
    try:
        yield
        assert {path.name for path in cloud.instances("h2").iterdir()} <= {"_base", "filler"}
    finally:
        target.limit_disk(None)


def test_a_full_target_is_refused(cloud: Cloud) -> None:
    server = cloud.create("fill_mib=64")
    with small_disk(cloud, 48):
        server.migrate()
        assert_refused(cloud, server, "Target h2 has 0.0", "GiB free", "Make room there")


def test_a_target_without_room_for_the_image_is_refused(cloud: Cloud) -> None:
    server = cloud.create()
    with small_disk(cloud, 4):
        server.migrate()
        assert_refused(cloud, server, "Host h2 lacks base image", "it needs 15 MiB and 4 MiB are free there")


def test_a_target_that_fills_up_in_mid_copy_gives_the_guest_back(cloud: Cloud) -> None:
    server = cloud.create(BALLAST)
    with small_disk(cloud, 64):
        with mid_copy(cloud, server):
            filler = ["dd", "if=/dev/zero", f"of={INSTANCES_DIR}/filler", "bs=1M"]
            cloud.lab.host("h2").exec(filler, check=False)
        server.wait("ACTIVE")
        (cloud.instances("h2") / "filler").unlink()
        assert_back(cloud, server, "No space left on host h2")


def test_a_base_image_that_is_nowhere_is_missed_before_the_guest_is_stopped(cloud: Cloud) -> None:
    image = cloud.another_image()
    server = cloud.create(image=image)
    cloud.delete_image(image)
    for host in cloud.lab.hosts:
        cloud.forget_images(host)
    server.migrate()
    assert_refused(cloud, server, f"Host h2 lacks base image {image}", "404", "h1 does not hold it")
