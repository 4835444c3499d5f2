"""The conductor's process: what one host does to its own queue is no other host's affair."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orders import order
from whimbrel.bus.codec import registry
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.conductor import timers
from whimbrel.conductor.service import Conductor
from whimbrel.conductor.timers import Due
from whimbrel.domain.errors import BusError
from whimbrel.migration.messages import MESSAGES, Ask
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


async def test_a_queue_that_takes_nothing_keeps_no_other_host_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bus = Store(f"sqlite:///{tmp_path}/whimbrel.db"), Refusing()
    store.write_now(metadata.create_all)
    asks = [((7, 0, 1, host), Ask(order("prepare", 1, host=host))) for host in ("h1", "h2", "h3")]
    monkeypatch.setattr(timers, "look", lambda tx, conf, **_: Due(asks=asks))
    try:
        await Conductor(Settings(), store, bus, lambda image: "")._tick()
    finally:
        store.close()
    assert bus.casts == [ask for (_, _, _, host), ask in asks if host != "h1"]
