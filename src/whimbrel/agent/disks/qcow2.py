"""Making and growing disk files. Formats and backing files are declared in every call, never found out from a disk."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from whimbrel.agent.disks.programs import run
from whimbrel.domain.server import Disk, Image
from whimbrel.migration.ports import Control
from whimbrel.ops import ids

BASE = "base-0"
"""The base image's name in a server's directory: a hard link into the host's cache."""

MIB = 1 << 20
PAGE = 4096


def make_overlay(directory: Path, disk: Disk, image: Image, control: Control) -> None:
    """Make an empty top layer over the base image beside it."""
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", BASE, "-F", image.format]
    run([*argv, disk.name, str(disk.size_mb * MIB)], directory, control)


def make_flat(directory: Path, disk: Disk, image: Image, control: Control) -> None:
    """Make a root disk that stands alone, with the base image's content; holes stay holes."""
    base = _node(directory / BASE, image.format)
    largest = disk.size_mb * MIB * 17 // 16 + 64 * MIB  # what an image's header asks for beyond this is not written
    run(["qemu-img", "convert", "-q", "-O", disk.format, base, disk.name], directory, control, file_bytes=largest)
    grow(directory, disk, None, control)


def make_empty(directory: Path, disk: Disk, control: Control) -> None:
    """Make a disk that reads as zeros."""
    run(["qemu-img", "create", "-q", "-f", disk.format, disk.name, str(disk.size_mb * MIB)], directory, control)


def make_swap(directory: Path, disk: Disk) -> None:
    """Make a raw disk with the header of an empty Linux swap area."""
    path = directory / disk.name
    header = bytearray(PAGE)
    struct.pack_into("<III", header, 1024, 1, disk.size_mb * MIB // PAGE - 1, 0)
    header[1036:1052] = bytes.fromhex(ids.new_hex())
    header[-10:] = b"SWAPSPACE2"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(header)
        file.truncate(disk.size_mb * MIB)


def grow(directory: Path, disk: Disk, image: Image | None, control: Control) -> None:
    """Give a disk its declared size; an overlay's `image` is the one that it stands on. qemu-img never shrinks here."""
    node = _node(directory / disk.name, disk.format, image if disk.base else None)
    run(["qemu-img", "resize", "-q", node, str(disk.size_mb * MIB)], directory, control)


def remove_bitmap(directory: Path, name: str, bitmap: str, control: Control) -> None:
    """Take a bitmap out of a disk file that no process has open; what the disk stands on is not looked at."""
    run(["qemu-img", "bitmap", "--remove", _node(directory / name, "qcow2"), bitmap], directory, control)


def _node(path: Path, format: str, image: Image | None = None) -> str:
    """Name a file to qemu-img with its whole chain, so that nothing is probed and no header is followed."""
    node: dict[str, object] = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
    if format == "qcow2":
        node["backing"] = None
    if image is not None:
        base: dict[str, object] = {
            "driver": image.format,
            "file": {"driver": "file", "filename": str(path.with_name(BASE))},
            "read-only": True,
        }
        if image.format == "qcow2":
            base["backing"] = None
        node["backing"] = base
    return f"json:{json.dumps(node)}"
