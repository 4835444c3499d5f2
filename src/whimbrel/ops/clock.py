"""The only place that reads a clock, so that tests and simulations can replace time."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> float:
    """Return seconds since the epoch (UTC). Durable times are written in this unit."""
    return time.time()


def monotonic() -> float:
    """Return seconds of a clock that never goes back, for deadlines inside one process."""
    return time.monotonic()


def processor() -> float:
    """Return seconds that the processors gave to this thread, which waiting for one does not add to."""
    return time.thread_time()


def boottime() -> float:
    """Return seconds since this machine's boot, also those that it slept (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def iso(seconds: float, *, zone: str = "Z") -> str:
    """Format epoch seconds as the OpenStack APIs do, `YYYY-MM-DDTHH:MM:SSZ`; `zone` replaces the suffix."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + zone


def iso_micro(seconds: float) -> str:
    """Format epoch seconds with microseconds and no zone (`launched_at`, action times)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
