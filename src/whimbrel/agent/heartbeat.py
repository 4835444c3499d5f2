"""Says every few seconds, and at once when a guest changes, that this host is there and what it holds."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog

from whimbrel.agent import firmware, inventory, tpm
from whimbrel.agent.admission import Admission
from whimbrel.agent.ledger import Ledger, ServerRecord
from whimbrel.bus.port import Bus
from whimbrel.domain.errors import BusError, CannotTell, StepError
from whimbrel.domain.server import PowerState
from whimbrel.identity.enrolment import CLIENT_KEY, HOST_KEY, public_half
from whimbrel.migration.ports import World
from whimbrel.migration.presence import Channel, GuestReport, Heartbeat
from whimbrel.migration.protocols import PROTOCOLS
from whimbrel.ops.settings import Agent

TOPIC = "heartbeats"
SHORTEST_PAUSE = 0.2
"""Seconds between two heartbeats however often guests change."""
EMIT_LIMIT = 5.0

log = structlog.get_logger(__name__)


@runtime_checkable
class Watchable(Protocol):
    """A hypervisor that says by itself when a guest changes."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back, from any thread, after each change of a guest's state."""


@runtime_checkable
class Versioned(Protocol):
    """A hypervisor that knows its version."""

    def version(self) -> int:
        """Return the version as one number, major x 1,000,000 + minor x 1,000 + release."""


class Heart:
    """Composes heartbeats in a thread and emits them; one that is lost is followed by the next."""

    def __init__(self, settings: Agent, ledger: Ledger, world: World, bus: Bus, admission: Admission) -> None:
        self._settings = settings
        self._admission = admission
        self._ledger = ledger
        self._world = world
        self._bus = bus
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Beat for ever, the first time now."""
        self._loop = asyncio.get_running_loop()
        if isinstance(self._world.guests, Watchable):
            self._world.guests.on_change(self.beat_soon)
        while True:
            self._changed.clear()
            await self._beat()
            await asyncio.sleep(SHORTEST_PAUSE)
            try:
                async with asyncio.timeout(max(0.0, self._pause() - SHORTEST_PAUSE)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _pause(self) -> float:
        """An agent that waits to be admitted asks every second."""
        return (
            self._settings.heartbeat_interval
            if self._admission.admitted
            else min(1.0, self._settings.heartbeat_interval)
        )

    def beat_soon(self) -> None:
        """Beat without waiting for the interval to pass; from any thread."""
        if self._loop is not None and not self._loop.is_closed():  # later nobody is interested
            self._loop.call_soon_threadsafe(self._changed.set)

    async def _beat(self) -> None:
        try:
            heartbeat = await asyncio.to_thread(self.compose)
            async with asyncio.timeout(EMIT_LIMIT):
                await self._bus.emit(TOPIC, heartbeat)
        except (BusError, StepError, OSError, sqlite3.Error) as error:
            log.warning("no heartbeat was sent", reason=str(error) or type(error).__name__)

    def compose(self) -> Heartbeat:
        """Look at the host, its ledger and its guests; OSError or sqlite3.Error if they cannot be read."""
        settings = self._settings
        asked = self._admission.ask()
        room = inventory.take(settings)
        return Heartbeat(
            host=settings.host,
            address=settings.address,
            boot=self._ledger.boot,
            ledger=self._ledger.id,
            protocols={table.name: table.version for table in PROTOCOLS.values()},
            vcpus=room.vcpus,
            ram_mb=room.ram_mb,
            disk_gb=room.disk_gb,
            reserved_vcpus=settings.reserved_vcpus,
            reserved_ram_mb=settings.reserved_ram_mb,
            reserved_disk_gb=settings.reserved_disk_gb,
            cpu_ratio=settings.cpu_ratio,
            ram_ratio=settings.ram_ratio,
            disk_ratio=settings.disk_ratio,
            architecture=room.architecture,
            hypervisor="fake" if settings.hypervisor == "fake" else "QEMU",
            hypervisor_version=self._version(),
            root_disk=settings.root_disk,
            free_disk_gb=room.free_disk_gb,
            uptime=room.uptime,
            guests=self._guests(),
            admission=asked.admission,
            admitted=asked.admitted,
            lease_asked=asked.asked,
            lease_kept=asked.kept,
            composed=asked.composed,
            channel=channel_of(settings),
            uefi=settings.hypervisor == "fake" or not firmware.missing(settings),
            tpm=settings.hypervisor == "fake" or not tpm.missing(settings),
        )

    def _guests(self) -> tuple[GuestReport, ...]:
        """Return one line for each server that this host has; a hypervisor that is silent is asked only once.

        What is seen while a step is at work is not how the guest will be left, and a late heartbeat must not tell it.
        """
        lines: list[GuestReport] = []
        silent = False
        for seen in self._ledger.servers():
            if not self._has(seen):
                continue
            state: PowerState | None = PowerState.UNKNOWN
            if not silent and not seen.at_work:
                try:
                    state = self._world.guests.state(seen.server)
                except CannotTell:
                    silent = True
            interrupted = seen.was_interrupted(self._ledger.boot)
            granted = seen.grant_epoch or 0 if seen.sealed is None else 0
            shown = state or PowerState.STOPPED
            lines.append(GuestReport(seen.server, shown, seen.epoch, seen.number, interrupted, granted))
        return tuple(lines)

    def _has(self, seen: ServerRecord) -> bool:
        """Return whether a server may run here, lives here, or was sealed by a move that may have come to nothing."""
        if seen.sealed is None:
            return seen.grant_epoch is not None or self._world.directories.is_live(seen.server)
        directories = self._world.directories
        return directories.is_live(seen.server) or directories.is_sealed(seen.server, seen.sealed)

    def _version(self) -> int:
        guests = self._world.guests
        try:
            return guests.version() if isinstance(guests, Versioned) else 0
        except CannotTell:
            return 0


def channel_of(settings: Agent) -> Channel | None:
    """Return how this host is reached and known; None while it is not enrolled. OSError if its keys cannot be read."""
    directory = Path(settings.channel_dir)
    host_key, key = public_half(directory, HOST_KEY), public_half(directory, CLIENT_KEY)
    return Channel(settings.channel_port, host_key, key) if host_key and key else None
