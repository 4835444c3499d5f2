"""Guests that do not stop, targets that cannot start one, and hypervisors that are away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cloud import Cloud
from tests.fault.midway import BALLAST, assert_back, assert_goes_on, assert_refused, mid_copy
from whimbrel.lab.configs import INSTANCES_DIR

pytestmark = pytest.mark.real

QEMU = "/usr/bin/qemu-system-x86_64"


@contextmanager
def qemu_replaced(cloud: Cloud, host: str, instead: str) -> Iterator[None]:
    """Run a shell line before QEMU where a guest is started; asking QEMU for its abilities works as ever."""
    one = cloud.lab.host(host)
    one.exec(["cp", QEMU, "/run/qemu-itself"])
    script = f'#!/bin/sh\ncase "$*" in *guest=*) {instead};; esac\nexec /run/qemu-itself "$@"\n'
    one.exec(["tee", "/run/qemu"], input=script)
    one.exec(["chmod", "755", "/run/qemu"])
    one.exec(["mount", "--bind", "/run/qemu", QEMU])
    try:
        yield
    finally:
        one.exec(["umount", "--lazy", QEMU], check=False)


@contextmanager
def bridge_away(cloud: Cloud, host: str) -> Iterator[None]:
    """Let a host have no bridge of the name that it is set to use."""
    one = cloud.lab.host(host)
    one.exec(["ip", "link", "set", "br-guests", "name", "br-away"])
    try:
        yield
    finally:
        one.exec(["ip", "link", "set", "br-away", "name", "br-guests"])


def test_a_guest_that_ignores_the_power_button_is_stopped_by_force_and_it_is_noted(cloud: Cloud) -> None:
    server = cloud.create("acpi=ignore")
    server.migrate()
    server.wait("VERIFY_RESIZE")
    assert server.fact("stop_guest", "forced") is True
    assert_goes_on(cloud, server)


def test_a_guest_that_a_full_disk_has_paused_runs_on_when_there_is_room(cloud: Cloud) -> None:
    host = cloud.lab.host("h2")
    host.limit_disk(192)
    try:
        host.exec(["fallocate", "-l", "128M", f"{INSTANCES_DIR}/filler"])
        server = cloud.begin("fill_mib=100", host="h2")
        server.wait("PAUSED")
        assert "I/O error" in host.exec(["virsh", "domstate", "--reason", f"whimbrel-{server.id}"]).stdout
        (cloud.instances("h2") / "filler").unlink()
        server.wait("ACTIVE")
        server.assert_nothing_lost("h2")
        server.delete()
    finally:
        host.limit_disk(None)


def test_a_target_that_cannot_start_the_guest_gives_it_back(cloud: Cloud) -> None:
    server = cloud.create()
    with qemu_replaced(cloud, "h2", "echo cannot allocate guest memory >&2; exit 1"):
        server.migrate()
        assert_back(cloud, server, "cannot allocate guest memory")


def test_a_target_without_its_bridge_is_refused(cloud: Cloud) -> None:
    server = cloud.create()
    with bridge_away(cloud, "h2"):
        server.migrate()
        assert_refused(cloud, server, "Host h2 has no bridge br-guests")


@pytest.mark.parametrize("step", ["precopy", "stop_guest"])
def test_the_sources_libvirtd_is_away_when_it_is_needed_first(cloud: Cloud, step: str) -> None:
    server = cloud.create()
    if step == "stop_guest":
        server.stop_first()
    cloud.lab.kill("libvirtd", "h1")
    server.migrate()
    server.at_step(step, "doing")
    server.wait_for_reason(step, "Start libvirtd")
    assert cloud.runners(server.id) == ["h1"]
    cloud.lab.start("libvirtd", "h1")
    assert_goes_on(cloud, server)


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_libvirtd_is_restarted_in_mid_copy(cloud: Cloud, host: str) -> None:
    server = cloud.create(BALLAST)
    with mid_copy(cloud, server):
        cloud.lab.kill("libvirtd", host)
    if host == "h2":
        server.at_step("define_guest", "doing")
        server.wait_for_reason("define_guest", "Start libvirtd")
    cloud.lab.start("libvirtd", host)
    assert_goes_on(cloud, server)
