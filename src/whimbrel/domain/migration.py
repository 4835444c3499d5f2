"""The words of a migration: marks, answers of a probe, verdicts, outcomes."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """Why there is a migration record. The last four are what OpenStack lists as migrations."""

    BUILD = "build"
    DELETE = "delete"
    POWER = "power"
    MIGRATION = "migration"
    RESIZE = "resize"
    EVACUATION = "evacuation"
    LIVE = "live-migration"


class Where(enum.StrEnum):
    """Who does a step: the conductor in its own transaction, or the agent of one of the two hosts."""

    CONDUCTOR = "conductor"
    SOURCE = "source"
    TARGET = "target"


class Verb(enum.StrEnum):
    """What an order says to do with its step."""

    DO = "do"
    UNDO = "undo"


class Mark(enum.StrEnum):
    """What the journal says of one step of one attempt."""

    DOING = "doing"
    """The step is being done, or an attempt was made to do it."""
    DONE = "done"
    """Its effect is there: reported, or found by a probe."""
    SKIPPED = "skipped"
    """There was nothing to do (no such host, or not asked for); counts as done."""
    OWED = "owed"
    """Its host cannot be reached; a debt says that the clean-up is still to come. Counts as done."""
    FAILED = "failed"
    """It did not succeed; part of its effect may be there."""
    NOT_DONE = "not_done"
    """Asked about and found without effect, after a crash say; it may be ordered again."""
    LOST = "lost"
    """Its host fell silent for longer than the step's limit: nobody knows."""
    UNDOING = "undoing"
    """Its undo is being done, or an attempt was made to do it."""
    UNDONE = "undone"
    """Its effect is gone."""
    UNDO_FAILED = "undo_failed"
    """The undo was answered with a failure."""
    UNDO_LOST = "undo_lost"
    """The host fell silent while it was to undo the step."""


class Answer(enum.StrEnum):
    """What an agent says of an order, in a report or when it is asked."""

    DONE = "done"
    FAILED = "failed"
    NOT_DONE = "not_done"
    """Never heard of, or found without effect: it may be ordered again."""
    RUNNING = "running"
    UNKNOWN = "unknown"
    """The host answers, but cannot tell (libvirtd is down, say)."""
    STALE = "stale"
    """Refused: the host has seen a newer epoch or order number."""


class Verdict(enum.StrEnum):
    """What closes the undo window. Set once; the same again is accepted, another is a conflict, delete outranks."""

    CONFIRM = "confirm"
    REVERT = "revert"
    DELETE = "delete"


class Outcome(enum.StrEnum):
    """How a migration ended."""

    COMPLETED = "completed"
    """A build, delete or power action did what was asked."""
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    ERROR = "error"
    """It did not happen; the guest is where and as it was."""
    CANCELLED = "cancelled"


class Proof(enum.IntEnum):
    """What may stand in for the word of a silent host: that it cannot run the guest any more."""

    NONE = 0
    """Nothing: what is wanted is on that host."""
    GIVEN = 1
    """An administrator's, because with it goes what the guest may have written there."""
    ANY = 2
    """An administrator's, a fence agent's, or a lease that has run out."""


class Witness(enum.StrEnum):
    """Who has proved that a host cannot run guests."""

    ADMINISTRATOR = "administrator"
    FENCE_AGENT = "fence agent"
    LEASE = "lease"

    def suffices(self, needed: Proof) -> bool:
        """Return whether this one's word may stand in where that proof is needed."""
        return needed is Proof.ANY or (needed is Proof.GIVEN and self is Witness.ADMINISTRATOR)


@dataclass(frozen=True)
class Refusal:
    """Why a host was not chosen: the filter that refused it and a sentence with the figures."""

    host: str
    filter: str
    reason: str
