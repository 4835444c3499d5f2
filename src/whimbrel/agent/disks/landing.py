"""Blocks on their way to a target's disk: a few at a time are written there, and each is read back at once.

They go past the kernel's page cache where the file system can do that: what is read back then comes from the disk and
not from memory, no byte is copied on the way, and the memory in which the host keeps other files is left alone.
"""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from whimbrel.agent.disks.frames import BLOCK
from whimbrel.agent.disks.pipes import pages
from whimbrel.domain.errors import StepError

WORKERS = 3
"""How many blocks are written or read back at the same time."""

BUFFERS = 8
"""Blocks that wait or are at work; a slow disk holds the source back here."""

PATIENCE = 900.0
"""Seconds that a disk may take for one block. The source gives up much earlier; this ends who waits for nobody."""


class Place(Protocol):
    """A file in which blocks land."""

    def land(self, offset: int, data: memoryview, seen: memoryview) -> None:
        """Write a block to the disk and read it back into `seen`, which is as long; keep what goes wrong to itself."""


class Landing:
    """The buffers, and the threads that bring them to the disk."""

    def __init__(self) -> None:
        self._free: queue.Queue[memoryview] = queue.Queue()
        self._waiting: queue.Queue[tuple[Place, int, memoryview, int]] = queue.Queue()
        self._begun = False

    def put(self, place: Place, offset: int, buffer: memoryview, length: int) -> None:
        """Bring what a buffer begins with to its place. It is not the caller's any more; `take` gives another one."""
        self._waiting.put((place, offset, buffer, length))

    def take(self) -> memoryview:
        """Return a free buffer; StepError if the disk gives none back."""
        self._begin()
        try:
            return self._free.get(timeout=PATIENCE)
        except queue.Empty:
            raise StepError(f"the disk took no block for {PATIENCE:g} s; look at it.") from None

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        for buffer in pages(BLOCK, BUFFERS):
            self._free.put(buffer)
        for _ in range(WORKERS):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        (seen,) = pages(BLOCK)
        while True:
            place, offset, buffer, length = self._waiting.get()
            try:
                place.land(offset, buffer[:length], seen[:length])
            finally:
                self._free.put(buffer)
