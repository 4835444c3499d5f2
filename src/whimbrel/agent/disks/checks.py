"""Looking at a file that somebody else has written before QEMU may: it is what was declared, or it is refused.

A raw file is plain bytes, whatever it looks like, and only its size is looked at.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from whimbrel.agent.disks.extents import open_disk
from whimbrel.agent.disks.qcow2 import BASE
from whimbrel.domain.errors import StepError
from whimbrel.domain.qcow2 import Header, NotSafe, read_header, refuse_pointers
from whimbrel.domain.server import Disk, Image

MIB = 1 << 20


def refuse_image(path: Path, image: Image) -> None:
    """Raise StepError unless a base image stands alone and is as large as it was declared."""
    with _open(path, f"Image {image.id}") as descriptor:
        if image.format == "qcow2":
            header = _header(descriptor, f"Image {image.id}")
            if header.backing is not None or header.backing_format is not None:
                raise StepError(
                    f"Image {image.id} refers to another file, {header.backing or header.backing_format!r}; flatten "
                    f"it with qemu-img convert and upload it again."
                )
            size = header.virtual_bytes
        else:
            size = os.fstat(descriptor).st_size
        if size > image.virtual_size_mb * MIB:
            raise StepError(
                f"Image {image.id} has a disk of {size} bytes and was declared with {image.virtual_size_mb} MiB; "
                f"upload it again."
            )


def base_of(disk: Disk, image: Image | None) -> tuple[str, str] | None:
    """Return name and format of the one file that a disk may stand on."""
    return (BASE, image.format) if disk.base and image else None


def refuse_disk(path: Path, disk: Disk, base: tuple[str, str] | None, *, at_rest: bool = True) -> None:
    """Raise StepError unless a server's disk is as declared; `base` is the name and format of what it stands on.

    The other host's word is not taken for it: that host may have written the header, and QEMU would follow it.
    Of a disk that is not `at_rest` only the header is looked at: its tables are still on their way.
    """
    with _open(path, path.name) as descriptor:
        size = os.fstat(descriptor).st_size
        if disk.format == "qcow2":
            header = _header(descriptor, path.name, at_rest)
            found = None if header.backing is None else (header.backing, header.backing_format)
            if found != base:
                raise StepError(
                    f"{path.name} stands on {_words(found)}, and its server declares {_words(base)}; rebase it where "
                    f"it came from (qemu-img rebase -u), and move the server again."
                )
            size = header.virtual_bytes
        if size > disk.size_mb * MIB:
            raise StepError(
                f"{path.name} is a disk of {size} bytes, and its server declares {disk.size_mb} MiB; resize the "
                f"server to a flavor with a larger disk, or shrink the disk where it came from."
            )


@contextmanager
def _open(path: Path, name: str) -> Iterator[int]:
    descriptor = open_disk(path)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StepError(f"{name} is no regular file; make it one.")
        yield descriptor
    finally:
        os.close(descriptor)


def _header(descriptor: int, name: str, at_rest: bool = True) -> Header:
    read = partial(_read, descriptor)
    size = os.fstat(descriptor).st_size
    try:
        header = read_header(read, size)
        if at_rest:
            refuse_pointers(read, header, size)
    except NotSafe as error:
        raise StepError(f"{name} {error}.") from error
    return header


def _read(descriptor: int, offset: int, length: int) -> bytes:
    return os.pread(descriptor, length, offset)


def _words(base: tuple[str, str | None] | None) -> str:
    return "no other file" if base is None else f"{base[0][:200]!r} ({base[1] or 'no format'})"
