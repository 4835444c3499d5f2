"""Where a file has data, and the digest of it.

A stopped guest's disk is opaque bytes: it is read by its extents and never interpreted. A digest covers the size of
the file, and each part's data and place, so moved or missing parts differ as well as changed ones.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from whimbrel.agent.disks.frames import BLOCK, Range, add_range

_PLACE = struct.Struct(">QQ")


def open_disk(path: Path) -> int:
    """Open a disk file for reading; return its descriptor."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def survey(descriptor: int) -> list[Range]:
    """Return the parts of a file that hold data, in order; the rest are holes."""
    parts: list[Range] = []
    size = os.fstat(descriptor).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                break
            raise
        position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        parts.append((start, position - start))
    return parts


def allocated(path: Path) -> int:
    """Return how many bytes of data a disk file holds."""
    descriptor = open_disk(path)
    try:
        return sum(length for _, length in survey(descriptor))
    finally:
        os.close(descriptor)


def blocks(parts: list[Range], limit: int = BLOCK) -> Iterator[Range]:
    """Cut parts into blocks of at most `limit` bytes."""
    for start, length in parts:
        for offset in range(start, start + length, limit):
            yield offset, min(limit, start + length - offset)


class Digest:
    """BLAKE3 over blocks in order. Blocks that follow one another count as one part, however they were cut."""

    def __init__(self) -> None:
        self._hash = blake3()
        self._parts: list[list[int]] = []

    def add(self, offset: int, data: memoryview) -> None:
        """Take one block in."""
        before = self._parts[-1] if self._parts else None
        if not add_range(self._parts, offset, len(data)) and before is not None:
            self._hash.update(_PLACE.pack(*before))
        self._hash.update(data)

    def finish(self, size: int) -> str:
        """Return the digest of a file of this size, as hex."""
        if self._parts:
            self._hash.update(_PLACE.pack(*self._parts[-1]))
        self._hash.update(_PLACE.pack(size, 0))
        return self._hash.hexdigest()


def read_block(descriptor: int, offset: int, view: memoryview) -> None:
    """Fill a view from the file; raise OSError when the file ends before."""
    while view:
        got = os.preadv(descriptor, [view], offset)
        if got == 0:
            raise OSError(errno.EIO, f"the file ends at byte {offset}, before its declared size")
        offset, view = offset + got, view[got:]
