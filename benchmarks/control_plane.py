"""The control plane alone: a fake hypervisor, real RabbitMQ, SQLite with synchronous=FULL, agents of their own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.cloud import Cloud
from benchmarks.measure import keep, pss_mib
from tests.fakecloud import FakeCloud

NAME = "control_plane"
ROUNDS = 10
TOGETHER = 10


def run() -> None:
    """Measure one migration at a time, ten at once, the verdicts, the list, and memory."""
    with FakeCloud() as fake:
        cloud = Cloud(fake.clouds_yaml)
        flavor = cloud.flavor("tiny", vcpus=1, ram=64, disk=1)
        server = cloud.create("one", flavor, networked=False)
        moves, confirms, reverts = list[float](), list[float](), list[float]()
        for number in range(2 + 2 * ROUNDS):
            move = cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE")
            verdict = "confirmResize" if number % 2 else "revertResize"
            taken = cloud.timed(server, {verdict: None}, "ACTIVE")
            if number >= 2:
                moves.append(move)
                (confirms if number % 2 else reverts).append(taken)
        keep(NAME, "POST migrate to VERIFY_RESIZE, fake hypervisor", "s", moves, 0.85, 0.15)
        keep(NAME, "confirm, fake hypervisor", "s", confirms, 0.28, 0.28)
        keep(NAME, "revert, fake hypervisor", "s", reverts, 0.53, 0.53)
        _together(fake, cloud, flavor)
        _list(cloud, flavor)
        _memory(fake)


def _together(fake: FakeCloud, cloud: Cloud, flavor: str) -> None:
    servers = [cloud.create(f"many{number}", flavor, networked=False) for number in range(TOGETHER)]
    clients = [Cloud(fake.clouds_yaml) for _ in servers]
    times = []
    for _ in range(5):
        begin = time.monotonic()
        with ThreadPoolExecutor(TOGETHER) as pool:
            for client, server in zip(clients, servers, strict=True):
                pool.submit(client.action, server, {"migrate": None})
        ends = [cloud.wait(server, "VERIFY_RESIZE", poll=0.02) for server in servers]
        times.append(max(ends) - begin)
        for server in servers:
            cloud.timed(server, {"confirmResize": None}, "ACTIVE")
    keep(NAME, "ten at once, all VERIFY_RESIZE", "s", times, 6.57, 0.6)


def _list(cloud: Cloud, flavor: str) -> None:
    have = len(cloud.get("/servers?limit=1000")["servers"])
    for number in range(have, 100):
        cloud.create(f"listed{number}", flavor, networked=False)
    times = []
    for _ in range(15):
        begin = time.monotonic()
        assert len(cloud.get("/servers/detail?limit=100")["servers"]) == 100
        times.append(time.monotonic() - begin)
    keep(NAME, "GET /servers/detail, 100 servers", "s", times, 0.40, 0.04)


def _memory(fake: FakeCloud) -> None:
    broker = fake.broker.pid
    assert broker is not None
    controller = pss_mib(fake.pids["controller"])
    keep(NAME, "memory of controller and RabbitMQ (PSS)", "MiB", [controller + pss_mib(broker)], 1836, 300)
    keep(NAME, "memory of one agent, fake hypervisor (PSS)", "MiB", [pss_mib(fake.pids["agent1"])], None, 80)
