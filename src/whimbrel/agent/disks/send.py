"""Sending files: one thread reads and hashes ahead, the other sends what the target does not hold already.

The same work serves a stopped guest's disk, each round of a running one's, a copy that was cut off and is taken up
again, and the mending of what did not arrive as it was sent: whatever the parts that are looked at, only granules
cross whose digests differ from the target's.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from whimbrel.agent.disks.extents import blocks, open_disk, read_block, survey, whole_granules
from whimbrel.agent.disks.frames import BLOCK, GRANULE, Range
from whimbrel.agent.disks.pace import Pace
from whimbrel.agent.disks.packing import Packer
from whimbrel.agent.disks.pipes import MOST_LENT, pages
from whimbrel.agent.disks.session import TURN, ChannelLost, Session
from whimbrel.agent.disks.table import NOTHING, WIDTH, Table, digest_of
from whimbrel.domain.errors import StepError, TimedOut
from whimbrel.migration.ports import Control
from whimbrel.ops import clock

BUFFERS = 10
"""Blocks read ahead of the channel, and those in its pipe."""

LENT_LEAST = BLOCK // 2
"""Bytes. Smaller pieces are copied into the pipe, so that few blocks wait for what has yet to be lent after them."""

RECONNECTS = 4
"""How often in a row a lost channel is replaced without a byte having crossed in between."""

RECONNECT_AFTER = 1.0
"""Seconds before a lost channel is replaced."""

UNKNOWN = b"\xff" * len(NOTHING)
"""In place of the digest of a granule of which nobody knows how the target holds it."""

MENDS = 3
"""How often what arrived otherwise is sent again, before the target's disk is given up."""


Result = TypeVar("Result")


class Outgoing:
    """One file on its way: what was read of it here, and what the target is known to hold.

    A part that nobody looked at counts as zeros, so the digests agree only if all that holds data was looked at.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.descriptor = open_disk(path)
        self.read = Table(0)
        self.held = Table(0)

    @property
    def size(self) -> int:
        """The file's size now, in bytes."""
        return os.fstat(self.descriptor).st_size

    def everything(self) -> list[Range]:
        """Return the parts that hold data here, or held it at the target."""
        held = [(number * GRANULE, GRANULE) for number in range(len(self.held)) if self.held[number] != NOTHING]
        return whole_granules(sorted([*survey(self.descriptor), *held]), self.size)

    @property
    def allocated(self) -> int:
        """How many bytes of the file hold data now."""
        return sum(length for _, length in survey(self.descriptor))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class Block:
    """What the reader hands over: bytes of a file at their place, and the digest of each granule."""

    file: Outgoing
    offset: int
    data: memoryview
    buffer: memoryview
    digests: list[bytes]


class Reader:
    """Reads parts of files block by block, ahead of the channel by a bounded number of buffers."""

    def __init__(self, parts: Mapping[Outgoing, Iterable[Range]]) -> None:
        self._parts = parts
        self._free: queue.Queue[memoryview] = queue.Queue()
        for buffer in pages(BLOCK, BUFFERS):
            self._free.put(buffer)
        self._ready: queue.Queue[Block | OSError | None] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Begin to read ahead."""
        self._thread.start()

    def next(self, control: Control) -> Block | None:
        """Return the next block, None after the last; raise StepError when a file cannot be read."""
        while True:
            control.check()
            try:
                found = self._ready.get(timeout=TURN)
            except queue.Empty:
                continue
            if isinstance(found, OSError):
                raise StepError(f"Cannot read the server's disks: {found}.") from found
            return found

    def give_back(self, block: Block) -> None:
        """Say that a block's buffer may be filled again."""
        self._free.put(block.buffer)

    def stop(self) -> None:
        """Read no further; returns when the reader is gone or, if a disk hangs, after a second."""
        self._stop.set()
        self._thread.join(1.0)

    def _read(self) -> None:
        try:
            for file, parts in self._parts.items():
                os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                for offset, length in blocks(parts):
                    buffer = self._take()
                    if buffer is None:
                        return
                    view = buffer[:length]
                    read_block(file.descriptor, offset, view)
                    digests = [digest_of(view[start : start + GRANULE]) for start in range(0, length, GRANULE)]
                    self._ready.put(Block(file, offset, view, buffer, digests))
            self._ready.put(None)
        except OSError as error:
            self._ready.put(error)

    def _take(self) -> memoryview | None:
        while not self._stop.is_set():
            try:
                return self._free.get(timeout=TURN)
            except queue.Empty:
                continue
        return None


