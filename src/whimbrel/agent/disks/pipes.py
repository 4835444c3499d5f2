"""The pipes to ssh and from sshd: wide, never blocking, and emptied and filled by large pieces.

Their other ends take and give a few KiB at a time. Who wakes for each of these wakes some ten thousand times
for each GiB, so it waits a moment longer and then moves all that there is.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os

PIPE_BYTES = 1 << 20

MOST_LENT = PIPE_BYTES // mmap.PAGESIZE
"""The most pages to which a wide pipe refers at a time."""

GATHER = 0.001
"""Seconds in which a full pipe empties further, or an empty one fills. A wide pipe lasts longer on any channel."""


def widen(descriptor: int) -> None:
    """Let a pipe hold more, where it is one and may, and let nobody who uses this end wait in the kernel."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(OSError):  # no pipe, or its user has enough of them (pipe(7))
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def pages(size: int, count: int = 1) -> list[memoryview]:
    """Return `count` buffers of so many bytes that begin with a page, as a pipe or a disk takes them without a copy."""
    whole = mmap.mmap(-1, size * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        whole.madvise(mmap.MADV_HUGEPAGE)  # each page is looked up whenever a pipe or a disk refers to it
    return [memoryview(whole)[start : start + size] for start in range(0, size * count, size)]


def lent_pages(size: int) -> int:
    """Return how many pages a pipe refers to at least for so many bytes that were lent to it."""
    return -(-size // mmap.PAGESIZE)


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.vmsplice.argtypes = (ctypes.c_int, ctypes.POINTER(_Part), ctypes.c_ulong, ctypes.c_uint)
_LIBC.vmsplice.restype = ctypes.c_ssize_t
_NONBLOCK = 2


def lend(descriptor: int, data: memoryview) -> int:
    """Let a pipe refer to memory, instead of copying it there (vmsplice(2)); return how many bytes of it.

    It must not be changed until `MOST_LENT` pages have been lent after it. Raises as `os.write` does.
    """
    part = _Part(ctypes.addressof(ctypes.c_char.from_buffer(data)), len(data))
    lent = int(_LIBC.vmsplice(descriptor, ctypes.byref(part), 1, _NONBLOCK))
    if lent < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return lent
