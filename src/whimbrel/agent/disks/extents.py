"""Where a file has data, and reading and zeroing parts of it.

A disk file is opaque bytes here: it is read by its extents and never interpreted.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from whimbrel.agent.disks.frames import BLOCK, GRANULE, Range

_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_WRITE_AND_WAIT = 1 | 2 | 4
_LIBC.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


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


def whole_granules(parts: Iterable[Range], size: int) -> list[Range]:
    """Widen parts, which are in the order of their beginnings, to whole granules of a file; join those that meet."""
    widened: list[Range] = []
    for offset, length in parts:
        start, end = offset // GRANULE * GRANULE, min(size, -(-(offset + length) // GRANULE) * GRANULE)
        if widened and start <= sum(widened[-1]):
            before = widened.pop()
            start, end = before[0], max(end, sum(before))
        if start < end:
            widened.append((start, end - start))
    return widened


def blocks(parts: Iterable[Range], limit: int = BLOCK) -> Iterator[Range]:
    """Cut parts into blocks of at most `limit` bytes."""
    for start, length in parts:
        for offset in range(start, start + length, limit):
            yield offset, min(limit, start + length - offset)


def read_block(descriptor: int, offset: int, view: memoryview) -> None:
    """Fill a view from the file; raise OSError when the file ends before."""
    while view:
        got = os.preadv(descriptor, [view], offset)
        if got == 0:
            raise OSError(errno.EIO, f"the file ends at byte {offset}, before its declared size")
        offset, view = offset + got, view[got:]


def write_block(descriptor: int, offset: int, data: memoryview) -> None:
    """Write all of a view to its place in the file."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset, data = offset + written, data[written:]


def bring_to_disk(descriptor: int, offset: int, length: int) -> None:
    """Wait until a part of a file is at its disk, which may still cache it; then it can be dropped from memory."""
    if _LIBC.sync_file_range(descriptor, offset, length, _WRITE_AND_WAIT) == 0:
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.fdatasync(descriptor)


def write_zeros(descriptor: int, offset: int, length: int) -> None:
    """Let a part of a file read as zeros, as a hole where the file system can make one."""
    if _LIBC.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    if ctypes.get_errno() != errno.EOPNOTSUPP:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for start, count in blocks([(offset, length)]):
        os.pwrite(descriptor, bytes(count), start)
