"""The conductor's process: what it asks of others is bounded, and no part of it dies unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.orders import order
from whimbrel.bus.codec import registry
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.conductor import service, timers
from whimbrel.conductor.drive import Effects
from whimbrel.conductor.fencing import Fencer
from whimbrel.conductor.service import Conductor
from whimbrel.conductor.timers import Due
from whimbrel.domain.errors import BusError
from whimbrel.migration.messages import MESSAGES, Ask, SelectTargets
from whimbrel.migration.protocols import COLD
from whimbrel.ops.settings import Settings
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata

pytestmark = pytest.mark.anyio


class Refusing(LocalBus):
    """A bus at which h1's queue takes nothing, as when it is full or its agent has made it anew in another way."""

    def __init__(self) -> None:
        super().__init__(LocalBroker(), registry(*MESSAGES))
        self.casts: list[object] = []

    async def cast(self, queue: str, message: object) -> None:
        if queue == "agent.h1":
            raise BusError("inequivalent arg")
        self.casts.append(message)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A database in which nothing is going on."""
    made = Store(f"sqlite:///{tmp_path}/whimbrel.db")
    made.write_now(metadata.create_all)
    yield made
    made.close()


async def test_a_queue_that_takes_nothing_keeps_no_other_host_from_being_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Refusing()
    asks = [((7, 0, 1, host), Ask(order("prepare", 1, host=host))) for host in ("h1", "h2", "h3")]
    monkeypatch.setattr(timers, "look", lambda tx, conf, **_: Due(asks=asks))
    await Conductor(Settings(), store, bus, lambda image: "")._tick()
    assert bus.casts == [ask for (_, _, _, host), ask in asks if host != "h1"]


class Waiting(Refusing):
    """A bus at which no scheduler answers."""

    async def call(self, queue: str, message: object, *, timeout: float) -> object:
        self.casts.append(message)
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_scheduler_that_is_away_is_asked_once_at_a_time_for_each_move(store: Store) -> None:
    bus = Waiting()
    conductor = Conductor(Settings(), store, bus, lambda image: "")
    before = asyncio.all_tasks()
    question = SelectTargets(
        1, 64, 1, "", (), "h1", same_host_allowed=False, forced_host=None, protocol="cold", version=COLD.version
    )
    for _ in range(50):
        await conductor._publish(Effects(select=[(7, question), (8, question)]))
        await asyncio.sleep(0)
    asking = asyncio.all_tasks() - before
    assert bus.casts == [question, question] and len(asking) == 2
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await conductor._publish(Effects(select=[(7, question)]))
    await asyncio.sleep(0)
    assert len(bus.casts) == 3, "who was not answered asks again"
    for task in asyncio.all_tasks() - before:
        task.cancel()


async def test_a_conductor_does_not_live_on_without_what_looks_for_proofs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(fencer: Fencer) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(service, "TICK", 0.01)
    monkeypatch.setattr(Fencer, "look", broken)
    bus = Refusing()
    await bus.start()
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a defect")):
        async with asyncio.timeout(10):
            await Conductor(Settings(), store, bus, lambda image: "").run()
    await bus.close()
