"""What is written down of one attempt: for each step its mark, its facts and how often it was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whimbrel.domain.migration import Mark
from whimbrel.migration.messages import Facts


@dataclass(frozen=True)
class Entry:
    """One row of the journal. Times are epoch seconds; `number` is that of the newest order for this step."""

    step: str
    mark: Mark
    number: int = 0
    tries: int = 0
    undo_tries: int = 0
    facts: Facts = field(default_factory=dict)
    undo_facts: Facts = field(default_factory=dict)
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    heard_at: float | None = None
    asked_at: float | None = None


Journal = Mapping[str, Entry]
"""The entries of one attempt of one segment, by step name."""

REACHED = frozenset({Mark.DONE, Mark.SKIPPED, Mark.OWED})
"""Marks that count as done."""

OUTSTANDING = frozenset({Mark.DOING, Mark.UNDOING})
"""Marks under which an order is out and an answer is awaited."""


def reached(journal: Journal, step: str) -> bool:
    """Return whether the step's effect is there, or was rightly left out."""
    entry = journal.get(step)
    return entry is not None and entry.mark in REACHED
