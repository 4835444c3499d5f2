"""Lets guests run on that QEMU has paused because their host's disk was full, as soon as there is room again.

Such a guest has lost nothing: the write that found no room is made again. What must hold: only a guest that this host
may run is let run, and not while a step is at work on it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import Protocol, runtime_checkable

import structlog

from whimbrel.agent.admission import Admission
from whimbrel.agent.ledger import Ledger, ServerRecord
from whimbrel.domain.errors import StepError
from whimbrel.migration.ports import World
from whimbrel.ops.settings import Agent

LOOK = 5.0
"""Seconds between two looks; a guest that finds no room once more is paused at once, and tried again at the next."""
ROOM = 32 << 20
"""Bytes that must be free: some hundred clusters of a disk."""

log = structlog.get_logger(__name__)


@runtime_checkable
class Pausing(Protocol):
    """A hypervisor that pauses a guest whose disk finds no room."""

    def starved(self) -> list[str]:
        """Return the guests that it has paused for that reason."""


class Reviver:
    """Looks every few seconds whether a starved guest can run on."""

    def __init__(self, settings: Agent, ledger: Ledger, world: World, admission: Admission) -> None:
        self._settings = settings
        self._ledger = ledger
        self._world = world
        self._admission = admission

    async def run(self) -> None:
        """Look for ever; returns at once where the hypervisor pauses nothing by itself."""
        while isinstance(self._world.guests, Pausing):
            await asyncio.sleep(LOOK)
            try:
                await asyncio.to_thread(self.look)
            except (StepError, OSError, sqlite3.Error) as error:
                log.warning("starved guests were not looked for", reason=str(error) or type(error).__name__)

    def look(self) -> None:
        """Let each starved guest run on, if there is room; raise StepError, OSError or sqlite3.Error."""
        guests = self._world.guests
        disk = os.statvfs(self._settings.instances_dir)
        if not isinstance(guests, Pausing) or disk.f_bavail * disk.f_frsize < ROOM:
            return
        for server in guests.starved():
            seen = self._ledger.server(server)
            if seen is not None and self._may_run(seen):
                log.warning("there is room again: a guest that found none runs on", server=server)
                guests.resume(server)

    def _may_run(self, seen: ServerRecord) -> bool:
        granted = seen.grant_boot == self._ledger.boot and seen.sealed is None
        return granted and not seen.at_work and self._admission.may_run()
