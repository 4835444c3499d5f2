"""What goes wrong, drawn from the seed: each seed has its own mixture, so that rare ones meet each other too.

`at_step` is asked before every callback of every process (that is, at every await), `point` before and after every
durable write, `fate` for every message. Faults that last (a partition, a host without power) are the world's to make;
this module only says how often each comes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.sim.timeloop import CURRENT, Crash, Process
from whimbrel.domain.errors import CannotTell, StepError

CRASH_AT_STEP = {"agent": 1 / 1500, "conductor": 1 / 2500, "scheduler": 1 / 150, "api": 1 / 60}
CRASH_AT_WRITE = {"agent": 1 / 60, "conductor": 1 / 120, "api": 1 / 25}
LOST, TWICE, LATE = 0.08, 0.08, 0.2
LATENESS = 120.0
SPOILT = 0.3
WEAK_START = 0.4


@dataclass(frozen=True)
class Lasting:
    """A fault with an end: how many seconds lie between two of it, and how long it lasts (shortest, longest)."""

    name: str
    every: float
    lasts: tuple[float, float]


LASTING = (
    Lasting("partition", 60, (2, 130)),
    Lasting("power cut", 60, (1, 200)),
    Lasting("agent killed", 50, (0.1, 90)),
    Lasting("conductor killed", 60, (0.1, 60)),
    Lasting("scheduler killed", 90, (1, 80)),
    Lasting("clock jump", 60, (0, 0)),
    Lasting("full disk", 60, (2, 60)),
    Lasting("slow disk", 60, (5, 100)),
    Lasting("bad disk", 60, (2, 40)),
    Lasting("silent hypervisor", 60, (2, 100)),
    Lasting("start fails", 60, (2, 90)),
    Lasting("database away", 80, (1, 30)),
)
FLEETING = ("lost", "twice", "late", "crash at await", "crash at write", "spoilt copy")


class Mishaps:
    """The faults of one seed. `calm` ends them all."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"faults {seed}")
        kinds = [row.name for row in LASTING] + list(FLEETING)
        share = self.rng.choice((0.15, 0.35, 0.7))
        self.kinds = {kind for kind in kinds if self.rng.random() < share}
        self.lasting = [row for row in LASTING if row.name in self.kinds]
        self.counts: Counter[str] = Counter()
        self.active = True
        self.database_away = False
        self.killer: Any = None
        self.slow_until = 0.0

    def calm(self) -> None:
        """From now on nothing goes wrong any more."""
        self.active = False
        self.database_away = False

    def _chance(self, kind: str, probability: float) -> bool:
        if not self.active or kind not in self.kinds or self.rng.random() >= probability:
            return False
        self.counts[kind] += 1
        return True

    # --- crashes -----------------------------------------------------------------------------------

    def at_step(self, process: Process) -> bool:
        """Decide whether the process dies here, between two of its steps."""
        rate = CRASH_AT_STEP.get(process.kind)
        if rate is None or not self._chance("crash at await", rate):
            return False
        self.killer(process, "at an await")
        return True

    def point(self, what: str) -> None:
        """A durable write is about to be made, or was just made: the process may die here."""
        process = CURRENT.get()
        if process is None:
            return
        if not process.alive:
            raise Crash
        rate = CRASH_AT_WRITE.get(process.kind)
        if rate is not None and self._chance("crash at write", rate):
            self.killer(process, f"at {what}")
            raise Crash

    # --- the disk and the hypervisor of the host of the running process -----------------------------

    def file_write(self, what: str) -> None:
        """A file is about to be written or renamed."""
        self.point(what)
        process = CURRENT.get()
        host = process.host if process is not None else None
        if host is None:
            return
        if host.full_disk and ("write" in what or "mkdir" in what):
            self.counts["write refused: no space"] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if host.bad_disk and self.rng.random() < 0.2:
            self.counts["write refused: i/o error"] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def ledger_write(self) -> None:
        """A transaction of the ledger is about to begin."""
        self.point("a ledger transaction")
        process = CURRENT.get()
        host = process.host if process is not None else None
        if host is None:
            return
        if host.full_disk and self.rng.random() < 0.5:
            raise sqlite3.OperationalError("database or disk is full")
        if host.bad_disk and self.rng.random() < 0.1:
            raise sqlite3.OperationalError("disk I/O error")

    def hypervisor(self, host: Any, call: str) -> None:
        """The hypervisor is about to be asked for something."""
        if host.silent_hypervisor:
            self.counts["hypervisor did not answer"] += 1
            raise CannotTell("The hypervisor does not answer.")
        if host.start_fails and call in ("create_paused", "resume") and self.rng.random() < WEAK_START:
            self.counts["start refused"] += 1
            raise StepError("The hypervisor could not start the guest.")

    def spoils(self) -> bool:
        """Decide whether a copy that was sent whole arrives otherwise."""
        return self._chance("spoilt copy", SPOILT)

    def slowness(self, host: Any) -> float:
        """Return how long a step waits for its disk or hypervisor here, in seconds.

        A wait that begins on a slow disk lasts as long as it was to, although the calm may come meanwhile.
        """
        if host.slow_disk:
            seconds = self.rng.choice((0.5, 3.0, 20.0, 70.0)) * self.rng.random()
            self.slow_until = max(self.slow_until, asyncio.get_running_loop().time() + seconds)
            return seconds
        return 0.01 + 0.2 * self.rng.random() ** 4

    # --- messages: the port `Faults` of the local bus -----------------------------------------------

    def fate(self, destination: str, data: bytes) -> Sequence[float]:
        """Return the delay of each copy: none, one or two."""
        usual = 0.001 + 0.01 * self.rng.random()
        if self._chance("lost", LOST):
            return ()
        if self._chance("late", LATE):
            usual += LATENESS * self.rng.random() ** 3
        if self._chance("twice", TWICE):
            return usual, usual + LATENESS * self.rng.random() ** 2
        return (usual,)
