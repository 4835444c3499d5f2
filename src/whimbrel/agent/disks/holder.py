"""Who may write into an attempt's directory: one receiver at a time, and none once the directory is removed.

The lock is on the directory and goes with its holder; whom to end stands in a file beside the disks. A receiver whose
files were removed under it would otherwise go on to fill the host with what has no name any more.

This module imports the standard library only, because the receiver of a copy starts with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from pathlib import Path

from whimbrel.agent.processes import start_time
from whimbrel.domain.errors import StepError
from whimbrel.ops import clock

HOLDER = ".receiver"
"""The file that says which process receives an attempt's files."""

OTHER_LEAVES_WITHIN = 20.0
"""Seconds that an older receiver of the same attempt gets to end."""


def become_only(directory: int) -> None:
    """End the receiver that an earlier channel has left on this directory, and keep later ones waiting for us."""
    lock(directory)
    own = os.open(HOLDER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    with os.fdopen(own, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {start_time(os.getpid())}")


def lock(directory: int) -> None:
    """Take the lock of an attempt's directory from whoever has it; StepError if that one does not end."""
    deadline = clock.monotonic() + OTHER_LEAVES_WITHIN
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            _end_holder(directory)
        if clock.monotonic() > deadline:
            raise StepError("another copy of the same attempt is under way here and does not end.")
        threading.Event().wait(0.05)


def end_receiver(path: Path) -> None:
    """End whoever receives into a directory that nobody can find by its name any more."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _end_holder(directory)
    finally:
        os.close(directory)


def _end_holder(directory: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(HOLDER, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        with os.fdopen(descriptor, encoding="ascii") as file:
            pid, began = (int(word) for word in file.read(64).split())
        if start_time(pid) == began:
            os.kill(pid, signal.SIGKILL)
