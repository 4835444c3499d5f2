"""Proving a copy: read it back from the target's disk, not from memory, and compare digests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from whimbrel.agent.disks.extents import Digest, blocks, open_disk, read_block, survey
from whimbrel.agent.disks.frames import Range

BLOCK = 4 << 20
_ZEROS = bytes(BLOCK)


def digest_of(path: Path, parts: list[Range], step: Callable[[int], None]) -> tuple[int, str]:
    """Return size and digest of a file, read from the disk in the parts that were received.

    Bytes outside these parts must read as zeros; if not, the digest is that of no sent file. `step` is told the
    bytes of each block.
    """
    descriptor = open_disk(path)
    try:
        size = os.fstat(descriptor).st_size
        os.fdatasync(descriptor)  # only what is on the disk can be dropped from memory
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(BLOCK))
        digest = Digest()
        for offset, length in blocks(parts, BLOCK):
            view = buffer[:length]
            read_block(descriptor, offset, view)
            digest.add(offset, view)
            step(length)
        for offset, length in blocks(list(outside(survey(descriptor), parts)), BLOCK):
            view = buffer[:length]
            read_block(descriptor, offset, view)
            if view != memoryview(_ZEROS)[:length]:
                digest.add(offset, view)
        return size, digest.finish(size)
    finally:
        os.close(descriptor)


def outside(found: list[Range], expected: list[Range]) -> Iterator[Range]:
    """Return what is in the found parts and in none of the expected; both are in order."""
    index = 0
    for start, length in found:
        position, end = start, start + length
        while position < end:
            while index < len(expected) and sum(expected[index]) <= position:
                index += 1
            if index == len(expected) or expected[index][0] >= end:
                yield position, end - position
                break
            begin = expected[index][0]
            if begin > position:
                yield position, begin - position
            position = sum(expected[index])
