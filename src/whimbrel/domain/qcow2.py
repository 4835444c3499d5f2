"""What a qcow2 file says of itself, read strictly and within bounds, before any tool is let near it.

Whoever uploads an image writes its header, and whoever sends a disk may have: it can name files of the host, ask for
gigabytes of tables, or lie. So a file is refused unless each of its claims is one that a server's disk may make, and
`qemu-img info` is never asked about a file that has not passed. Layout and names are those of QEMU's
docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from whimbrel.ops.errors import WhimbrelError

Read = Callable[[int, int], bytes]
"""Read (offset, length) of the file; less than `length` comes at its end."""

MAX_VIRTUAL_BYTES = 64 * 1024**4
HEAD_BYTES = 64 * 1024
"""The header, its extensions and the backing file's name must be here; QEMU writes less than 1 KiB."""
MAX_L1_BYTES = 32 * 1024**2
MAX_REFCOUNT_TABLE_BYTES = 8 * 1024**2
MAX_MAPPING_BYTES = 64 * 1024**2
"""Second-level tables that are read of an upload: enough for 512 GiB in clusters of 64 KiB."""
MAX_READ_BYTES = HEAD_BYTES + MAX_L1_BYTES + MAX_REFCOUNT_TABLE_BYTES + MAX_MAPPING_BYTES
MAX_SNAPSHOTS = 65536

MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_BLOCK = 64 * 1024
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _SUBCLUSTERS = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _SUBCLUSTERS
_RAW_DATA_FILE = 1 << 1
_END, _BACKING_FORMAT, _FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857
_BITMAPS, _ENCRYPTION, _DATA_FILE_NAME = 0x23852875, 0x0537BE77, 0x44415441
_L1_OFFSET = 0x00FF_FFFF_FFFF_FE00
_REFCOUNT_OFFSET = 0xFFFF_FFFF_FFFF_FE00


class NotSafe(WhimbrelError):
    """The file is not one that a server's disk may be. The message goes on a sentence that the file's name begins."""


@dataclass(frozen=True)
class Header:
    """What a file's header claims, once each claim was found to lie within the file and the format's own limits."""

    virtual_bytes: int
    cluster_bits: int
    backing: str | None
    backing_format: str | None
    snapshots: int
    bitmaps: bool
    subclusters: bool
    l1_at: int
    l1_entries: int
    refcount_at: int
    refcount_clusters: int

    @property
    def cluster(self) -> int:
        """Bytes of one cluster."""
        return 1 << self.cluster_bits


def read_header(read: Read, file_bytes: int) -> Header:
    """Read a header, at most HEAD_BYTES of the file; raise NotSafe for a reference out of the file or a false claim.

    A backing file is reported and not refused: only the caller knows what was declared.
    """
    head = read(0, HEAD_BYTES)
    if not head.startswith(MAGIC):
        raise NotSafe("was declared as qcow2 and is not one; declare what it is, or convert it (qemu-img convert)")
    if len(head) < _V2.size:
        raise NotSafe("was declared as qcow2 and is too short to be one; upload all of it")
    _, version, backing_at, backing_length, cluster_bits, virtual, encryption, *tables = _V2.unpack_from(head)
    if version not in (2, 3):
        raise NotSafe(f"is qcow2 of version {version}; only 2 and 3 are known, so convert it (qemu-img convert)")
    if not 9 <= cluster_bits <= 21:
        raise NotSafe(f"has a damaged header: clusters of 2^{cluster_bits} bytes; convert it (qemu-img convert)")
    if encryption:
        raise NotSafe("is encrypted, which is not supported; decrypt it first (qemu-img convert)")
    if not 0 < virtual <= MAX_VIRTUAL_BYTES:
        raise NotSafe(f"has a virtual size of {virtual} bytes; it must be above 0 and at most {MAX_VIRTUAL_BYTES}")
    features, length = _features(head, version, 1 << cluster_bits)
    end = min(len(head), 1 << cluster_bits)
    backing = None
    if backing_at or backing_length:
        end, backing = backing_at, _backing(head[:end], backing_at, backing_length, length)
    extensions = dict(_extensions(head[:end], length, ended=backing is not None))
    if _ENCRYPTION in extensions:
        raise NotSafe("has the header of an encrypted disk and says that it is not one; convert it (qemu-img convert)")
    if _DATA_FILE_NAME in extensions:
        raise NotSafe("keeps its data in another file, an external data file; convert it to one (qemu-img convert)")
    declared = extensions.get(_BACKING_FORMAT)
    l1_entries, l1_at, refcount_at, refcount_clusters, snapshots, snapshots_at = tables
    header = Header(
        virtual_bytes=virtual,
        cluster_bits=cluster_bits,
        backing=backing,
        backing_format=None if declared is None else declared.decode("ascii", "replace"),
        snapshots=snapshots,
        bitmaps=_BITMAPS in extensions,
        subclusters=bool(features & _SUBCLUSTERS),
        l1_at=l1_at,
        l1_entries=l1_entries,
        refcount_at=refcount_at,
        refcount_clusters=refcount_clusters,
    )
    _refuse_tables(header, file_bytes)
    if snapshots > MAX_SNAPSHOTS or (snapshots and not length <= snapshots_at < file_bytes):
        raise _damaged(f"{snapshots} snapshots at byte {snapshots_at}")
    return header


