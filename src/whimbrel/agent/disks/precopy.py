"""Copying a qcow2 disk while its guest writes to it, and knowing after the stop what is still to be sent.

The file is copied cluster by cluster as it stands, in rounds. For each cluster of the guest's disk it is noted in which
interval it was written last (the intervals are those of the guest's change log), and for each cluster of the file after
which interval it was sent. When the guest is off, the file's tables are exact, and a cluster that they name needs to be
sent if it never was, or was sent before its last write. Every other cluster that holds data belongs to qcow2 itself and
is looked at always, as is what became a hole; there are few. What QEMU has not yet written back of its tables while the
guest runs can therefore make a round less useful, and never the copy wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from whimbrel.agent.disks.extents import survey, whole_granules
from whimbrel.agent.disks.frames import GRANULE, Range
from whimbrel.agent.disks.mapping import Clusters, Tables
from whimbrel.agent.disks.send import Copy, Outgoing
from whimbrel.migration.messages import Facts, Outlook
from whimbrel.migration.ports import Control
from whimbrel.ops import clock

MOST_ROUNDS = 8
BUDGET = 0.2
"""Seconds that sending what is left may take when the guest is off, at the speed of the rounds before."""
WORTH = 0.8
"""A round that has to send more than this part of the round before does not come nearer to an end."""

_NEVER = -1


class PreCopy:
    """One server's disks on their way while it runs: the rounds, and then what is left after its end."""

    def __init__(self, copy: Copy, disks: Iterable[str]) -> None:
        self.copy = copy
        self._rounds = {file: Rounds(file) for file in copy.files if file.name in set(disks)}

    def run(self, cut: Callable[[], Mapping[str, list[Range]]], control: Control) -> Facts:
        """Copy in rounds until what the guest writes meanwhile fits the budget, more rounds do not help, or it is
        hurried on."""
        others = {file: file.everything() for file in self.copy.files if file not in self._rounds}
        parts = {file: rounds.first() for file, rounds in self._rounds.items()} | others
        began = clock.monotonic()
        done = [self._round(parts, control)]
        while len(done) < MOST_ROUNDS and not control.steering().hurry:
            written = cut()
            began, seconds = clock.monotonic(), clock.monotonic() - began
            fastest = max(row["bytes"] / row["seconds"] for row in done)
            control.expect(_outlook(1 + len(done), written, seconds, fastest))
            done.append(self.go_on(written, control))
            looked, before = done[-1]["bytes"], done[-2]["bytes"]
            fastest = max(row["bytes"] / row["seconds"] for row in done)
            if looked <= fastest * BUDGET or (len(done) > 2 and looked > WORTH * before):
                break
        return {"rounds": done, "bytes": self.copy.sent, "packed": self.copy.packed}

    def go_on(self, written: Mapping[str, list[Range]], control: Control) -> dict[str, Any]:
        """Do one more round, of what the guest has written in the interval that has ended."""
        parts = {file: rounds.next(written.get(file.name, ())) for file, rounds in self._rounds.items()}
        return self._round(parts, control)

    def left(self, written: Mapping[str, Clusters]) -> dict[Outgoing, list[Range]]:
        """Return what the target may hold otherwise, now that the guest is off; `written` is the last interval."""
        others = {file: file.everything() for file in self.copy.files if file not in self._rounds}
        return {file: rounds.last(written[file.name]) for file, rounds in self._rounds.items()} | others

    def close(self) -> None:
        """Let go of the files."""
        self.copy.close()

    def _round(self, parts: Mapping[Outgoing, list[Range]], control: Control) -> dict[str, Any]:
        began = clock.monotonic()
        before = self.copy.sent

        def cross() -> int:
            self.copy.send(parts, control)
            return self.copy.settle(control)

        mended = self.copy.lasting(cross, control)
        return {
            "bytes": self.copy.sent - before,
            "mended": mended,
            "seconds": round(max(0.001, clock.monotonic() - began), 3),
        }


def _outlook(number: int, written: Mapping[str, list[Range]], seconds: float, fastest: float) -> Outlook:
    """Return what is to be expected when `written` came about in so many seconds and `fastest` bytes/s can be sent."""
    dirty = sum(length for parts in written.values() for _, length in parts)
    return Outlook(number, dirty / max(seconds, 0.001), dirty / fastest if fastest else None)


class Rounds:
    """The intervals of one disk. The first round is interval 0's; each cut of the change log ends an interval."""

    def __init__(self, file: Outgoing) -> None:
        self.file = file
        size = Tables(file.descriptor).disk_size
        self._written = np.zeros(-(-size // GRANULE), dtype=np.int32)
        self._sent = np.full(0, _NEVER, dtype=np.int32)
        self._interval = 0

    def first(self) -> list[Range]:
        """Return the parts of the first round: all that the file holds now."""
        parts = self.file.everything()
        self._note_sent(parts)
        return parts

    def next(self, written: Iterable[Range]) -> list[Range]:
        """Take what the guest wrote in the interval that has ended; return where the file holds it, as it says now."""
        self._end_interval(clusters_of(written))
        clusters = Tables(self.file.descriptor).clusters()
        holders = clusters[self._written == self._interval]
        parts = self._parts(holders[holders > 0])
        self._note_sent(parts)
        return parts

    def last(self, written: Clusters) -> list[Range]:
        """Take the last interval, after the guest's end; return the parts that the target may hold otherwise."""
        self._end_interval(written)
        clusters = Tables(self.file.descriptor).clusters()
        mapped = np.flatnonzero(clusters)
        holders = clusters[mapped]
        self._grow(int(holders.max(initial=0)) + 1)
        stale = holders[(self._sent[holders] == _NEVER) | (self._written[mapped] > self._sent[holders])]
        data = np.zeros(max(len(self._sent), -(-self.file.size // GRANULE)), dtype=bool)
        data[holders] = True
        held = clusters_of(survey(self.file.descriptor))
        own = held[~data[held]]
        gone = np.setdiff1d(np.flatnonzero(self._sent != _NEVER), held, assume_unique=True)
        return self._parts(np.concatenate([stale, own, gone]))

    def _end_interval(self, written: Clusters) -> None:
        self._interval += 1
        self._written[written[written < len(self._written)]] = self._interval

    def _note_sent(self, parts: list[Range]) -> None:
        numbers = clusters_of(parts)
        self._grow(int(numbers.max(initial=0)) + 1)
        self._sent[numbers] = self._interval

    def _grow(self, count: int) -> None:
        more = count - len(self._sent)
        if more > 0:
            self._sent = np.concatenate([self._sent, np.full(more, _NEVER, dtype=np.int32)])

    def _parts(self, numbers: Clusters) -> list[Range]:
        """Return clusters of the file as parts, joined; the end of a file may be cut short."""
        ordered = np.unique(numbers)
        if not len(ordered):
            return []
        runs = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
        return whole_granules([(int(run[0]) * GRANULE, len(run) * GRANULE) for run in runs], self.file.size)


def clusters_of(parts: Iterable[Range]) -> Clusters:
    """Return the numbers of the clusters that parts touch."""
    found = [np.arange(start // GRANULE, -(-(start + length) // GRANULE)) for start, length in parts]
    return np.unique(np.concatenate(found)).astype(np.int64) if found else np.zeros(0, dtype=np.int64)
