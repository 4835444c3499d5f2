"""Leave to take orders, and the lease to run guests: both are asked for in heartbeats and given by a conductor.

What must hold: an agent that has started, or whose lease has run out, obeys nothing before a conductor has told it
how its servers stand; what waited in its queue meanwhile may be from before another host was given one of them.
Where a keeper enforces leases, leave and lease come together: so a host that may obey has a lease that has not run
out. A lease counts from when it was asked for, on CLOCK_BOOTTIME, which goes on while a host sleeps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import structlog

from whimbrel.agent.directories import write_durably
from whimbrel.agent.ledger import Ledger
from whimbrel.migration.presence import Lease, Welcome
from whimbrel.ops import clock, ids
from whimbrel.ops.settings import Agent

LEASE_FILE = "lease.json"
KEEPER_FILE = "keeper.json"
KEEPER_BEAT = 5.0
"""A keeper that has not said for so many seconds that it is there is not there."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Question:
    """What a heartbeat says and asks of admission and lease, all of one moment; times are CLOCK_BOOTTIME, seconds."""

    admission: str
    admitted: bool
    composed: float
    asked: float | None
    kept: bool


class Admission:
    """What this agent may do now; called from any thread."""

    def __init__(self, settings: Agent, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._directory = Path(settings.run_dir)
        self._lock = Lock()
        # An earlier run of the agent in this boot may have had a lease, and the keeper ends the guests when it is over.
        self._deadline = read_number(self._directory / LEASE_FILE, "deadline")
        self.id = ids.new_uuid()
        self.admitted = False

    def may_obey(self) -> bool:
        """Return whether orders may be taken now, after a `check`."""
        self.check()
        return self.admitted

    def may_run(self) -> bool:
        """Return whether guests may run here now; only looks, so that it can be asked while the ledger is written."""
        return self.admitted and not self._has_run_out(clock.boottime())

    def check(self) -> None:
        """Ask to be admitted again if the lease has run out: the keeper has ended the guests, others may have them."""
        with self._lock:
            self._check(clock.boottime())

    def welcome(self, message: Welcome) -> None:
        """Take in how each server stands, and orders from now on; a Welcome to an earlier question is ignored."""
        with self._lock:
            now = clock.boottime()
            self._check(now)
            if message.admission != self.id or self.admitted:
                return
            if message.lease is not None:
                if now > _end(message.lease) or not self._keep(_end(message.lease)):
                    self.id = ids.new_uuid()  # it came too late to be kept, so this is asked anew
                    return
            elif self._keeper_is_here(now):
                self.id = ids.new_uuid()  # a keeper has come since this was asked; it shall have a lease to keep
                return
            else:
                self._forget_lease()
            self._ledger.catch_up(message.servers)
            self.admitted = True
        log.info("admitted", servers=len(message.servers), lease=message.lease is not None)

    def renew(self, lease: Lease) -> None:
        """Write down for the keeper until when guests may run here; an answer to an earlier question is ignored."""
        with self._lock:
            now = clock.boottime()
            self._check(now)
            if self.admitted and self._settings.lease and lease.admission == self.id and now <= _end(lease):
                self._keep(_end(lease))

    def ask(self) -> Question:
        """Return what the next heartbeat is to say; a lease is asked for while there is a keeper to enforce it."""
        with self._lock:
            now = clock.boottime()
            self._check(now)
            asks = self._keeper_is_here(now)
            kept = asks and self._deadline is not None and self._keeper_number("deadline") is not None
            return Question(self.id, self.admitted, now, now if asks else None, kept)

    def _check(self, now: float) -> None:
        if self._has_run_out(now):
            self._run_out()

    def _has_run_out(self, now: float) -> bool:
        return self._deadline is not None and now > self._deadline

    def _run_out(self) -> None:
        log.error("the lease has run out; guests are not to run here until it is renewed")
        self._deadline = None
        self.id, self.admitted = ids.new_uuid(), False
        self._ledger.suspend_grants()

    def _keep(self, deadline: float) -> bool:
        """Give the keeper a later deadline; False if the one before passed while that was written."""
        before = self._deadline
        if before is not None and deadline <= before:
            return True
        write_lease(self._directory, deadline)
        if self._has_run_out(clock.boottime()):
            self._run_out()  # the keeper has looked in between, perhaps
            return False
        self._deadline = deadline
        return True

    def _forget_lease(self) -> None:
        """No keeper asks for one, and the conductor knows: one that comes later must find none that has run out."""
        self._deadline = None
        (self._directory / LEASE_FILE).unlink(missing_ok=True)

    def _keeper_is_here(self, now: float) -> bool:
        if not self._settings.lease:
            return False
        beat = self._keeper_number("beat")
        if beat is not None and now - beat <= KEEPER_BEAT:
            return True
        log.error("no lease is asked for, because no keeper runs here; start `whimbrel keeper`")
        return False

    def _keeper_number(self, name: str) -> float | None:
        return read_number(self._directory / KEEPER_FILE, name)


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


def _end(lease: Lease) -> float:
    return lease.asked + lease.seconds