def refuse_pointers(read: Read, header: Header, file_bytes: int) -> None:
    """Raise NotSafe if a first-level or refcount table points out of the file; reads no more than these two."""
    for _ in _pointers(read, header.l1_at, header.l1_entries, header, file_bytes):
        pass
    entries = header.refcount_clusters * header.cluster // 8
    for _ in _pointers(read, header.refcount_at, entries, header, file_bytes, _REFCOUNT_OFFSET):
        pass


def refuse_truncated(read: Read, header: Header, file_bytes: int) -> None:
    """Raise NotSafe if a cluster lies out of the file, where QEMU would read zeros, or the tables are beyond bounds."""
    budget = MAX_MAPPING_BYTES // header.cluster
    compressed_offset = (1 << (62 - (header.cluster_bits - 8))) - 1
    for count, table_at in enumerate(_pointers(read, header.l1_at, header.l1_entries, header, file_bytes)):
        if count >= budget:
            raise NotSafe(f"has more than {MAX_MAPPING_BYTES} bytes of tables; convert it to clusters of 64 KiB")
        for entry in _entries(read(table_at, header.cluster))[:: 2 if header.subclusters else 1]:
            offset = entry & (compressed_offset if entry >> 62 & 1 else _L1_OFFSET)
            if offset >= file_bytes:
                raise NotSafe(f"is cut off: data is missing at byte {offset} of {file_bytes}; upload all of it")


def _features(head: bytes, version: int, cluster: int) -> tuple[int, int]:
    """Return the incompatible features and the header's length."""
    if version == 2:
        return 0, _V2.size
    if len(head) < _V2.size + _V3.size:
        raise NotSafe("was declared as qcow2, but its header is cut off; upload all of it")
    features, _, clearable, refcount_order, length = _V3.unpack_from(head, _V2.size)
    if features & _DATA_FILE or clearable & _RAW_DATA_FILE:
        raise NotSafe("keeps its data in another file, an external data file; convert it to one (qemu-img convert)")
    if features & _CORRUPT:
        raise NotSafe("is marked as corrupt; repair it first (qemu-img check -r all)")
    if features & ~_KNOWN:
        raise NotSafe(f"uses qcow2 features that are not known here ({features:#x}); convert it (qemu-img convert)")
    if refcount_order > 6:
        raise _damaged(f"refcounts of 2^{refcount_order} bits")
    if length < _V2.size + _V3.size or length % 8 or length > min(cluster, len(head)):
        raise _damaged(f"a header of {length} bytes")
    if features & _COMPRESSION and (length <= 104 or head[104] != 1):
        raise _damaged("an unknown kind of compression")
    if features & _SUBCLUSTERS and cluster < 1 << 14:
        raise _damaged(f"subclusters in clusters of {cluster} bytes")
    return features, length


def _backing(head: bytes, at: int, length: int, header_length: int) -> str:
    if not 1 <= length <= 1023 or at < header_length or at + length > len(head):
        raise _damaged(f"a backing file's name of {length} bytes at byte {at}")
    return head[at : at + length].decode("utf-8", "backslashreplace")


def _extensions(head: bytes, at: int, *, ended: bool) -> Iterator[tuple[int, bytes]]:
    """Yield each header extension; they end with one of type 0, or where the backing file's name begins."""
    while not (ended and at == len(head)):
        if at + _EXTENSION.size > len(head):
            raise _damaged("header extensions that do not end")
        kind, length = _EXTENSION.unpack_from(head, at)
        if kind == _END:
            return
        at += _EXTENSION.size
        if length > len(head) - at:
            raise _damaged(f"a header extension {kind:#x} of {length} bytes")
        yield kind, head[at : at + length]
        at += -(-length // 8) * 8


def _refuse_tables(header: Header, file_bytes: int) -> None:
    """Raise NotSafe unless the two tables that QEMU loads at once are of sane size and within the file."""
    covered = header.cluster // (16 if header.subclusters else 8) * header.cluster
    needed = -(-header.virtual_bytes // covered)
    l1_bytes, refcount_bytes = 8 * header.l1_entries, header.refcount_clusters * header.cluster
    if not needed <= header.l1_entries or l1_bytes > MAX_L1_BYTES:
        raise _damaged(f"{header.l1_entries} first-level entries for {header.virtual_bytes} bytes")
    if not 0 < refcount_bytes <= MAX_REFCOUNT_TABLE_BYTES:
        raise _damaged(f"a refcount table of {header.refcount_clusters} clusters")
    for name, at, length in (("first-level", header.l1_at, l1_bytes), ("refcount", header.refcount_at, refcount_bytes)):
        if at == 0 or at % header.cluster or at + length > file_bytes:
            raise _damaged(f"its {name} table at byte {at}, {length} bytes long, in a file of {file_bytes}")


def _pointers(
    read: Read, at: int, count: int, header: Header, file_bytes: int, mask: int = _L1_OFFSET
) -> Iterator[int]:
    """Yield where each table is that this table names."""
    for start in range(0, 8 * count, _BLOCK):
        for entry in _entries(read(at + start, min(_BLOCK, 8 * count - start))):
            offset = entry & mask
            if offset % header.cluster or offset >= file_bytes:
                raise _damaged(f"a table at byte {offset} of {file_bytes}")
            if offset:
                yield offset


def _entries(table: bytes) -> array[int]:
    entries = array("Q", table[: len(table) // 8 * 8])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def _damaged(what: str) -> NotSafe:
    return NotSafe(f"has a damaged header: {what}; convert it, or repair it (qemu-img check -r all)")
