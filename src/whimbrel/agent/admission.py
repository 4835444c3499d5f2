"""Leave to take orders, and the lease to run guests: both are asked for in heartbeats and given by a conductor.

What must hold: an agent that has started, or whose lease has run out, obeys nothing before a conductor has told it
how its servers stand; what waited in its queue meanwhile may be from before another host was given one of them.
A lease counts from when it was asked for, on CLOCK_BOOTTIME, which goes on while a host sleeps.
"""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from whimbrel.agent.directories import write_durably
from whimbrel.agent.ledger import Ledger
from whimbrel.migration.messages import Lease, Welcome
from whimbrel.ops import clock, ids
from whimbrel.ops.settings import Agent

LEASE_FILE = "lease.json"
KEEPER_FILE = "keeper.json"
KEEPER_BEAT = 5.0
"""A keeper that has not said for so many seconds that it is there is not there."""

log = structlog.get_logger(__name__)


class Admission:
    """What this agent may do now. Called from threads, one call at a time mattering."""

    def __init__(self, settings: Agent, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._directory = Path(settings.run_dir)
        self._deadline: float | None = None
        self.id = ids.new_uuid()
        self.admitted = False

    def may_obey(self) -> bool:
        """Return whether orders may be taken now."""
        self.check()
        return self.admitted

    def welcome(self, message: Welcome) -> None:
        """Take in how each server stands, and orders from now on; a Welcome to an earlier question is ignored."""
        if message.admission != self.id or self.admitted:
            return
        self._ledger.catch_up(message.servers)
        self.admitted = True
        log.info("admitted", servers=len(message.servers))

    def renew(self, lease: Lease) -> None:
        """Write down for the keeper until when guests may run here; an answer to an earlier question is ignored."""
        if not self.may_obey() or not self._settings.lease or lease.admission != self.id:
            return
        deadline = lease.asked + lease.seconds
        if self._deadline is None or deadline > self._deadline:
            self._deadline = deadline
            write_lease(self._directory, deadline)

    def check(self) -> None:
        """Ask to be admitted again if the lease has run out: the keeper has ended the guests, others may have them."""
        if self._deadline is None or clock.boottime() <= self._deadline:
            return
        log.error("the lease has run out; guests are not to run here until it is renewed")
        self._deadline = None
        self._ledger.suspend_grants()
        self.id, self.admitted = ids.new_uuid(), False

    def lease_asked(self) -> float | None:
        """Return now on the host's clock if a renewal is to be asked for: there is a keeper that would enforce it."""
        if not (self._settings.lease and self.admitted):
            return None
        now = clock.boottime()
        beat = read_number(self._directory / KEEPER_FILE, "beat")
        if beat is None or now - beat > KEEPER_BEAT:
            log.error("no lease is asked for, because no keeper runs here; start `whimbrel keeper`")
            return None
        return now


def write_lease(directory: Path, deadline: float) -> None:
    """Write until when guests may run on this host, in seconds of CLOCK_BOOTTIME."""
    write_durably(directory / LEASE_FILE, json.dumps({"deadline": deadline}))


def read_number(path: Path, name: str) -> float | None:
    """Return a number from one of the small files that agent and keeper leave for each other; None without one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None
