"""The way between the hosts, the room and the image at the target: refused before the guest is stopped, or undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cloud import Cloud, wait_for
from tests.fault.midway import BALLAST, assert_back, assert_goes_on, assert_refused, mid_copy
from whimbrel.lab.configs import INSTANCES_DIR

pytestmark = pytest.mark.real


@contextmanager
def replaced(path: Path, content: str) -> Iterator[None]:
    """Give a file another content for a while."""
    before = path.read_text()
    path.write_text(content)
    try:
        yield
    finally:
        path.write_text(before)


def test_an_unknown_host_key_is_refused(cloud: Cloud) -> None:
    server = cloud.create()
    known = cloud.lab.dir / "ssh/known_hosts"
    with replaced(known, "".join(line for line in known.read_text().splitlines(True) if not line.startswith("h2,"))):
        server.migrate()
        assert_refused(cloud, server, "h1 does not know the host key of h2", "known_hosts")


def test_a_changed_host_key_is_refused(cloud: Cloud) -> None:
    server = cloud.create()
    known = cloud.lab.dir / "ssh/known_hosts"
    keys = dict(line.split(" ", 1) for line in known.read_text().splitlines())
    names = list(keys)
    swapped = "".join(f"{name} {keys[other]}\n" for name, other in zip(names, reversed(names), strict=True))
    with replaced(known, swapped):
        server.migrate()
        assert_refused(cloud, server, "the host key of h2", "is not the one that h1 knows")


def test_a_refused_key_is_told(cloud: Cloud) -> None:
    server = cloud.create()
    with replaced(cloud.lab.host("h2").dir / "run/ssh/authorized_keys", ""):
        server.migrate()
        assert_refused(cloud, server, "h2", "refused the key of h1", "authorized_keys")


def test_a_dead_ssh_daemon_is_told(cloud: Cloud) -> None:
    server = cloud.create()
    cloud.lab.kill("sshd", "h2")
    server.migrate()
    assert_refused(cloud, server, "nothing listens on h2", "Start sshd")


def test_an_unreachable_target_is_told(cloud: Cloud) -> None:
    server = cloud.create()
    route = f"{cloud.lab.host('h2').address}/32"
    cloud.lab.host("h1").exec(["ip", "route", "add", "unreachable", route])
    try:
        server.migrate()
        assert_refused(cloud, server, "h1 cannot reach h2")
    finally:
        cloud.lab.host("h1").exec(["ip", "route", "del", "unreachable", route])


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
