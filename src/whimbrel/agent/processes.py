"""Telling a process from a later one that the kernel has given the same pid."""

from __future__ import annotations

from pathlib import Path


def start_time(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot (proc(5), field 22); None if it is not there."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(line.rpartition(")")[2].split()[19])
