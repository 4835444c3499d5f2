"""The processes that steps of an earlier run of the agent left behind: ended before anything else is begun.

A pid alone is no proof, for the kernel gives it out again; together with the start time it is.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

import structlog

from whimbrel.agent.ledger import Child, Ledger
from whimbrel.agent.processes import start_time

TERM_PATIENCE = 2.0
"""Seconds for a process to end when asked, before it is killed; the same again for the kernel to be done."""

log = structlog.get_logger(__name__)


def end_children(ledger: Ledger) -> None:
    """End every recorded process that is still the one that was recorded, and forget them all."""
    for child in ledger.children():
        if end(child):
            log.warning("a process outlived the agent that started it", pid=child.pid, purpose=child.purpose)
        ledger.forget_child(child.pid)


def end(child: Child) -> bool:
    """Ask the process to end, then kill it; return whether it was there."""
    try:
        handle = os.pidfd_open(child.pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(child.pid) != child.start_time:  # looked at only now: the handle pins the process
            return False
        for name in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, name)
            if select.select([handle], [], [], TERM_PATIENCE)[0]:
                break
        return True
    finally:
        os.close(handle)
