"""The simulated cloud: hosts with files, power and a hypervisor, and the processes of the product on them.

Agents, conductor, scheduler, ledgers, database and bus are the product's. A host is a directory in memory; its power
can be cut, its link to the broker too, and its disk and hypervisor can fail. Whatever dies is started again later, as
an operator's service manager would.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, text

from tests.sim.faults import Mishaps
from tests.sim.timeloop import CURRENT, Crash, Process, TimeLoop, getcurrent, inside, outside, pause, run_apart
from whimbrel.agent import service as agent_service
from whimbrel.agent.directories import HostDirectories
from whimbrel.agent.guests.fake import FakeGuests
from whimbrel.agent.ledger import Ledger
from whimbrel.bus import codec, queues
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.conductor.service import Conductor
from whimbrel.domain.errors import BusError, StepError, Unavailable
from whimbrel.migration.messages import MESSAGES
from whimbrel.migration.ports import World as Ports
from whimbrel.ops import settings
from whimbrel.scheduler.service import Scheduler
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata

CONFIRM_LIMIT = 10.0
_EMPTY = [*(table.delete() for table in reversed(metadata.sorted_tables)), text("DELETE FROM sqlite_sequence")]
CODEC = codec.registry(*MESSAGES)


class Ordered(dict[Any, None]):
    """A set that remembers the order, so that a run can be repeated."""

    def add(self, item: Any) -> None:
        """Add it."""
        self[item] = None

    def discard(self, item: Any) -> None:
        """Take it out if it is in."""
        self.pop(item, None)


class SimBroker(LocalBroker):
    """A broker that lives on whatever happens to who sends."""

    def send(self, row: queues.Queue, data: bytes, *more: Any) -> None:
        outside(super().send, row, data, *more)

    def tell(self, topic: str, data: bytes, user: str) -> None:
        outside(super().tell, topic, data, user)


class SimBus(LocalBus):
    """A process's connection to the broker over its host's link."""

    def __init__(self, broker: SimBroker, process: Process, host: Host | None) -> None:
        super().__init__(broker, CODEC)
        self._running = Ordered()  # type: ignore[assignment]
        self._process, self._host = process, host
        process.at_death.append(lambda: asyncio.get_running_loop().create_task(self.close()))

    async def _linked(self, patience: float) -> None:
        if self._host is not None and not self._host.linked.is_set():
            try:
                async with asyncio.timeout(patience):
                    await self._host.linked.wait()
            except TimeoutError:
                raise BusError("The broker cannot be reached.") from None

    async def cast(self, queue: str, message: object) -> None:
        await self._linked(CONFIRM_LIMIT)
        await super().cast(queue, message)

    async def emit(self, topic: str, message: object) -> None:
        if self._host is None or self._host.linked.is_set():
            await super().emit(topic, message)

    async def consume(self, queue: str, handler: Any, *, prefetch: int = 16) -> None:
        await self._in_the_broker(super().consume(queue, self._of_process(handler), prefetch=prefetch))

    async def subscribe(self, topic: str, handler: Any) -> None:
        await self._in_the_broker(super().subscribe(topic, self._of_process(handler)))

    async def _in_the_broker(self, work: Any) -> None:
        await asyncio.get_running_loop().create_task(work, context=inside(None))

    def _of_process(self, handler: Any) -> Callable[[object], Awaitable[object | None]]:
        """The delivery is the broker's, what is done with it the process's, and dies with it."""

        async def take(message: object) -> object | None:
            await self._linked(1e9)
            answer: asyncio.Future[object | None] = asyncio.get_running_loop().create_future()
            task = asyncio.get_running_loop().create_task(handler(message), context=inside(self._process))
            task.add_done_callback(lambda done: _hand_on(done, answer), context=inside(None))
            taken = await answer
            await self._linked(1e9)
            return taken

        return take


def _hand_on(done: asyncio.Task[Any], answer: asyncio.Future[Any]) -> None:
    if not answer.done() and not done.cancelled():
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        elif not isinstance(error, Crash):
            answer.set_exception(error)


def _is_of_the_world(error: BaseException) -> bool:
    """Return whether a process may end over this: the world's refusal, and no defect of its own."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_the_world, error.exceptions))
    return isinstance(error, OSError | sqlite3.Error | BusError | Unavailable | StepError)


