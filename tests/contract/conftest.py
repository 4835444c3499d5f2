"""What the contracts are tried on: a private RabbitMQ on free loopback ports, and two hosts with real hypervisors.

Each is made once for a test process, when the first test wants it, and is gone afterwards.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.passes import with_pass
from whimbrel.domain.server import Disk, DiskRole, Image
from whimbrel.lab import Lab
from whimbrel.lab.broker import Broker
from whimbrel.lab.guest import image as guest_image
from whimbrel.lab.processes import ENVIRONMENT, enter
from whimbrel.migration.messages import Order, Place
from whimbrel.migration.ports import World


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def broker_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory = tmp_path_factory.mktemp("rabbitmq")
    hosts = {host: f"of-{host}" for host in ("alpha", "beta")}
    node = Broker(directory, "127.0.0.1", _free_ports(3), user="whimbrel", password="only-for-tests", hosts=hosts)
    try:
        node.start(deadline=120)
        yield node
    finally:
        node.kill()


@pytest.fixture
def broker(broker_node: Broker) -> Broker:
    """The running node, also after a test that crashed it."""
    broker_node.start(deadline=120)
    return broker_node


class RealHosts:
    """The two hosts of a lab, each with a process that lends its ports; they start anew for each test."""

    def __init__(self, lab: Lab, drivers: dict[str, Any], image: Image) -> None:
        self._lab, self._drivers = lab, drivers
        self._starts = {host: driver.Start() for host, driver in drivers.items()}
        ports = ("guests", "directories", "disks", "channels", "grants", "memory")
        self._worlds = {
            host: World(**{name: start.port(name) for name in ports}) for host, start in self._starts.items()
        }
        self.image: Image | None = image
        self.root = Disk(0, DiskRole.ROOT, "qcow2", 1024, image.sha256)

    def world(self, host: str) -> World:
        return self._worlds[host]

    def control(self, host: str, limit: float) -> Any:
        return self._drivers[host].StepControl(limit)

    def place(self, host: str) -> Place:
        return Place(host, self._lab.host(host).address)

    def signed(self, order: Order) -> Order:
        return with_pass(self._lab, order)

    def instances(self, host: str) -> Path:
        return self._lab.host(host).dir / "instances"

    def clear(self) -> None:
        """End and remove every server, so that the next test has the processors for itself."""
        for host, world in self._worlds.items():
            names = {path.name.partition(".")[0] for path in self.instances(host).iterdir()}
            for server in names - {"", "_base"}:
                world.guests.destroy(server)
                world.guests.undefine(server)
                world.directories.remove_all(server)


@pytest.fixture(scope="session")
def lab_with_drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, dict[str, Any], Image]]:
    """Two hosts under libvirt and QEMU, joined by OpenSSH, which hold the test guest's image already."""
    from tests.real.host_driver import KEY, Ports

    if os.geteuid() != 0:
        pytest.skip("hosts in namespaces need root")
    script = Path(__file__).parents[1] / "real" / "host_driver.py"
    content = guest_image().read_bytes()
    virtual_mb = int.from_bytes(content[24:32], "big") >> 20  # where a qcow2 says how large its disk is
    image = Image("image-1", hashlib.sha256(content).hexdigest(), "qcow2", len(content), virtual_mb)
    lab = Lab.up(tmp_path_factory.mktemp("lab"), hosts=2, services=False)
    running, drivers = [], {}
    try:
        for name, host in lab.hosts.items():
            kept = host.dir / "instances" / "_base" / image.sha256
            kept.parent.mkdir(mode=0o711)
            kept.write_bytes(content)
            kept.chmod(0o644)
            address = host.dir / "ports"
            command = [sys.executable, script, host.dir / "agent.toml", address]
            with (lab.dir / "logs" / f"driver@{name}.log").open("wb") as log:
                driver = subprocess.Popen(
                    [*enter(host.up()), "env", "--chdir=/", *command],
                    stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT,
                )  # fmt: skip
            running.append((driver, Ports(str(address), KEY)))
        for name, (driver, ports) in zip(lab.hosts, running, strict=True):
            assert driver.stdout and driver.stdout.readline() == b"listening\n", f"see the log driver@{name}"
            ports.connect()
            drivers[name] = ports
        yield lab, drivers, image
    finally:
        lab.down()
        for driver, _ in running:
            driver.communicate(timeout=30)


@pytest.fixture
def real_hosts(lab_with_drivers: tuple[Lab, dict[str, Any], Image]) -> Iterator[RealHosts]:
    hosts = RealHosts(*lab_with_drivers)
    yield hosts
    hosts.clear()


def _free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports."""
    while True:
        with ExitStack() as held, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(first)
