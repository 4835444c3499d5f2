"""Where the product touches the world: each such place is led into the simulation while a seed runs.

The product keeps clocks, identifiers, threads and the file system behind few names, and those are replaced here; all
else that runs is the product itself.
"""

from __future__ import annotations

import os
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import structlog

from tests.sim import timeloop
from tests.sim.cloud import SimCloud, ports_of
from tests.sim.faults import Mishaps
from tests.sim.story import Story
from tests.sim.timeloop import CURRENT, TimeLoop
from whimbrel.agent import control, executor, inventory
from whimbrel.agent import outbox as agent_outbox
from whimbrel.agent import service as agent_service
from whimbrel.agent.guests import fake
from whimbrel.agent.inventory import Inventory
from whimbrel.agent.ledger import Ledger
from whimbrel.conductor import service as conductor_service
from whimbrel.domain.server import PowerState
from whimbrel.ops import clock, ids
from whimbrel.store import outbox

EPOCH = 1_700_000_000.0
LOOKS = 5.0
"""Seconds between two sweeps of each outbox and two ticks of the conductor; the product looks each second."""


@contextmanager
def installed(loop: TimeLoop, mishaps: Mishaps, story: Story, world: SimCloud) -> Iterator[None]:
    """Lead the product's ways to the world into this one."""
    names = random.Random(f"names {world.seed}")
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        put(clock, "monotonic", lambda: loop.time())
        put(clock, "boottime", lambda: loop.time())
        put(clock, "now", lambda: EPOCH + loop.time() + _skew())
        for name, make in _identifiers(names).items():
            put(ids, name, make)
        put(executor, "_in_thread", timeloop.in_thread)
        put(control, "Event", timeloop.Event)
        put(inventory, "take", lambda settings: Inventory(4, 1024, 12, 12, "x86_64", "up"))
        put(conductor_service, "TICK", LOOKS)
        put(outbox, "SWEEP_EVERY", LOOKS)
        put(agent_outbox, "SWEEP", LOOKS)
        put(fake, "Witness", world.witness)
        put(fake.FakeGuests, "_become", _watched_become(fake.FakeGuests._become, world))
        put(agent_service, "world", ports_of(world, agent_service.world))
        put(Ledger, "__init__", _opened(Ledger.__init__))
        put(Ledger, "transaction", _ledger(Ledger.transaction, mishaps))
        for owner, name, wrapper in _files(mishaps, world):
            put(owner, name, wrapper)
        before = structlog.get_config()
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, story.record], cache_logger_on_first_use=False
        )
        try:
            yield
        finally:
            structlog.configure(**before)
            structlog.contextvars.clear_contextvars()


def _skew() -> float:
    process = CURRENT.get()
    return process.skew if process is not None else 0.0


def _identifiers(names: random.Random) -> dict[str, Callable[..., str]]:
    def uuid() -> str:
        digits = f"{names.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"

    return {
        "new_uuid": uuid,
        "new_hex": lambda: uuid().replace("-", ""),
        "new_request_id": lambda: f"req-{uuid()}",
        "new_mac": lambda: "fa:16:3e:" + ":".join(f"{names.getrandbits(8):02x}" for _ in range(3)),
        "new_secret": lambda size=32: f"{names.getrandbits(8 * size):x}",
    }


def _watched_become(become: Callable[..., None], world: SimCloud) -> Callable[..., None]:
    def watched(self: Any, records: dict[str, Any], server: str, state: Any) -> None:
        died = True
        try:
            become(self, records, server, state)
            died = False
        finally:  # the agent may have died, or failed, just before or just after the hypervisor did it
            record = self._load().get(server)
            if world.hosts[self._host].on and record is not None and self._state_of(record) is state:
                world.auditor.guest_became(self._host, server, state)
                if died and state is PowerState.RUNNING:  # a guest boots although nobody is there to see it
                    disk = self._directories.live(server) / "disk-0"
                    world.auditor.booted(self._host, server, disk.read_text().splitlines())

    return watched


def _opened(init: Callable[..., None]) -> Callable[..., None]:
    def opened(self: Ledger, *args: Any) -> None:
        process = CURRENT.get()
        if process is not None:
            process.at_death.append(lambda: _closed(self))
        init(self, *args)

    return opened


def _closed(ledger: Ledger) -> None:
    """The kernel closes a dead process's files, wherever it was in opening them."""
    for name in ("_connection", "_owner"):
        file = getattr(ledger, name, None)
        if file is not None:
            file.close()


def _ledger(transaction: Callable[..., Any], mishaps: Mishaps) -> Callable[..., Any]:
    @contextmanager
    def watched(self: Ledger) -> Iterator[Any]:
        mishaps.ledger_write()
        with transaction(self) as sql:
            yield sql
            mishaps.point("a ledger commit")
        mishaps.point("a ledger transaction's end")

    return watched


def _files(mishaps: Mishaps, world: SimCloud) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    path, rmtree = pathlib.Path, shutil.rmtree

    def around(name: str) -> Callable[..., Any]:
        real = getattr(path, name)

        def call(self: pathlib.Path, *args: Any, **kwargs: Any) -> Any:
            if CURRENT.get() is None:
                return real(self, *args, **kwargs)
            mishaps.file_write(f"{name} {self.name}")
            world.reachable(self)
            done = real(self, *args, **kwargs)
            if name == "rename":
                world.auditor.renamed(self, args[0])
            mishaps.point(f"{name} {self.name}, done")
            return done

        return call

    for name in ("rename", "replace", "mkdir", "unlink"):
        yield path, name, around(name)

    def fsync(descriptor: int) -> None:
        if CURRENT.get() is not None:
            mishaps.file_write("write of a file")

    yield os, "fsync", fsync

    def remove(tree: pathlib.Path, *args: Any, **kwargs: Any) -> None:
        if CURRENT.get() is not None:
            mishaps.file_write(f"rmtree {tree.name}")
            for entry in sorted(tree.iterdir())[:1]:
                if not entry.is_dir():
                    entry.unlink()
            mishaps.file_write(f"rmtree {tree.name}, half")
        rmtree(tree, *args, **kwargs)
        world.auditor.removed(tree)

    yield shutil, "rmtree", remove
