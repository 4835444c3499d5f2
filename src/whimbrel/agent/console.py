"""What a guest last wrote to its serial console."""

from __future__ import annotations

import os
from pathlib import Path

TAIL = 1024 * 1024
"""Bytes that are kept in sight; what a guest wrote before is not shown."""


def read(instances_dir: str | Path, server: str, lines: int | None) -> str:
    """Return the last lines of a server's console (None: all in sight); nothing if it has none here."""
    if Path(server).name != server:
        return ""
    try:
        with (Path(instances_dir) / server / "console.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read(TAIL).decode("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if lines is None:
        return text
    kept = text.splitlines(keepends=True)
    return "".join(kept[max(0, len(kept) - max(0, lines)) :])
