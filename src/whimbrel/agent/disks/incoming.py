"""One file that a target receives: written at any place, in any number of rounds, and read back from the disk.

Whole granules land by a few threads, which write each block to the disk and read it back at once; so when the last
byte has come there is little left to be read, and what the table says was seen on the disk.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable

from whimbrel.agent.disks.extents import blocks, bring_to_disk, read_block, survey, write_block, write_zeros
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
from whimbrel.agent.disks.landing import PATIENCE
from whimbrel.agent.disks.table import Table, digest_of, granules
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Disk, DiskRole, Guest

SECTOR = 4096
"""Bytes. What is written past the page cache comes in multiples of them."""

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
        self._direct = _open_direct(directory, name)
        self._bypasses = self._direct is not None
        self._table = Table(os.fstat(self._descriptor).st_size)
        self._unread = {number for part in survey(self._descriptor) for number in granules(*part)}
        self._landing = 0
        self._landed = threading.Condition()
        self._end = 0
        """Where the last block ended: what comes before it may still be on its way to the disk."""
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
        self._unread = {number for number in self._unread if number < len(self._table)}
        if edge % GRANULE:
            self._unread.add(edge // GRANULE)

    def expect(self, offset: int, length: int) -> bool:
        """Return whether these bytes are whole granules, and are now awaited by `land`; if not, `write` takes them."""
        end = offset + length
        if offset % GRANULE or (length % GRANULE and end != self.size) or not length:
            return False
        self._touch(offset, length)
        with self._landed:
            self._landing += 1
        return True

    def land(self, offset: int, data: memoryview, seen: memoryview) -> None:
        """Write whole granules that were expected, read them back from the disk into `seen`, and note their digests."""
        try:
            if self._failure is None:
                self._store(offset, data, seen)
                numbers = granules(offset, len(data))
                for number, start in zip(numbers, range(0, len(seen), GRANULE), strict=True):
                    self._table[number] = digest_of(seen[start : start + GRANULE])
                with self._landed:
                    self._unread.difference_update(numbers)
        except OSError as error:
            self._failure = error  # whoever writes or checks next is told
        finally:
            with self._landed:
                self._landing -= 1
                self._landed.notify_all()

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at their place; they are read back by the next `check`."""
        self._touch(offset, len(data))
        write_block(self._descriptor, offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Let a part read as zeros."""
        self._settle()
        self._touch(offset, length)
        write_zeros(self._descriptor, offset, length)

    def check(self, step: Callable[[int], object] = lambda length: None) -> Table:
        """Wait until all is on the disk and was read back; return the table. `step` is told the bytes of each read."""
        self._settle()
        os.fdatasync(self._descriptor)  # only what is on the disk can be dropped from memory
        again = memoryview(bytearray(BLOCK))
        for offset, length in blocks(_parts(self._unread, self.size)):
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)
            read_block(self._descriptor, offset, again[:length])
            for start in range(0, length, GRANULE):
                self._table[(offset + start) // GRANULE] = digest_of(again[start : min(start + GRANULE, length)])
            step(length)
        self._unread = set()
        return self._table

    def proof(self) -> dict[str, object]:
        """Return size and digest of a file that was checked, and what changes as soon as anybody writes to it."""
        return {"size": self.size, "digest": self._table.digest(), "seen": seen(os.fstat(self._descriptor))}

    def close(self) -> None:
        """Let go of the file, once nothing of it is on its way any more."""
        self._await_landed()
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _touch(self, offset: int, length: int) -> None:
        """Note that a part is about to change; it waits for what may still be on its way to the same place."""
        if length < 0 or offset + length > self.size:
            raise StepError(f"{self.name} was said to have {self.size} bytes, and more came.")
        if offset < self._end or self._failure is not None:
            self._settle()
        self._end = offset + length
        with self._landed:
            self._unread.update(granules(offset, length))

    def _store(self, offset: int, data: memoryview, seen: memoryview) -> None:
        if self._direct is not None and self._bypasses and len(data) % SECTOR == 0:
            try:
                write_block(self._direct, offset, data)
                read_block(self._direct, offset, seen)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._bypasses = False  # it wants larger sectors than any that is known
        write_block(self._descriptor, offset, data)
        bring_to_disk(self._descriptor, offset, len(data))
        os.posix_fadvise(self._descriptor, offset, len(data), os.POSIX_FADV_DONTNEED)
        read_block(self._descriptor, offset, seen)

    def _settle(self) -> None:
        """Wait for what is on its way to the disk; raise OSError if it did not get there."""
        self._await_landed()
        self._end = 0
        if self._failure is not None:
            raise self._failure

    def _await_landed(self) -> None:
        with self._landed:
            if not self._landed.wait_for(lambda: self._landing == 0, PATIENCE):
                raise OSError(errno.EIO, f"the disk did not take all of {self.name} within {PATIENCE:g} s")


def _open_direct(directory: int, name: str) -> int | None:
    """Open a file past the page cache; None where its file system knows no such thing."""
    try:
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


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