class Copy:
    """Files on their way, in as many rounds as are wanted. `begin` comes first, `finish` last.

    `connect` returns the channel that is open, or another one when that was lost.
    """

    def __init__(
        self, files: list[Outgoing], connect: Callable[[Control], Session], pace: Pace, packer: Packer | None = None
    ) -> None:
        self.files = files
        self._connect = connect
        self._pace = pace
        self._session: Session | None = None
        self._packer = packer
        self._unpacks = False
        self.sent = 0
        """Bytes of the files that crossed so far, as many as they were on the way."""
        self.packed = 0
        """Bytes that did not have to cross, because the rest of their pieces was packed."""
        self.receives: frozenset[str] = frozenset()
        """The names that the target takes; one of an older release takes fewer."""

    @property
    def session(self) -> Session:
        """Return the channel that the copy goes over."""
        assert self._session is not None, "the copy was not begun"
        return self._session

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files:
            file.close()

    def begin(self, control: Control) -> None:
        """Begin the conversation, and learn what the target holds from an earlier one."""
        self.lasting(lambda: None, control)

    def lasting(self, work: Callable[[], Result], control: Control) -> Result:
        """Do the work, and again over another channel each time that one is lost, until none can be had.

        What the target says that it holds counts then, not what was sent: only the rest crosses.
        """
        lost, sent = 0, -1
        while True:
            try:
                session = self._connect(control)
                if session is not self._session:
                    self._session = session
                    self._introduce(control)
                return work()
            except ChannelLost as error:
                lost = 1 if self.sent > sent else lost + 1
                if lost > RECONNECTS:
                    raise
                sent = self.sent
                try:
                    control.wait(RECONNECT_AFTER)
                except TimedOut:
                    raise error from None  # what was lost, and why, says more

    def _introduce(self, control: Control) -> None:
        self.session.tell({"begin": True}, control)
        begun = self.session.hear("begun", control)
        self._unpacks = begun.get("unpacks") is True  # one of an older release does not
        receives = begun.get("receives")
        self.receives = frozenset(map(str, receives)) if isinstance(receives, list) else frozenset()
        for file in self.files:
            self._learn(file, control)

    def add(self, file: Outgoing, control: Control) -> None:
        """Take one more file along, which is let go of with the others."""
        self.files.append(file)
        self._learn(file, control)

    def send(self, parts: Mapping[Outgoing, Iterable[Range]], control: Control) -> int:
        """Bring parts of the files, in whole granules, to the target; return how many bytes it did not hold."""
        before = self.sent + self.packed
        total = sum(length for ranges in parts.values() for _, length in ranges)
        looked = 0
        control.report(0, total)
        reader = Reader(parts)
        reader.start()
        lent: deque[tuple[Block, int]] = deque()
        try:
            named: Outgoing | None = None
            while (block := reader.next(control)) is not None:
                if block.file is not named:
                    named = block.file
                    self._name(named, control)
                mark = self.session.lent
                self._send_block(block, control)
                if self.session.lent == mark:
                    reader.give_back(block)
                else:
                    lent.append((block, self.session.lent))
                while lent and self.session.lent - lent[0][1] >= MOST_LENT:
                    reader.give_back(lent.popleft()[0])
                looked += len(block.data)
                control.report(looked, total)
        finally:
            reader.stop()
        return self.sent + self.packed - before

    def settle(self, control: Control) -> int:
        """Let the target read back what it has, and mend what is not as it was sent; return the bytes sent again."""
        mended = 0
        for _ in range(MENDS):
            self.session.tell({"check": True}, control)
            found = self.session.hear("checked", control)["checked"]
            wrong = [file for file in self.files if found.get(file.name) != file.read.digest()]
            if not wrong:
                return mended
            for file in wrong:
                self._learn(file, control)
                differs = [
                    (number * GRANULE, GRANULE)
                    for number in range(len(file.read))
                    if file.read[number] != file.held[number]
                ]
                mended += self.send({file: whole_granules(differs, file.read.size)}, control)
        names = ", ".join(file.name for file in wrong)
        raise StepError(f"{names} came back otherwise from the target's disk {MENDS} times; look at that disk.")

    def finish(self, control: Control) -> dict[str, dict[str, Any]]:
        """End the copy; return size and digest of each file, as the target has read them back."""
        self.session.tell({"end": True}, control)
        received = self.session.hear("received", control)["received"]
        disks = {file.name: {"size": file.read.size, "digest": file.read.digest()} for file in self.files}
        if received != {name: disk["size"] for name, disk in disks.items()}:
            raise StepError(f"The target holds {received} after the copy, which is not what was sent.")
        return disks

    def _learn(self, file: Outgoing, control: Control) -> None:
        """Ask what the target holds of a file, and give it the size that the file has here."""
        self.session.tell({"table": file.name}, control)
        told = bytearray()
        while True:
            answer = self.session.hear("digests", control)
            told += bytes.fromhex(answer["digests"])
            if not answer["more"]:
                break
        file.held = Table(len(told) // WIDTH * GRANULE)
        file.held.load(0, bytes(told))
        self._name(file, control)

    def _name(self, file: Outgoing, control: Control) -> None:
        """Say which file comes now, and how large it is by now."""
        size, before = file.size, file.held.size
        file.held.resize(size)
        file.read.resize(size)
        if size != before and min(size, before) % GRANULE:
            file.held[min(size, before) // GRANULE] = UNKNOWN
        self.session.tell({"file": file.name, "size": size}, control)

    def _send_block(self, block: Block, control: Control) -> None:
        """Send the runs of granules that the target does not hold."""
        held, first = block.file.held, block.offset // GRANULE
        for place, digest in enumerate(block.digests):
            block.file.read[first + place] = digest

        def fate(place: int) -> str:
            digest = block.digests[place]
            return "" if digest == held[first + place] else "zeros" if digest == NOTHING else "data"

        for kind, run in groupby(range(len(block.digests)), fate):
            places = list(run)
            start, end = places[0] * GRANULE, min((places[-1] + 1) * GRANULE, len(block.data))
            if kind == "data":
                self._send_data(block.offset + start, block.data[start:end], control)
            elif kind == "zeros":
                self.session.send_zeros(block.offset + start, end - start, control)
            for place in places if kind else ():
                held[first + place] = block.digests[place]

    def _send_data(self, offset: int, data: memoryview, control: Control) -> None:
        packer = self._packer if self._unpacks else None
        packed = packer.pack(data) if packer else None
        size = len(data) if packed is None else len(packed)
        began = clock.monotonic()
        self._pace.keep(size, control)
        if packed is None:
            self.session.send(offset, data, control, lending=len(data) >= LENT_LEAST)
        else:
            self.session.send_packed(offset, packed, control)
        if packer:
            packer.crossed(size, clock.monotonic() - began)
        self.sent += size
        self.packed += len(data) - size
