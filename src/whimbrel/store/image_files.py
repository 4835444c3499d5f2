"""The bytes of images: written once under a draft's name, then for ever under their sha256.

A qcow2 header is read here, once, at upload, and only against the format that was declared: what could make a host
open another file, or need a key, is refused. A raw image's content means nothing to us, whatever it looks like.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from whimbrel.domain import qcow2
from whimbrel.domain.errors import Invalid, TooLarge, Unavailable
from whimbrel.domain.qcow2 import NotSafe, Read
from whimbrel.ops import ids

MAX_IMAGE_BYTES = 256 * 1024**3
STALE_DRAFT_SECONDS = 24 * 3600.0


def content_path(folder: Path, sha256: str) -> Path:
    """Return where the content with this digest is."""
    return folder / sha256


def virtual_size(disk_format: str, read: Read, size_bytes: int) -> int:
    """Return how large a disk the content is, in bytes; Invalid when it is not safely what it was declared to be."""
    if disk_format != "qcow2":
        return size_bytes
    try:
        header = qcow2.read_header(read, size_bytes)
        if header.backing is not None or header.backing_format is not None:
            raise NotSafe(
                f"has a backing file, {header.backing or header.backing_format!r}; flatten it first (qemu-img convert)"
            )
        if header.snapshots or header.bitmaps:
            raise NotSafe(
                "holds snapshots or dirty bitmaps, which no server could use; leave them out (qemu-img convert)"
            )
        qcow2.refuse_pointers(read, header, size_bytes)
        qcow2.refuse_truncated(read, header, size_bytes)
    except NotSafe as error:
        raise Invalid(f"The image {error}.") from error
    return header.virtual_bytes


class Draft:
    """An upload that is not yet an image: feed it, then publish or discard it. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / f"draft-{ids.new_hex()}"
        self._file = self._path.open("x+b", buffering=0)
        self._sha256 = hashlib.sha256()
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
        self._sha256.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Unavailable(f"The image store {self._folder} is full; make room there.") from error

    def read(self, offset: int, length: int) -> bytes:
        """Return a piece of what was fed so far; less comes at its end."""
        return os.pread(self._file.fileno(), length, offset)

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
