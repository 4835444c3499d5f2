"""Which files a QEMU has opened for a guest, by its own word.

A QEMU that takes over a running guest opens its disks while their source may still write to them. What a header named
in that moment may be gone from it when the copy is verified, and QEMU would keep the file open all the same. So what
counts is what it has open in the end, before the guest is let run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from whimbrel.domain.errors import StepError

FORMATS = ("qcow2", "raw")
"""Nodes that open nothing themselves: what they lie on is a node of its own."""


def refuse_opened(nodes: Iterable[Mapping[str, Any]], directory: Path, server: str, firmware: str | None) -> None:
    """Raise StepError if one of QEMU's block nodes (query-named-block-nodes) is no file of the server's directory.

    The firmware's code, if it has any, is the host's, and only read. That is said at the format node: the file node
    under it is opened for no more than the nodes above it may do (libvirt's auto-read-only).
    """
    for node in nodes:
        driver, file = str(node.get("drv")), str(node.get("file"))
        if firmware is not None and file == firmware:
            fine = driver == "file" or (driver in FORMATS and node.get("ro") is True)
        else:
            fine = driver in FORMATS or (driver == "file" and Path(file).parent == directory)
        if not fine:
            raise StepError(
                f"QEMU of server {server} has opened {file[:200]!r} ({driver}), which is none of its files; its source "
                f"made it do so, and is not to be trusted."
            )