class SimStore(Store):
    """The product's store; the process may die before and after each commit, and the database may be away."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.mishaps: Mishaps | None = None
        self.writes = 0
        """Writing transactions so far, also those that failed: while it stays, so does what the database says."""
        event.listen(self._engine, "commit", self._before_commit)

    def _before_commit(self, connection: Connection) -> None:
        if self.mishaps is not None:
            self.mishaps.point("a commit")

    def _write(self, function: Any, asked: float) -> Any:
        self._ask()
        try:
            result = super()._write(function, asked)
        finally:
            self.writes += 1
        if self.mishaps is not None:
            self.mishaps.point("a commit's end")
        return result

    def read_now(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self._ask()
        return super().read_now(function, *args, **kwargs)

    def _ask(self) -> None:
        process = CURRENT.get()
        if process is None or self.mishaps is None:
            return
        if not process.alive:
            raise Crash
        if self.mishaps.database_away:
            raise Unavailable("The database does not answer.")

    def empty(self) -> None:
        """Make it as new as a fresh one."""

        def clear(tx: Connection) -> None:
            for statement in _EMPTY:
                tx.execute(statement)

        self.mishaps = None
        self.write_now(clear)


class Port:
    """One of a step's ports on a host: what it is asked takes time, and may not be answered."""

    def __init__(self, host: Host, name: str, real: Any) -> None:
        self._host, self._name, self._real = host, name, real

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if not callable(method) or name == "on_change":
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            cloud, host = self._host.cloud, self._host
            if getcurrent().parent is not None:
                pause(cloud.mishaps.slowness(host))
            if self._name == "guests" and name not in ("compose",):
                cloud.mishaps.hypervisor(host, name)
            if name in ("push", "open"):
                cloud.way(host, args[0])
            done = method(*args, **kwargs)
            if name == "push" and cloud.mishaps.spoils():
                cloud.spoil(args[0])
            return done

        return call


@dataclass(eq=False)
class Host:
    """One machine. Its directories outlive its power; its run directory does not."""

    cloud: SimCloud
    name: str
    dir: Path
    on: bool = False
    boots: int = 0
    agent: Process | None = None
    ledger: Ledger | None = None
    skew: float = 0.0
    full_disk: bool = False
    bad_disk: bool = False
    slow_disk: bool = False
    silent_hypervisor: bool = False
    start_fails: bool = False
    linked: asyncio.Event = field(default_factory=asyncio.Event)
    downs: int = 0

    @property
    def instances(self) -> Path:
        """Where the servers' directories are."""
        return self.dir / "instances"

    @cached_property
    def conf(self) -> settings.Agent:
        """The agent's settings."""
        return settings.Agent(
            host=self.name,
            address="10.0.0.1",
            instances_dir=str(self.instances),
            state_dir=str(self.dir.with_name(f"state-{self.name}")),  # side by side, as the fake's wire wants them
            run_dir=str(self.dir / "run"),
            hypervisor="fake",
            max_copies=self.cloud.rules["max_copies"],
            heartbeat_interval=15,
            reserved_ram_mb=0,
            cpu_ratio=1.0,
        )

    def guests(self) -> FakeGuests | None:
        """The hypervisor as its guests see it; none while there is no power."""
        marker = self.dir / "run" / "boot"
        if not self.on or not marker.exists():
            return None
        return FakeGuests(self.conf, marker.read_text())

    def power_on(self) -> None:
        """Boot it, if it is off: a new boot marker, no guest, a new agent."""
        if not self.on:
            self.on = True
            self.boots += 1
            shutil.rmtree(self.dir / "run", ignore_errors=True)
            self.start_agent()

    def power_off(self) -> None:
        """Cut its power: the agent and the guests are gone at once, the files stay."""
        if self.on:
            self.on = False
            self.downs += 1
            self.cloud.auditor.host_went_down(self.name)
            if self.agent is not None:
                self.agent.kill()

    def start_agent(self) -> None:
        """Start the agent's process, if the host is on and none runs."""
        if self.on and (self.agent is None or not self.agent.alive):
            self.cloud.tell(self.name, "agent started")
            self.agent = self.cloud.start(f"agent {self.name}", "agent", self._agent, host=self)

    async def _agent(self, process: Process, bus: SimBus) -> None:
        await agent_service.run(settings.Settings(agent=self.conf), bus)


