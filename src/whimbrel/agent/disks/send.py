"""Sending the disks of a stopped guest: one thread reads and hashes, the other feeds the channel."""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whimbrel.agent.disks.extents import Digest, blocks, open_disk, read_block, survey
from whimbrel.agent.disks.frames import BLOCK, Range
from whimbrel.agent.disks.session import TURN, Session
from whimbrel.domain.errors import StepError
from whimbrel.migration.ports import Control

BUFFERS = 8
"""Blocks read ahead of the channel."""


@dataclass(frozen=True)
class Source:
    """One file to be sent: its extents are read once, while nothing writes to it."""

    name: str
    descriptor: int
    size: int
    parts: list[Range]

    @property
    def allocated(self) -> int:
        """How many bytes of it hold data."""
        return sum(length for _, length in self.parts)


@dataclass(frozen=True)
class Block:
    """What the reader hands over: bytes of a file at their place. No data marks the file's end, with its digest."""

    source: Source
    offset: int
    data: memoryview | None
    buffer: bytearray | None = None
    digest: str = ""


class Reader:
    """Reads the files block by block, ahead of the channel by a bounded number of buffers."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._free: queue.Queue[bytearray] = queue.Queue()
        for _ in range(BUFFERS):
            self._free.put(bytearray(BLOCK))
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
        if block.buffer is not None:
            self._free.put(block.buffer)

    def stop(self) -> None:
        """Read no further; returns when the reader is gone or, if a disk hangs, after a second."""
        self._stop.set()
        self._thread.join(1.0)

    def _read(self) -> None:
        try:
            for source in self._sources:
                self._read_one(source)
            self._ready.put(None)
        except OSError as error:
            self._ready.put(error)

    def _read_one(self, source: Source) -> None:
        digest = Digest()
        os.posix_fadvise(source.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for offset, length in blocks(source.parts):
            buffer = self._take()
            if buffer is None:
                return
            view = memoryview(buffer)[:length]
            read_block(source.descriptor, offset, view)
            digest.add(offset, view)
            self._ready.put(Block(source, offset, view, buffer))
        self._ready.put(Block(source, 0, None, digest=digest.finish(source.size)))

    def _take(self) -> bytearray | None:
        while not self._stop.is_set():
            try:
                return self._free.get(timeout=TURN)
            except queue.Empty:
                continue
        return None


def send_files(paths: list[Path], session: Session, control: Control) -> dict[str, Any]:
    """Send files over a channel; return `bytes` sent, `allocated`, and `disks` with size and digest of each."""
    sources: list[Source] = []
    try:
        for path in paths:
            descriptor = open_disk(path)
            sources.append(Source(path.name, descriptor, os.fstat(descriptor).st_size, survey(descriptor)))
        return _send(sources, session, control)
    except OSError as error:
        raise StepError(f"Cannot read the server's disks: {error}.") from error
    finally:
        for source in sources:
            os.close(source.descriptor)


def _send(sources: list[Source], session: Session, control: Control) -> dict[str, Any]:
    total = sum(source.allocated for source in sources)
    disks: dict[str, dict[str, Any]] = {}
    control.report(0, total)
    session.tell({"begin": True}, control)
    session.hear("begun", control)
    reader = Reader(sources)
    reader.start()
    try:
        named: Source | None = None
        while (block := reader.next(control)) is not None:
            if block.source is not named:
                named = block.source
                session.tell({"file": named.name, "size": named.size}, control)
            if block.data is None:
                disks[named.name] = {"size": named.size, "digest": block.digest}
                continue
            session.send(block.offset, block.data, control)
            reader.give_back(block)
            control.report(session.written, total)
    finally:
        reader.stop()
    session.tell({"end": True}, control)
    received = session.hear("received", control)["received"]
    control.report(total, total)
    if received != {name: disk["size"] for name, disk in disks.items()}:
        raise StepError(f"The target holds {received} after the copy, which is not what was sent.")
    return {"bytes": total, "allocated": total, "disks": disks}
