"""A host is silent only while somebody listens: what a conductor was too deaf to hear is nobody's fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.protocol.cluster import Cluster
from whimbrel.conductor import service
from whimbrel.conductor.service import Conductor
from whimbrel.migration.messages import Ask
from whimbrel.ops import settings

PATIENCE = 60.0


class Wire:
    """A bus that keeps what is cast and brings nothing."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[object] = []

    def healthy(self) -> bool:
        return self.up

    async def cast(self, queue: str, message: object) -> None:
        self.sent.append(message)

    async def emit(self, topic: str, message: object) -> None: ...

    async def consume(self, queue: str, handler: object, *, prefetch: int = 0) -> None: ...

    async def subscribe(self, topic: str, handler: object) -> None: ...


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster whose target works on an order and has not answered yet."""
    monkeypatch.setattr(service, "TICK", 0.01)
    cluster = Cluster(patience=PATIENCE, census=0.01)
    cluster.start()
    cluster.step()
    assert cluster.marks()["prepare"] == "doing"
    return cluster


@asynccontextmanager
async def conductor(cluster: Cluster, wire: Wire) -> AsyncIterator[None]:
    conf = settings.Settings(conductor=cluster.conf)
    task = asyncio.create_task(Conductor(conf, cluster.store, wire, str).run())  # type: ignore[arg-type]
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def soon(condition: Callable[[], bool]) -> bool:
    """Return whether the condition comes to hold within some ticks."""
    for _ in range(30):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.anyio
async def test_a_conductor_that_was_away_asks_before_it_calls_a_host_silent(waiting: Cluster) -> None:
    wire = Wire()
    waiting.time += 3600
    async with conductor(waiting, wire):
        assert await soon(lambda: any(isinstance(message, Ask) for message in wire.sent))
        assert waiting.marks()["prepare"] == "doing"
        waiting.time += PATIENCE + 1
        assert await soon(lambda: waiting.marks()["prepare"] != "doing")


@pytest.mark.anyio
async def test_while_the_broker_is_away_no_host_is_silent(waiting: Cluster) -> None:
    wire = Wire()
    async with conductor(waiting, wire):
        wire.up = False
        waiting.time += 3600
        assert not await soon(lambda: waiting.marks()["prepare"] != "doing")
        wire.up = True
        waiting.time += PATIENCE - 1
        assert not await soon(lambda: waiting.marks()["prepare"] != "doing")
        waiting.time += 2
        assert await soon(lambda: waiting.marks()["prepare"] != "doing")
