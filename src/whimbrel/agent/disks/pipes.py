"""The pipes to ssh and from sshd: wide, never blocking, and emptied and filled by large pieces.

Their other ends take and give a few KiB at a time. Who wakes for each of these spends more on waking than on the bytes
(0.4 s of processor time for each GiB at either end), so it waits a moment longer and then moves all that there is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

PIPE_BYTES = 1 << 20

GATHER = 0.001
"""Seconds in which a full pipe empties further, or an empty one fills. A wide pipe lasts longer on any channel."""


def widen(descriptor: int) -> None:
    """Let a pipe hold more, where it is one and may, and let nobody who uses this end wait in the kernel."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(OSError):  # no pipe, or its user has enough of them (pipe(7))
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
