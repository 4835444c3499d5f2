"""What a guest last wrote to its serial console, here and on the hosts that it came from.

A move carries the end of it in a file of its own, so `console.log` holds only what was written on this host.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from whimbrel.agent.disks.frames import EARLIER, MOST_CONSOLE

CONSOLE = "console.log"


def read(instances_dir: str | Path, server: str, lines: int | None) -> str:
    """Return the last lines of a server's console (None: all in sight); nothing if it has none here."""
    if Path(server).name != server:
        return ""
    with suppress(FileNotFoundError, NotADirectoryError):
        text = tail(Path(instances_dir) / server).decode("utf-8", errors="replace")
        if lines is None:
            return text
        kept = text.splitlines(keepends=True)
        return "".join(kept[max(0, len(kept) - max(0, lines)) :])
    return ""


def tail(home: Path) -> bytes:
    """Return the last MOST_CONSOLE bytes of the console in a server's directory, what was carried there first.

    Raise FileNotFoundError if there is neither.
    """
    try:
        here = _end_of(home / CONSOLE, MOST_CONSOLE)
    except FileNotFoundError:
        return _end_of(home / EARLIER, MOST_CONSOLE)
    with suppress(FileNotFoundError):
        return _end_of(home / EARLIER, MOST_CONSOLE - len(here)) + here
    return here


def _end_of(path: Path, most: int) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most))
        return file.read(most)
