"""Reads the guest's own testimony: what its console said on each host, and when, by this machine's clock.

The lab's guest prints a record's number only once the record is on its disk, and reads all of them back at every
boot. So two consoles tell, without trusting Whimbrel, whether a move has lost, torn or repeated a write.
"""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from whimbrel.lab import Lab
from whimbrel.lab.processes import wait_until
from whimbrel.ops import clock

LOOK_EVERY = 0.01
_NUMBERS = re.compile(rb"(\w+)=(\d+)")


@dataclass(frozen=True)
class Record:
    """A record's number, and when its line was seen."""

    number: int
    at: float


@dataclass
class Boot:
    """What one boot said: the records that it found (total, intact, torn, bad, last), and those it wrote.

    `ballast` is the bulk of the data behind them: `mib` of it, `bad` of them damaged.
    """

    found: dict[str, int]
    ballast: dict[str, int] | None = None
    ready: bool = False
    first: Record | None = None
    last: Record | None = None

    def proves(self, before: Boot) -> bool:
        """Return whether every record that an earlier boot said to be durable is here, whole, and is gone on from."""
        whole = self.found["torn"] == 0 and self.found["bad"] == 0 and self.found["intact"] == self.found["total"]
        complete = before.last is not None and self.found["last"] >= before.last.number
        goes_on = self.first is not None and self.first.number == self.found["last"] + 1
        return whole and complete and goes_on and self._holds_ballast_of(before)

    def _holds_ballast_of(self, before: Boot) -> bool:
        """Return whether the bulk of the data is here and whole, if there was any."""
        if before.ballast is None:
            return True
        return self.ballast is not None and (self.ballast["mib"], self.ballast["bad"]) == (before.ballast["mib"], 0)


class Console:
    """One host's console of the server, read as it grows. It stays open when its directory is renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._inode = 0
        self._part = b""
        self.boots: list[Boot] = []

    def read(self) -> None:
        """Take in the lines that have come."""
        self._follow()
        if self._file is None:
            return
        content = self._part + self._file.read()
        *lines, self._part = content.split(b"\n")
        for line in lines:
            self._take(line.strip())

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _follow(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            there = self._path.stat().st_ino
            if self._file is None or there != self._inode:
                self.close()
                self._file, self._part, self._inode = self._path.open("rb"), b"", there

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"WRITER "):
            return
        numbers = {name.decode(): int(value) for name, value in _NUMBERS.findall(line)}
        kind = line.split()[1]
        if kind == b"VERIFY":
            self.boots.append(Boot(numbers))
        elif self.boots and kind == b"FILL":
            self.boots[-1].ballast = numbers
        elif self.boots and kind == b"READY":
            self.boots[-1].ready = True
        elif self.boots and kind.startswith(b"seq="):
            self.boots[-1].last = Record(numbers["seq"], clock.monotonic())
            self.boots[-1].first = self.boots[-1].first or self.boots[-1].last


class Witness:
    """Watches a server's consoles on all hosts of a lab from a thread of its own."""

    def __init__(self, lab: Lab, server: str) -> None:
        self._consoles = {
            name: Console(host.dir / "instances" / server / "console.log") for name, host in lab.hosts.items()
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for console in self._consoles.values():
            console.close()

    def boots(self, host: str) -> int:
        """Return how often the guest has booted on this host."""
        return len(self._consoles[host].boots)

    def newest(self, host: str) -> Boot:
        """Return the guest's newest boot on this host; IndexError when there was none."""
        return self._consoles[host].boots[-1]

    def wait_for_boot(self, host: str, more_than: int, records: int, deadline: float) -> bool:
        """Wait for another boot that has written so many records, `deadline` seconds at most."""

        def writes() -> bool:
            if self.boots(host) <= more_than:
                return False
            boot = self.newest(host)
            return boot.first is not None and boot.last is not None and boot.last.number - boot.first.number >= records

        return wait_until(writes, deadline)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY):
            for console in self._consoles.values():
                console.read()
