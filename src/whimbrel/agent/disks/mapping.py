"""Where a qcow2 file keeps what: which cluster of the file holds which cluster of the guest's disk, and its bitmaps.

Read by ourselves, because it is needed of a file that QEMU has open, and in the moment in which a guest is down. What
a file of a running guest says may be late, since QEMU writes its tables back when it likes; what a closed one says is
exact. The format is docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.agent.disks.extents import open_disk
from whimbrel.agent.disks.frames import GRANULE
from whimbrel.domain.errors import StepError

Clusters = npt.NDArray[np.int64]

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ QQQII")
_EXTENSION = struct.Struct(">II")
_BITMAPS_EXTENSION = 0x23852875
_BITMAPS = struct.Struct(">IIQQ")
_BITMAP = struct.Struct(">QIIBBHI")
_OFFSET = np.uint64(0x00FFFFFFFFFFFE00)
_COMPRESSED = np.uint64(1 << 62)
_KNOWN_FEATURES = 1
"""Incompatible features: only that a crash left reference counts to be mended, which does not concern the mapping."""
_TABLE_LIMIT = 64 << 20
"""Bytes of one table; a larger one is no table of a disk that could be served."""


class Unreadable(StepError):
    """This file is not laid out in the plain way that can be followed; the text says how it differs."""


class Tables:
    """The tables of one qcow2 file as they stand in it now."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = _HEADER.unpack(self._read(0, _HEADER.size))
        magic, version, _, _, bits, self.disk_size, _, l1_size, l1_offset = head[:9]
        features, _, self._autoclear, _, self._header_size = head[13:]
        if magic != b"QFI\xfb" or version < 3:
            raise Unreadable("it is no qcow2 file of version 3")
        if 1 << bits != GRANULE:
            raise Unreadable(f"its clusters have {1 << bits} bytes, not {GRANULE}")
        if features & ~_KNOWN_FEATURES:
            raise Unreadable(f"it has the incompatible features {features:#x}")
        self._l1 = self._table(l1_offset, l1_size)

    def clusters(self) -> Clusters:
        """Return for each cluster of the disk the number of the file's cluster that holds it, 0 for none."""
        per_table = GRANULE // 8
        count = -(-self.disk_size // GRANULE)
        found = np.zeros(len(self._l1) * per_table, dtype=np.int64)
        for index, offset in enumerate(self._l1 & _OFFSET):
            if offset:
                entries = self._table(int(offset), per_table)
                if (entries & _COMPRESSED).any():
                    raise Unreadable("it has compressed clusters")
                found[index * per_table : (index + 1) * per_table] = (entries & _OFFSET) // np.uint64(GRANULE)
        return found[:count]

    def bitmaps(self) -> dict[str, Clusters | None]:
        """Return by its name each bitmap's set clusters of the disk; None for one that was not closed in order."""
        found: dict[str, Clusters | None] = {}
        for name, table, size, in_use, bits in self._directory():
            found[name] = None if in_use or not self._autoclear & 1 else self._set_clusters(table, size, bits)
        return found

    def _directory(self) -> Iterator[tuple[str, int, int, bool, int]]:
        extension = self._extension(_BITMAPS_EXTENSION)
        if extension is None:
            return
        count, _, size, offset = _BITMAPS.unpack_from(extension)
        entries, place = self._read(offset, min(size, _TABLE_LIMIT)), 0
        for _ in range(count):
            table, table_size, flags, _, bits, name_size, extra = _BITMAP.unpack_from(entries, place)
            start = place + _BITMAP.size + extra
            yield entries[start : start + name_size].decode(), table, table_size, bool(flags & 1), bits
            place += -(-(_BITMAP.size + extra + name_size) // 8) * 8

    def _set_clusters(self, table: int, size: int, bits: int) -> Clusters:
        if bits < 16:
            raise Unreadable(f"its bitmap has a granularity of {1 << bits} bytes")
        parts = []
        for entry in self._table(table, size):
            if entry & _OFFSET:
                parts.append(np.frombuffer(self._read(int(entry & _OFFSET), GRANULE), dtype=np.uint8))
            else:
                parts.append(np.full(GRANULE, 0xFF if int(entry) & 1 else 0, dtype=np.uint8))
        flags = np.unpackbits(np.concatenate(parts), bitorder="little") if parts else np.zeros(0, dtype=np.uint8)
        count = -(-self.disk_size // GRANULE)
        return np.flatnonzero(np.repeat(flags, 1 << (bits - 16))[:count]).astype(np.int64)

    def _extension(self, wanted: int) -> bytes | None:
        place = self._header_size
        while place < GRANULE:
            kind, length = _EXTENSION.unpack(self._read(place, _EXTENSION.size))
            if kind == 0:
                return None
            if kind == wanted:
                return self._read(place + _EXTENSION.size, length)
            place += _EXTENSION.size + -(-length // 8) * 8
        return None

    def _table(self, offset: int, entries: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._read(offset, entries * 8), dtype=">u8").astype(np.uint64)

    def _read(self, offset: int, length: int) -> bytes:
        if length > _TABLE_LIMIT:
            raise Unreadable(f"it has a table of {length} bytes")
        found = os.pread(self._descriptor, length, offset)
        if len(found) < length:
            raise Unreadable(f"it ends before a table at byte {offset}")
        return found


def read_bitmaps(path: Path) -> dict[str, Clusters | None]:
    """Return a disk file's bitmaps as `Tables.bitmaps` does; raise Unreadable when it cannot be followed."""
    descriptor = open_disk(path)
    try:
        return Tables(descriptor).bitmaps()
    finally:
        os.close(descriptor)


def refuse_unusual(path: Path) -> None:
    """Raise Unreadable when a disk file is laid out in a way that `Tables` does not follow."""
    descriptor = open_disk(path)
    try:
        Tables(descriptor).clusters()
    finally:
        os.close(descriptor)
