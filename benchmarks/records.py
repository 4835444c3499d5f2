"""A guest's records as they come: its consoles on all hosts, watched from outside as one stream.

Nothing is asked of the guest or of what runs it: each line is seen at most a few milliseconds after it was written.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

LOOK = 0.002
"""Seconds between two looks."""
PIECE = 1 << 16

_RECORD = re.compile(rb"WRITER seq=(\d+) mono_ms=\d+")
_VERIFY = re.compile(rb"WRITER VERIFY total=(\d+) intact=(\d+) torn=(\d+) bad=(\d+)")
_PANIC = re.compile(rb"Kernel panic|BUG:|Oops")


@dataclass(frozen=True)
class Verdict:
    """What a boot said of the disk that it found; `at` is monotonic."""

    at: float
    total: int
    intact: int
    torn: bool


class Records:
    """Watches one guest in a thread until it is closed; times are those of the machine's monotonic clock."""

    def __init__(self, consoles: Iterable[Path]) -> None:
        self.times: list[float] = []
        self.numbers: list[int] = []
        self.verdicts: list[Verdict] = []
        self.panics: list[tuple[float, str]] = []
        self._tails = [_Tail(path) for path in consoles]
        self._rest = b""
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Records:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()
        for tail in self._tails:
            tail.close()

    def wait_after(self, moment: float, count: int, deadline: float) -> bool:
        """Wait until so many records have come after a moment; return whether they came before the deadline."""
        end = time.monotonic() + deadline
        while len(self.times) - bisect_right(self.times, moment) < count:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def longest_gap(self, begin: float, end: float) -> float:
        """Return the longest time between a record and the next, of which any part lies between the two moments."""
        times = self.times[self.before(begin) : bisect_left(self.times, end) + 1]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def breaks(self, begin: float, end: float) -> list[tuple[int, int]]:
        """Return each record and the one that came behind it where its number is not the next one."""
        numbers = self.numbers[self.before(begin) : bisect_left(self.times, end) + 1]
        return [(earlier, later) for earlier, later in itertools.pairwise(numbers) if later != earlier + 1]

    def before(self, moment: float) -> int:
        """Return the index of the last record before a moment; 0 if there is none."""
        return max(0, bisect_right(self.times, moment) - 1)

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            self._look()

    def _look(self) -> None:
        """Take what is new. A guest that has come to another host has ended at the one before, perhaps in mid-line."""
        current, others = self._tails[0], self._tails[1:]
        arrived = [(tail, new) for tail in others if (new := tail.read())]
        self._take(current.read())  # after the others: what it wrote before they began is there by now
        for tail, new in arrived:
            self._take(new)
            self._tails.remove(tail)
            self._tails.insert(0, tail)

    def _take(self, new: bytes) -> None:
        if not new:
            return
        now = time.monotonic()
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            if found := _RECORD.search(line):
                self.numbers.append(int(found[1]))
                self.times.append(now)  # last, since others look at the times first
            elif found := _VERIFY.search(line):
                total, intact, torn, _ = map(int, found.groups())
                self.verdicts.append(Verdict(now, total, intact, bool(torn)))
            elif _PANIC.search(line):
                self.panics.append((now, line.decode(errors="replace").strip()))


class _Tail:
    """The end of a file that may not be there yet, and whose name may be given to another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._number = 0

    def read(self) -> bytes:
        """Return what was written since the last time."""
        new = os.read(self._descriptor, PIECE) if self._descriptor is not None else b""
        try:
            number = self._path.stat().st_ino
        except OSError:
            return new
        if number != self._number:  # one that is open here keeps its number to itself
            self.close()
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return new
            self._number = os.fstat(self._descriptor).st_ino
            new += os.read(self._descriptor, PIECE)
        return new

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._number = None, 0
