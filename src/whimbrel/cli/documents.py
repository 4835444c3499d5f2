"""A migration as Whimbrel's own API tells it, typed: what the commands read, and what they conclude from it."""

from __future__ import annotations

from typing import Any

import msgspec

from whimbrel.domain.migration import Mark, Outcome
from whimbrel.migration.journal import OUTSTANDING


class Step(msgspec.Struct):
    """One row of an attempt's table. No mark: it has not begun. Times are epoch seconds, or ISO 8601."""

    step: str
    where: str
    host: str | None = None
    mark: str | None = None
    started_at: float | str | None = None
    ended_at: float | str | None = None
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

    host: str
    weight: float = 0.0


class Refusal(msgspec.Struct):
    """A host that the scheduler refused, and why."""

    host: str
    filter: str = ""
    reason: str = ""


class Progress(msgspec.Struct):
    """How far the step that moves bytes is: bytes, bytes per second, seconds."""

    step: str
    done: int
    total: int
    rate: float = 0.0
    eta: float | None = None
    note: str = ""
    host: str = ""


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
    outcome: str | None = None
    reason: str | None = None
    request_id: str = ""
    fence: str | None = None
    window_closes_at: float | str | None = None
    was_running: bool = False
    created_at: float | str | None = None
    finished_at: float | str | None = None
    targets: list[Target] | None = None
    refusals: list[Refusal] | None = None
    segments: list[Segment] = []
    progress: Progress | None = None

    @property
    def name(self) -> str:
        """What people call the server."""
        return self.server_name or self.server_id

    @property
    def way(self) -> str:
        """From where to where."""
        return f"{self.source or '-'} → {self.target or '?'}"

    @property
    def in_window(self) -> bool:
        """Whether it waits for the user's confirm or revert, and neither has been said yet."""
        last = self.segment >= len(self.segments) - 1
        return self.outcome is None and self.status == "finished" and last

    @property
    def resting(self) -> bool:
        """Whether nothing more happens by itself: it has ended, waits for its verdict, or for a proof."""
        return self.outcome is not None or self.in_window or self.fence is not None

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

    def seconds_of(self, step: str) -> float | None:
        """Return how long a step took in the newest attempt that did it, in any segment."""
        found = [
            row.seconds
            for segment in self.segments
            for attempt in segment.attempts
            for row in attempt.steps
            if row.step == step and row.mark == Mark.DONE
        ]
        return found[-1] if found else None


def plain(document: Migration) -> dict[str, Any]:
    """Return the document for JSON."""
    built: dict[str, Any] = msgspec.to_builtins(document)
    return built
