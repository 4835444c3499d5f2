"""The bytes of images: written once under a draft's name, then for ever under their sha256.

A qcow2 header is read here, once, at upload, and only against the format that was declared: what could make a host
open another file, or need a key, is refused. A raw image's content means nothing to us, whatever it looks like.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path

from whimbrel.domain.errors import Invalid, TooLarge, Unavailable
from whimbrel.ops import ids

MAX_IMAGE_BYTES = 256 * 1024**3
MAX_VIRTUAL_BYTES = 64 * 1024**4
STALE_DRAFT_SECONDS = 24 * 3600.0
HEADER_BYTES = 104

_QCOW2 = struct.Struct(">4sIQIIQI")
"""Magic, version, backing file's offset and name length, cluster bits, virtual size, encryption."""

_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _SUBCLUSTERS = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _SUBCLUSTERS


def content_path(folder: Path, sha256: str) -> Path:
    """Return where the content with this digest is."""
    return folder / sha256


def virtual_size(disk_format: str, header: bytes, size_bytes: int) -> int:
    """Return how large a disk the content is, in bytes; Invalid when it is not safely what it was declared to be."""
    return _qcow2_size(header) if disk_format == "qcow2" else size_bytes


def _qcow2_size(header: bytes) -> int:
    if len(header) < _FEATURES_AT:
        raise Invalid("The image was declared qcow2, but it is too short to be one.")
    magic, version, backing_at, backing_length, cluster_bits, size, encryption = _QCOW2.unpack_from(header)
    if magic != b"QFI\xfb":
        raise Invalid("The image was declared qcow2, but it is not one; declare what it is, or convert it.")
    if version not in (2, 3):
        raise Invalid(f"The image is qcow2 of version {version}; only 2 and 3 are known. Convert it.")
    if backing_at or backing_length:
        raise Invalid("The image has a backing file; flatten it first (qemu-img convert).")
    if encryption:
        raise Invalid("The image is encrypted, which is not supported; decrypt it first.")
    if version == 3:
        _check_features(header)
    if not 9 <= cluster_bits <= 21:
        raise Invalid(f"The image's header is damaged: clusters of 2^{cluster_bits} bytes.")
    if not 0 < size <= MAX_VIRTUAL_BYTES:
        raise Invalid(f"The image's virtual size is {size} bytes; it must be above 0 and at most {MAX_VIRTUAL_BYTES}.")
    return int(size)


def _check_features(header: bytes) -> None:
    if len(header) < HEADER_BYTES:
        raise Invalid("The image was declared qcow2, but its header is cut off.")
    (features,) = _FEATURES.unpack_from(header, _FEATURES_AT)
    if features & _DATA_FILE:
        raise Invalid("The image keeps its data in an external file; convert it to one file (qemu-img convert).")
    if features & _CORRUPT:
        raise Invalid("The image is marked as corrupt; repair it first (qemu-img check -r).")
    if features & ~_KNOWN:
        raise Invalid("The image uses qcow2 features that are not known here; convert it (qemu-img convert).")


class Draft:
    """An upload that is not yet an image: feed it, then publish or discard it. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / f"draft-{ids.new_hex()}"
        self._file = self._path.open("xb", buffering=0)
        self._sha256 = hashlib.sha256()
        self.header = b""
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """The digest of what was fed so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def feed(self, data: bytes | bytearray) -> None:
        """Append to the draft; TooLarge above the bound, Unavailable when the disk is full."""
        self.size_bytes += len(data)
        if self.size_bytes > MAX_IMAGE_BYTES:
            raise TooLarge(f"The image is larger than {MAX_IMAGE_BYTES} bytes, which is the most that is taken.")
        self.header += data[: HEADER_BYTES - len(self.header)]
        self._sha256.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Unavailable(f"The image store {self._folder} is full; make room there.") from error

    def sync(self) -> None:
        """Have every byte on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Give the content its final name, durably; the same content may be there already."""
        self._path.replace(content_path(self._folder, self.sha256))
        _sync_folder(self._folder)

    def discard(self) -> None:
        """Leave nothing behind; after `publish` this does nothing."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def remove(folder: Path, sha256: str) -> None:
    """Remove a content that no image has any more."""
    content_path(folder, sha256).unlink(missing_ok=True)


def forget_leftovers(folder: Path, now: float) -> int:
    """Remove drafts that nobody can be feeding any more; `now` is in epoch seconds. Return how many went."""
    drafts = list(folder.glob("draft-*")) if folder.is_dir() else []
    stale = [draft for draft in drafts if draft.stat().st_mtime < now - STALE_DRAFT_SECONDS]
    for draft in stale:
        draft.unlink(missing_ok=True)
    return len(stale)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
