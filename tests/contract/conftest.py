"""A private RabbitMQ for the contract tests: one per test process, on free loopback ports, gone afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from whimbrel.lab.broker import Broker


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def broker_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory = tmp_path_factory.mktemp("rabbitmq")
    node = Broker(directory, "127.0.0.1", _free_ports(3), user="whimbrel", password="only-for-tests")
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
