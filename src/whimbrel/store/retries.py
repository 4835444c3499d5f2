"""Which failures of a transaction are nobody's fault and go away when it is run again, and how often that is tried.

A transaction is a plain function over a connection, so running it again is safe as long as the first run left
nothing: everything here is known to have been rolled back. A connection that broke during COMMIT is therefore not
among it, for nobody knows whether that transaction is on the disk.
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

TRIES = 6
FIRST_PAUSE = 0.01
"""Seconds before the second run; before each further one it is twice as long."""

REASONS = {
    "40001": "serialization",
    "40P01": "deadlock",
    "55P03": "lock_timeout",
    "23505": "unique_race",
}
"""PostgreSQL's codes. Two writers that insert the same key at once: the second run finds what the first one wrote."""


class LostRace(Exception):
    """Another process has written this row first; read again and decide anew."""


def reason_of(error: Exception, *, committing: bool) -> str | None:
    """Return in one word why this transaction is worth another run, None when it is not."""
    if isinstance(error, LostRace):
        return "lost_race"
    if not isinstance(error, DBAPIError):
        return None
    if error.connection_invalidated:
        return None if committing else "disconnected"
    return REASONS.get(getattr(error.orig, "sqlstate", None) or "")


def pause_before(run: int) -> float:
    """Return how many seconds to wait before run number `run`; the first is 0."""
    return 0.0 if run == 0 else FIRST_PAUSE * 2.0 ** (run - 1)
