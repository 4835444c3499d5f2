"""What is on this host, by looking: directories, guests, processes, and what the ledger says of each server.

It is the host's half of an audit. It changes nothing and concludes nothing; files that go while it looks are simply
not there.
"""

from __future__ import annotations

from pathlib import Path

from whimbrel.agent.directories import HostDirectories, Survey, held_bytes
from whimbrel.agent.disks.frames import CACHE
from whimbrel.agent.ledger import Ledger, ServerRecord
from whimbrel.agent.processes import start_time
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import PowerState
from whimbrel.migration.ports import World
from whimbrel.migration.presence import Inspection, SeenDirectory, SeenServer
from whimbrel.ops.settings import Agent

MOST = 5000
"""Servers in one answer, because a message is bounded; a host has hundreds at most."""
MOST_NAMES = 100
"""Names of files and processes of each kind in one answer."""


def inspect(settings: Agent, ledger: Ledger, world: World) -> Inspection:
    """Look at everything; StepError or sqlite3.Error when the directory or the ledger cannot be read."""
    fault, known = "", {}
    try:
        known = world.guests.known()
    except StepError as error:
        fault = str(error)
    survey = HostDirectories(settings.instances_dir).survey()
    records = {record.server: record for record in ledger.servers()}
    directories = _directories(survey)
    present = sorted(known.keys() | directories.keys())
    if len(present) > MOST:
        fault = fault or f"Host {settings.host} has {len(present)} servers and guests, one answer holds {MOST}."
    parts = sorted(path.name for path in (Path(settings.instances_dir) / CACHE).glob("*.part"))
    return Inspection(
        host=settings.host,
        instances_dir=str(settings.instances_dir),
        fault=fault,
        servers=tuple(
            _seen(server, known.get(server), directories.get(server, ()), records.get(server), ledger.boot)
            for server in present[:MOST]
        ),
        leftovers=tuple(
            _readable(name) for name in [*survey.leftovers, *(f"{CACHE}/{part}" for part in parts)][:MOST_NAMES]
        ),
        strange=tuple(_readable(name) for name in survey.strange[:MOST_NAMES]),
        children=tuple(_children(ledger)[:MOST_NAMES]),
    )


def _directories(survey: Survey) -> dict[str, tuple[SeenDirectory, ...]]:
    found: dict[str, tuple[SeenDirectory, ...]] = {}
    for server, state, attempt, path in survey.servers:
        seen = SeenDirectory(state, attempt, held_bytes(path))
        if path.is_dir():  # else it went, or got another name, while we looked
            found[server] = (*found.get(server, ()), seen)
    return found


def _seen(
    server: str,
    power: PowerState | None,
    directories: tuple[SeenDirectory, ...],
    record: ServerRecord | None,
    boot: str,
) -> SeenServer:
    if record is None:
        return SeenServer(server, power, directories)
    granted = record.sealed is None and record.grant_epoch is not None and record.grant_boot == boot
    return SeenServer(server, power, directories, record.epoch, record.number, record.grant_epoch, granted)


def _children(ledger: Ledger) -> list[str]:
    alive = (child for child in ledger.children() if start_time(child.pid) == child.start_time)
    return [f"pid {child.pid}: {child.purpose}" for child in alive]


def _readable(name: str) -> str:
    """A file's name may be any bytes; a message is text."""
    return name.encode("utf-8", "replace").decode()
