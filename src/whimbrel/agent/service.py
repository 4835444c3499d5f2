"""One host's agent as a process: what it is made of, in which order it starts, and how it stops.

At a start nothing is begun before the ledger is open and the processes of the last run are ended; then each order
without an end is looked at, and only then new ones are taken. At a stop the guests run on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog

from whimbrel.agent import console
from whimbrel.agent.admission import Admission
from whimbrel.agent.children import end_children
from whimbrel.agent.directories import HostDirectories
from whimbrel.agent.disks.cache import collect_parts
from whimbrel.agent.disks.frames import CACHE
from whimbrel.agent.executor import Executor
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.heartbeat import Heart
from whimbrel.agent.inspection import inspect
from whimbrel.agent.ledger import Ledger, boot_marker
from whimbrel.agent.outbox import Relay
from whimbrel.agent.starved import Reviver
from whimbrel.bus import queues
from whimbrel.bus.port import Bus
from whimbrel.domain.errors import BusError, SettingsError, StepError, Unavailable
from whimbrel.migration.messages import Ask, Console, Foresee, Foresight, Order, ReadConsole, Way
from whimbrel.migration.ports import World
from whimbrel.migration.presence import Inspect, Inspection, Lease, Welcome
from whimbrel.ops.settings import Agent, Settings

HOLD = 30.0
"""Seconds that a stopping agent sits on a message that it will not take; the bus is closed long before."""

log = structlog.get_logger(__name__)


@runtime_checkable
class TakesPasses(Protocol):
    """Channels that need leave to be opened."""

    def keep_pass(self, order: Order) -> None:
        """Remember the pass that came with an order, or with a question after one."""


async def run(settings: Settings, bus: Bus) -> None:
    """Serve this host over a started bus until the task is cancelled."""
    if settings.agent is None:
        raise SettingsError("The settings have no [agent] table; an agent needs at least host and address.")
    agent = settings.agent
    ledger = await asyncio.to_thread(_open, agent)
    try:
        await _serve(agent, bus, ledger)
    finally:
        ledger.close()


def world(settings: Agent, ledger: Ledger, may_run: Callable[[], bool]) -> World:
    """Put together what steps on this host may touch; SettingsError if the hypervisor is not one we know.

    Each kind is imported only where it is used: a fake agent needs no libvirt.
    """
    grants = LedgerGrants(ledger, may_run)
    directories = HostDirectories(settings.instances_dir)
    if settings.hypervisor == "fake":
        from whimbrel.agent.disks.fake import FakeChannels, FakeDisks
        from whimbrel.agent.guests.fake import FakeGuests, FakeMemory

        fake = FakeGuests(settings, ledger.boot)
        return World(fake, directories, FakeDisks(settings), FakeChannels(settings), grants, FakeMemory(fake))
    if settings.hypervisor == "libvirt":
        from whimbrel.agent.disks.channel import SshChannels
        from whimbrel.agent.disks.store import HostDisks
        from whimbrel.agent.guests.connection import binding
        from whimbrel.agent.guests.libvirt import LibvirtGuests
        from whimbrel.agent.guests.memory import LibvirtMemory

        binding()  # a host without it should say so now, not at its first order
        hypervisor = LibvirtGuests(settings)
        channels = SshChannels(settings, ledger)
        disks = HostDisks(settings, channels, hypervisor.ready, hypervisor.log)
        return World(hypervisor, directories, disks, channels, grants, LibvirtMemory(settings, hypervisor, channels))
    raise SettingsError(f"agent.hypervisor {settings.hypervisor!r} is neither libvirt nor fake.")


def _open(agent: Agent) -> Ledger:
    """Open the ledger, then end and remove what the last run left half done."""
    Path(agent.instances_dir).mkdir(parents=True, exist_ok=True, mode=0o711)
    ledger = Ledger(agent.state_dir, boot_marker(agent.run_dir))
    end_children(ledger)
    HostDirectories(agent.instances_dir).collect_trash()
    collect_parts(Path(agent.instances_dir) / CACHE)
    return ledger


async def _serve(agent: Agent, bus: Bus, ledger: Ledger) -> None:
    relay = Relay(ledger, bus)
    admission = Admission(agent, ledger)
    parts = world(agent, ledger, admission.may_run)
    executor = Executor(agent.host, ledger, parts, relay, agent.stall_timeout)
    heart = Heart(agent, ledger, parts, bus, admission)

    async def look() -> Inspection:
        """Tell what is here, and let a heartbeat say the same, so that the conductor's books are no older."""
        heart.beat_soon()
        return await asyncio.to_thread(inspect, agent, ledger, parts)

    inbox = Inbox(agent, executor, admission, heart, look, parts)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.run())
            await executor.recover()
            await bus.consume(queues.agent(agent.host), inbox.take)
            group.create_task(heart.run())
            group.create_task(Reviver(agent, ledger, parts, admission).run())
            log.info("agent started", boot=ledger.boot, ledger=ledger.id, hypervisor=agent.hypervisor)
    finally:
        await executor.close()
        log.info("agent stopped")


class Inbox:
    """What the agent's queue brings, and what becomes of it."""

    def __init__(
        self,
        agent: Agent,
        executor: Executor,
        admission: Admission,
        heart: Heart,
        look: Callable[[], Awaitable[Inspection]],
        parts: World,
    ) -> None:
        self._agent = agent
        self._executor = executor
        self._admission = admission
        self._heart = heart
        self._look = look
        self._channels = parts.channels if isinstance(parts.channels, TakesPasses) else None
        self._disks = parts.disks

    async def take(self, message: object) -> Console | Foresight | Inspection | None:
        """Take one message; once this returns, it may be acknowledged. Only questions have an answer."""
        if self._executor.closing:
            await asyncio.sleep(HOLD)  # kept without an acknowledgement, it comes to the next agent
            raise Unavailable("The agent is stopping.")
        match message:
            case Order() | Ask(Order()):
                order = message if isinstance(message, Order) else message.order
                self._check_host(order)
                if self._channels is not None:
                    self._channels.keep_pass(order)
                structlog.contextvars.bind_contextvars(
                    server=order.server, migration=order.migration, step=order.step, request_id=order.request_id
                )
                if order is not message:
                    await self._executor.ask(order)
                elif self._admission.may_obey():
                    await self._executor.obey(order)
                else:  # it may be from before another host was given the server; what still counts is sent again
                    log.info("an order came before this agent was admitted", number=order.number)
                return None
            case Welcome() | Lease() if message.host == self._agent.host:
                await asyncio.to_thread(self._take_leave, message)
                return None
            case ReadConsole():
                where = self._agent.instances_dir
                return Console(await asyncio.to_thread(console.read, where, message.server, message.lines))
            case Foresee():
                return await asyncio.to_thread(self._foresee, message)
            case Inspect():
                return await self._look()
        raise BusError(f"An agent does not take {type(message).__name__}.")

    def _foresee(self, question: Foresee) -> Foresight:
        try:
            return self._disks.foresee(question)
        except StepError as error:
            return Foresight(Way.NONE, str(error), 0)

    def _take_leave(self, message: Welcome | Lease) -> None:
        if isinstance(message, Welcome):
            self._admission.welcome(message)
            self._heart.beat_soon()
        else:
            self._admission.renew(message)

    def _check_host(self, order: Order) -> None:
        if order.host != self._agent.host:
            raise BusError(f"Order {order.number} is for host {order.host}, this is {self._agent.host}.")