class SimCloud:
    """Everything that is in one run."""

    def __init__(self, seed: int, store: SimStore, root: Path) -> None:
        self.seed = seed
        self.store = store
        self.root = root
        self.mishaps = Mishaps(seed)
        self.mishaps.killer = self._killed
        self.loop = TimeLoop(self.mishaps.at_step)
        self.broker = SimBroker(self.mishaps)
        self.hosts: dict[str, Host] = {}
        self.services: dict[str, Process] = {}
        self.starters: dict[str, Callable[[], None]] = {}
        self.skew = 0.0
        self.rules: dict[str, Any] = {}
        self.auditor: Any = None
        self.witness: Any = None
        self.alarms: Callable[[], list[str]] = list
        self.api_bus: Any = None
        self.tell: Callable[[str, str], None] = lambda who, what: None

    # --- processes -----------------------------------------------------------------------------------

    def start(self, name: str, kind: str, main: Callable[..., Awaitable[None]], host: Host | None = None) -> Process:
        """Start a process with a bus of its own; if its main task ends, it is started again a little later."""
        process = Process(name, kind, host, skew=host.skew if host is not None else self.skew)
        bus = SimBus(self.broker, process, host)

        async def life() -> None:
            await bus.start()
            await main(process, bus)

        def ended(task: asyncio.Task[None]) -> None:
            if process.alive:
                error = None if task.cancelled() else task.exception()
                self.tell(name, f"ended by itself: {error!r}")
                if error is not None and not _is_of_the_world(error):
                    self.auditor.fail("internal error", f"{name} ended by itself: {error!r}")
                process.kill()
                self.loop.call_later(1.0, self._restart, process, context=inside(None))

        task = run_apart(self.loop, process, life())
        task.add_done_callback(ended, context=inside(None))
        return process

    def start_controller(self) -> None:
        """Start conductor, scheduler and api, each of them unless it runs."""
        for kind, main in (("conductor", self._conductor), ("scheduler", self._scheduler), ("api", self._api)):
            process = self.services.get(kind)
            if process is None or not process.alive:
                self.services[kind] = self.start(kind, kind, main)

    async def _conductor(self, process: Process, bus: SimBus) -> None:
        await Conductor(settings.Settings(conductor=self.rules["conductor"]), self.store, bus, lambda image: "").run()

    async def _scheduler(self, process: Process, bus: SimBus) -> None:
        down_after = self.rules["conductor"].service_down_after
        await Scheduler(settings.Scheduler(), down_after, self.store, bus).run()

    async def _api(self, process: Process, bus: SimBus) -> None:
        self.api_bus = bus
        await asyncio.Event().wait()

    def _killed(self, process: Process, where: str) -> None:
        """A crash was drawn: of the process, or of its whole host."""
        rng = self.mishaps.rng
        if process.host is not None and rng.random() < 0.3:
            self.tell(process.host.name, f"LOSES POWER {where} of its agent")
            self.mishaps.counts["host crashed"] += 1
            process.host.power_off()
            wait = rng.choice((1.0, 10.0, 60.0, 150.0)) * rng.random()
            self.loop.call_later(wait, process.host.power_on, context=inside(None))
        else:
            self.tell(process.name, f"CRASHES {where}")
            self.mishaps.counts[f"{process.kind} crashed"] += 1
            process.kill()
            wait = rng.choice((0.5, 5.0, 30.0)) * rng.random()
            self.loop.call_later(wait, self._restart, process, context=inside(None))

    def _restart(self, process: Process) -> None:
        if process.host is not None:
            process.host.start_agent()
        else:
            self.start_controller()

    # --- the ways between hosts ------------------------------------------------------------------------

    def way(self, source: Host, order: Any) -> None:
        """The way from a source to its target is needed: StepError when the target is away."""
        target = order.work.target
        peer = self.hosts.get(target.host) if target is not None else None
        if peer is not None and not peer.on:
            raise StepError(f"Host {peer.name} cannot be reached.")

    def spoil(self, order: Any) -> None:
        """Take the last line of a copy that has just arrived: the wire or a disk lied."""
        target = self.hosts[order.work.target.host]
        copy = HostDirectories(target.instances).incoming(order.server, order.attempt) / "disk-0"
        if target.on and copy.exists():
            self.tell(target.name, f"the copy of {order.server[:8]} is spoilt")
            copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:-1]))

    def reachable(self, path: Path) -> None:
        """Raise OSError for a file on a host that is without power: its disk is not there to be written."""
        inside_root = path.relative_to(self.root).parts if path.is_relative_to(self.root) else ()
        host = self.hosts.get(inside_root[0]) if inside_root else None
        if host is not None and not host.on:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))


def ports_of(cloud: SimCloud, real: Callable[..., Ports]) -> Callable[..., Ports]:
    """Wrap the agent's making of its ports, so that each call takes time and may fail."""

    def make(conf: settings.Agent, ledger: Ledger, *more: Any) -> Ports:
        process = CURRENT.get()
        assert process is not None
        ports, host = real(conf, ledger, *more), cloud.hosts[conf.host]
        host.ledger = ledger
        names = ("guests", "directories", "disks", "channels", "grants", "memory")
        return Ports(**{name: Port(host, name, getattr(ports, name)) for name in names})

    return make
