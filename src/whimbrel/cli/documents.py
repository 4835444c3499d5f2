"""A migration as Whimbrel's own API tells it, typed: what the commands read, and what they conclude from it.

A host is None where the reader may not see the names of hosts. Times are ISO 8601, in UTC.
"""

from __future__ import annotations

from typing import Any

import msgspec

from whimbrel.domain.migration import Outcome
from whimbrel.migration.journal import OUTSTANDING


class Step(msgspec.Struct):
    """One row of an attempt's table. No mark: it has not begun."""

    step: str
    where: str
    host: str | None = None
    mark: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    seconds: float | None = None
    tries: int = 0
    reason: str | None = None
    why: str = ""

    @property
    def running(self) -> bool:
        """Whether an order is out for it."""
        return self.mark in OUTSTANDING


class Attempt(msgspec.Struct):
    """One target tried."""

    attempt: int
    target: str | None = None
    steps: list[Step] = []


class Segment(msgspec.Struct):
    """One protocol that is followed: the move, then its confirm or revert."""

    protocol: str
    version: int
    attempts: list[Attempt] = []


class Target(msgspec.Struct):
    """A host that the scheduler chose, best first."""

    host: str | None = None
    weight: float = 0.0


class Refusal(msgspec.Struct):
    """A host that the scheduler refused, and why."""

    host: str | None = None
    filter: str = ""
    reason: str = ""


class Progress(msgspec.Struct):
    """How far the step that moves bytes is: bytes, bytes per second, seconds."""

    step: str
    done: int
    total: int
    rate: float = 0.0
    eta: float | None = None
    phase: str = "disks"
    round: int = 1
    dirty_rate: float | None = None
    downtime: float | None = None
    host: str | None = None


class Migration(msgspec.Struct):
    """One migration with its journal."""

    id: int
    uuid: str
    server_id: str
    kind: str
    status: str
    server_name: str | None = None
    action: str | None = None
    source: str | None = None
    target: str | None = None
    attempt: int = 1
    segment: int = 0
    open: bool = True
    window_open: bool = False
    verdict: str | None = None
    outcome: str | None = None
    reason: str | None = None
    request_id: str = ""
    needs_fence: bool = False
    fence: str | None = None
    window_closes_at: str | None = None
    was_running: bool = False
    created_at: str | None = None
    finished_at: str | None = None
    targets: list[Target] = []
    refusals: list[Refusal] = []
    segments: list[Segment] = []
    progress: Progress | None = None

    @property
    def name(self) -> str:
        """What people call the server."""
        return self.server_name or self.server_id

    @property
    def way(self) -> str:
        """From where to where, or where; empty when no host is known, or none may be seen."""
        if self.source is None:
            return f"on {self.target}" if self.target else ""
        return f"{self.source} → {self.target or '?'}"

    @property
    def in_window(self) -> bool:
        """Whether it waits for the user's confirm or revert, and neither has been said yet."""
        return self.window_open and self.verdict is None

    @property
    def resting(self) -> bool:
        """Whether nothing more happens by itself: it has ended, waits for its verdict, or for a proof."""
        return not self.open or self.in_window or self.needs_fence

    @property
    def failed(self) -> bool:
        """Whether it ended without what was asked for."""
        return self.outcome in (Outcome.ERROR, Outcome.CANCELLED)

    @property
    def steps(self) -> list[Step]:
        """The rows of the newest attempt of the current segment."""
        segments = self.segments[: self.segment + 1]
        attempts = segments[-1].attempts if segments else []
        return attempts[-1].steps if attempts else []


def plain(document: Migration) -> dict[str, Any]:
    """Return the document for JSON."""
    built: dict[str, Any] = msgspec.to_builtins(document)
    return built
