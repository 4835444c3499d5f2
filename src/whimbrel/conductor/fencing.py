"""Looks for proofs that silent hosts cannot run guests: asks fence devices, and counts leases that ran out.

"Unknown" is never "dead". A fence device proves only what it says after it was asked; a lease only what this process
has seen by its own clock, for as long as the lease, the hosts' clocks' error and the keeper's time to kill.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Connection, select

from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.domain.migration import Witness
from whimbrel.ops import clock, settings
from whimbrel.store import fencing
from whimbrel.store.engine import Store
from whimbrel.store.tables import hosts

CLOCK_ERROR = 0.02
"""How much slower than ours a host's clock may go: far more than any clock that keeps time."""
KILL_SECONDS = 10.0
"""A keeper looks twice a second; this is how long it may take to kill every guest."""

_log = structlog.get_logger()

Outbox = list[tuple[int, str, object]]


class Power(enum.Enum):
    """What a fence device says of a host."""

    ON = enum.auto()
    OFF = enum.auto()
    UNKNOWN = enum.auto()


@dataclass
class Watched:
    """A host's lease as this process saw it: the newest renewal's number and when it was first seen (monotonic)."""

    number: int
    boot: str
    since: float


class Fencer:
    """One per conductor; `look` is called each second."""

    def __init__(self, conf: settings.Fencing, conductor: settings.Conductor, store: Store) -> None:
        self._conf = conf
        self._conductor = conductor
        self._store = store
        self._watched: dict[str, Watched] = {}
        self._asked: dict[str, float] = {}

    async def look(self) -> Outbox:
        """Find a proof for each host that one is waited for; return the messages that the proofs give rise to."""
        awaited = await self._store.read(_look)
        outbox: Outbox = []
        self._forget({host.name for host in awaited.rows})
        for host in awaited.rows:
            run_out = self._watch(host)
            if host.name not in awaited.hosts:
                continue
            if run_out:
                reason = f"its lease of {host.seconds:g} s has run out"
                outbox += await self._give(host.name, Witness.LEASE, reason, host.boot)
            elif host.name in self._conf.hosts:
                outbox += await self._ask(host.name, host.boot, cut=awaited.hosts[host.name] and self._conf.power_off)
        return outbox

    def _watch(self, host: _Leased) -> bool:
        """Return whether this host's lease must have run out, going by what this process has seen itself.

        Only a lease that the host said last that its keeper keeps: one may have been lost on its way.
        """
        seen, now = self._watched.get(host.name), clock.monotonic()
        if seen is None or (seen.number, seen.boot) != (host.number, host.boot):
            self._watched[host.name] = Watched(host.number, host.boot, now)
            return False
        enough = host.seconds * (1 + CLOCK_ERROR) + KILL_SECONDS
        return host.kept and now - seen.since > enough

    def _forget(self, known: set[str]) -> None:
        for table in (self._watched, self._asked):
            for name in [name for name in table if name not in known]:
                del table[name]

    async def _ask(self, name: str, boot: str, *, cut: bool) -> Outbox:
        """Ask the host's fence device, at most every so often; cut the power first if that is wanted."""
        now = clock.monotonic()
        if now - self._asked.get(name, -self._conf.ask_again_after) < self._conf.ask_again_after:
            return []
        self._asked[name] = now
        device = self._conf.hosts[name]
        power = await ask(device, "status", self._conf.timeout)
        if power is not Power.OFF and cut:
            _log.warning("cutting a host's power", on=name, agent=device.agent)
            await ask(device, "off", self._conf.timeout)
            power = await ask(device, "status", self._conf.timeout)
        _log.info("fence device asked", on=name, agent=device.agent, power=power.name)
        if power is not Power.OFF:
            return []
        return await self._give(name, Witness.FENCE_AGENT, f"{Path(device.agent).name} says that it is off", boot)

    async def _give(self, name: str, witness: Witness, reason: str, boot: str) -> Outbox:
        quiet = clock.now() - self._conductor.service_down_after
        try:
            outbox = await self._store.write(fencing.give, name, witness, reason, boot=boot, silent_since=quiet)
        except (Conflict, NotFound) as error:
            _log.info("no proof after all", on=name, reason=str(error))
            return []
        _log.warning("host is proved not to run guests", on=name, by=witness, reason=reason)
        return outbox


@dataclass(frozen=True)
class _Leased:
    """A host: how often it was given a lease, of how many seconds at most, and whether it said last that it has one."""

    name: str
    boot: str
    number: int
    seconds: float
    kept: bool


@dataclass(frozen=True)
class _Awaited:
    """Every host that has a lease or is waited for, and those that are waited for (whether by an evacuation)."""

    rows: list[_Leased]
    hosts: dict[str, bool]


def _look(tx: Connection) -> _Awaited:
    waited = {name: hard for name, hard in fencing.awaited(tx).items() if fencing.of(tx, name) is None}
    h = hosts.c
    query = select(h.name, h.boot, h.lease_number, h.lease_seconds, h.lease_kept)
    rows = tx.execute(query.where((h.lease_number > 0) | h.name.in_(waited)))
    return _Awaited([_Leased(*row) for row in rows], waited)


async def ask(device: settings.FenceDevice, action: str, seconds: float) -> Power:
    """Run a fence agent with its options on standard input; only its own words count, and a time-out is unknown.

    The interface is that of the ClusterLabs fence agents: for `status`, exit code 0 is on and 2 is off.
    """
    try:
        given = "".join(f"{key}={_value(value)}\n" for key, value in {**device.options, "action": action}.items())
        process = await asyncio.create_subprocess_exec(
            device.agent,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except (OSError, UnicodeDecodeError) as error:
        _log.error("a fence agent cannot be run", agent=device.agent, reason=str(error))
        return Power.UNKNOWN
    try:
        async with asyncio.timeout(seconds):
            await process.communicate(given.encode())
    except (TimeoutError, OSError):
        return Power.UNKNOWN
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if action != "status":
        return Power.UNKNOWN
    return {0: Power.ON, 2: Power.OFF}.get(process.returncode or 0, Power.UNKNOWN)


def _value(value: str) -> str:
    """Return an option's value; `@/path` stands for the first line of that file, so no secret is in the settings."""
    if not value.startswith("@"):
        return value
    return Path(value[1:]).read_text(encoding="utf-8").partition("\n")[0]
