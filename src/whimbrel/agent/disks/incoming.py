"""One file that a target receives: written at any place, in any number of rounds, and read back from the disk.

Behind the writing, a thread brings what was written to the disk, drops it from memory and reads it back; so when the
last byte has come there is little left to be read, and what the table says was seen on the disk.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable

from whimbrel.agent.disks.extents import blocks, read_block, survey, write_zeros
from whimbrel.agent.disks.frames import (
    BLOCK,
    CONFIG_DRIVE,
    EARLIER,
    GRANULE,
    MOST_CONFIG,
    MOST_CONSOLE,
    MOST_TPM,
    MOST_VARIABLES,
    TPM_STATE,
    VARIABLES,
    Range,
)
from whimbrel.agent.disks.table import Table, digest_of, granules
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Disk, DiskRole, Guest

CHECK_EVERY = 32 << 20
UNCHECKED_LIMIT = 128 << 20
"""Bytes. A slow disk holds the source back here, so that the last check never takes longer than the stall limit."""

QCOW2_MARGIN = 64 << 20
"""Bytes that a qcow2 file may have beyond its disk and a 64th of it: header, tables, bitmaps, clusters that leaked."""

_FILE = re.compile(r"disk-[0-9]{1,3}|" + "|".join(map(re.escape, (CONFIG_DRIVE, VARIABLES, TPM_STATE, EARLIER))))


def carried(guest: Guest, *, off: bool) -> dict[str, int]:
    """Return the files without which a server is not whole, with the most bytes of each.

    Swap is none of them: it is made anew at each host. What a TPM remembers is a file only while the guest is off; of
    one that moves while it runs it comes with the memory.
    """
    most = {disk.name: _most(disk) for disk in guest.disks if disk.role is not DiskRole.SWAP}
    if guest.uefi:
        most[VARIABLES] = MOST_VARIABLES
    if guest.tpm and off:
        most[TPM_STATE] = MOST_TPM
    return most


def declared(guest: Guest, *, off: bool) -> dict[str, int]:
    """Return the files that a target is to receive of a server, with the most bytes of each.

    It is written into the manifest of the incoming directory, and the receiver opens nothing else.
    """
    return {**carried(guest, off=off), CONFIG_DRIVE: MOST_CONFIG, EARLIER: MOST_CONSOLE}


def _most(disk: Disk) -> int:
    size = disk.size_mb << 20
    return size if disk.format == "raw" else size + size // 64 + QCOW2_MARGIN


def seen(status: os.stat_result) -> list[int]:
    """Return what tells a file that was looked at from one that was changed or replaced since."""
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


class Incoming:
    """A file of an attempt's incoming directory, of at most so many bytes; what was received before is kept."""

    def __init__(self, directory: int, name: str, most: int) -> None:
        if not _FILE.fullmatch(name):
            raise StepError(f"{name!r} is no name of a server's disk.")
        self._most = most
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.name = name
        self._descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        self._table = Table(os.fstat(self._descriptor).st_size)
        self._lock = threading.Lock()
        self._unread = {number for part in survey(self._descriptor) for number in granules(*part)}
        self._unchecked = 0
        self._checking: threading.Thread | None = None
        self._failure: OSError | None = None

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self._table.size

    def resize(self, size: object) -> None:
        """Give the file the size that the source says."""
        if not isinstance(size, int) or not 0 <= size <= self._most:
            raise StepError(f"{self.name} cannot have {size!r:.80} bytes; {self._most} were declared at most.")
        if size == self.size:
            return
        self._settle()
        edge = min(size, self.size)
        os.ftruncate(self._descriptor, size)
        self._table.resize(size)
        with self._lock:
            self._unread = {number for number in self._unread if number < len(self._table)}
            if edge % GRANULE:
                self._unread.add(edge // GRANULE)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at their place."""
        self._touch(offset, len(data))
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]

    def zero(self, offset: int, length: int) -> None:
        """Let a part read as zeros."""
        self._touch(offset, length)
        write_zeros(self._descriptor, offset, length)

    def check(self, step: Callable[[int], object] = lambda length: None) -> Table:
        """Wait until all is on the disk and was read back; return the table. `step` is told the bytes of each read."""
        self._settle()
        self._check(step)
        if self._failure is not None:
            raise self._failure
        return self._table

    def proof(self) -> dict[str, object]:
        """Return size and digest of a file that was checked, and what changes as soon as anybody writes to it."""
        return {"size": self.size, "digest": self._table.digest(), "seen": seen(os.fstat(self._descriptor))}

    def close(self) -> None:
        """Let go of the file."""
        self._settle()
        os.close(self._descriptor)

    def _touch(self, offset: int, length: int) -> None:
        if length < 0 or offset + length > self.size:
            raise StepError(f"{self.name} was said to have {self.size} bytes, and more came.")
        with self._lock:
            self._unread.update(granules(offset, length))
        self._unchecked += length
        if self._unchecked >= UNCHECKED_LIMIT:
            self._settle()
        if self._unchecked >= CHECK_EVERY and not (self._checking and self._checking.is_alive()):
            self._unchecked = 0
            self._checking = threading.Thread(target=self._check, daemon=True)
            self._checking.start()

    def _settle(self) -> None:
        if self._checking is not None:
            self._checking.join()
            self._checking = None

    def _check(self, step: Callable[[int], object] = lambda length: None) -> None:
        """Read back what was written until now; what is written meanwhile is read the next time."""
        with self._lock:
            numbers, self._unread = self._unread, set()
        try:
            os.fdatasync(self._descriptor)  # only what is on the disk can be dropped from memory
            size = self.size
            buffer = memoryview(bytearray(BLOCK))
            for part in blocks(_parts(numbers, size)):
                offset, length = part
                os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)
                read_block(self._descriptor, offset, buffer[:length])
                for start in range(0, length, GRANULE):
                    self._table[(offset + start) // GRANULE] = digest_of(buffer[start : min(start + GRANULE, length)])
                step(length)
        except OSError as error:
            self._failure = error  # a failed sync is reported once by the kernel, so it is kept


def _parts(numbers: set[int], size: int) -> list[Range]:
    parts: list[Range] = []
    for number in sorted(numbers):
        start = number * GRANULE
        length = min(GRANULE, size - start)
        if length <= 0:
            continue
        if parts and sum(parts[-1]) == start:
            parts[-1] = (parts[-1][0], parts[-1][1] + length)
        else:
            parts.append((start, length))
    return parts
