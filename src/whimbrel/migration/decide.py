"""What happens next, from what is written down. No I/O, no clock: this is the state machine.

Forward: the first row that is not done. Backward, once a row failed or the user cancelled: undo from the bottom
up. The turn is allowed until a row with `no_return` was begun, and not once the guest was let run at the target:
then its own records say so, and the only ways are to start it there again or the user's revert.
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.domain.migration import Mark
from whimbrel.migration.journal import OUTSTANDING, REACHED, Entry, Journal
from whimbrel.migration.protocols import Protocol, Step

TRIES = 3
"""How often one row is ordered, and how often its undo, in one attempt."""

TURNING = frozenset({Mark.FAILED, Mark.LOST, Mark.UNDOING, Mark.UNDONE, Mark.UNDO_FAILED, Mark.UNDO_LOST})
"""Marks that send an attempt backward."""


@dataclass(frozen=True)
class Do:
    """Order the step (or, for the conductor's own, do it now)."""

    step: Step


@dataclass(frozen=True)
class Undo:
    """Order the step's undo."""

    step: Step


@dataclass(frozen=True)
class Wait:
    """An order is out. With `fence`, its host is silent and only that host's word, or a proof, can decide."""

    step: Step
    fence: bool = False


@dataclass(frozen=True)
class Owe:
    """Write a debt of the silent host, and go on."""

    step: Step
    undo: bool


@dataclass(frozen=True)
class Pass:
    """Go on without it: the guest is down where it belongs, and the reason is written down."""

    step: Step
    undo: bool


@dataclass(frozen=True)
class Finished:
    """The attempt is over: everything is done, or everything is undone."""

    done: bool


Decision = Do | Undo | Wait | Owe | Pass | Finished


def decide(protocol: Protocol, journal: Journal, *, cancelled: bool = False) -> Decision:
    """Return the next thing to do for this attempt."""
    turning = cancelled or _has_turned(protocol, journal)
    if turning and not _beyond_return(protocol, journal, cancelled):
        return _backward(protocol, journal)
    return _forward(protocol, journal)


def _has_turned(protocol: Protocol, journal: Journal) -> bool:
    """Return whether a row sends the attempt backward; the silence of a host that is being fenced does not."""
    return any(
        entry.mark in TURNING and not (entry.mark is Mark.LOST and protocol.step(entry.step).fence)
        for entry in journal.values()
    )


def _beyond_return(protocol: Protocol, journal: Journal, cancelled: bool) -> bool:
    """Return whether the attempt may only go forward: a no-return row was begun, or a cancel came too late."""
    if any(step.no_return and step.name in journal for step in protocol.steps):
        return True
    return (
        cancelled
        and not _has_turned(protocol, journal)
        and any(step.turns and step.name in journal for step in protocol.steps)
    )


def _forward(protocol: Protocol, journal: Journal) -> Decision:
    for step in protocol.steps:
        entry = journal.get(step.name)
        if entry is None:
            return Do(step)
        if entry.mark in REACHED:
            continue
        if entry.mark in OUTSTANDING:
            return Wait(step)
        if entry.mark is Mark.LOST:
            return Owe(step, undo=False) if step.owed else Wait(step, fence=True)
        return _again(step, entry)
    return Finished(done=True)


def _again(step: Step, entry: Entry) -> Decision:
    """A row that failed where there is no way back: try again, then owe it or go on without it."""
    if entry.tries < TRIES:
        return Do(step)
    return Owe(step, undo=False) if step.owed else Pass(step, undo=False)


def _backward(protocol: Protocol, journal: Journal) -> Decision:
    for step in reversed(protocol.steps):
        entry = journal.get(step.name)
        if entry is None:
            continue
        decision = _undo(step, entry)
        if decision is not None:
            return decision
    return Finished(done=False)


def _undo(step: Step, entry: Entry) -> Decision | None:
    """Return what undoing this row needs next; None when nothing of it is left."""
    ran = bool(entry.undo_facts.get("released") or entry.facts.get("released"))
    match entry.mark:
        case Mark.UNDOING:
            return Wait(step)
        case Mark.UNDONE if not ran:
            return None
        case Mark.UNDO_LOST if step.fence:
            return None
        case Mark.LOST if step.word:
            return Wait(step, fence=True)
        case Mark.UNDO_LOST:
            return Wait(step, fence=True) if step.word else Owe(step, undo=True)
        case Mark.LOST if step.undo is not None and not step.fence:
            return Owe(step, undo=True)
        case Mark.UNDO_FAILED if entry.undo_tries >= TRIES:
            return Pass(step, undo=True) if step.word or step.fence else Owe(step, undo=True)
        case Mark.FAILED | Mark.UNDONE if ran:
            # It ran at the target, so the source's copy is the older one: never back by itself.
            return Do(step) if entry.tries < TRIES else Pass(step, undo=False)
        case Mark.SKIPPED:
            return None
        case _:
            return Undo(step) if step.undo is not None else None
