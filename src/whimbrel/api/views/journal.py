"""A migration as its table: every row of each segment's protocol, with marks and times beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from whimbrel.api.views.state import migration_status
from whimbrel.domain.migration import Mark
from whimbrel.migration import protocols
from whimbrel.migration.messages import Foresight, Outlook, Progress, Targets, Way
from whimbrel.migration.protocols import Step
from whimbrel.ops import clock
from whimbrel.store.moves import Story


@dataclass(frozen=True)
class Reader:
    """Whether the reader may see the names of hosts."""

    hosts: bool

    def host(self, name: str | None) -> str | None:
        """Return the name if it may be seen."""
        return name if self.hosts else None

    def text(self, words: str | None, names: Sequence[str | None]) -> str | None:
        """Return a sentence, with the names of hosts taken out if they may not be seen."""
        if words is None or self.hosts:
            return words
        for name in names:
            words = words.replace(name, "(a host)") if name else words
        return words


def migration(story: Story, progress: Progress | None, reader: Reader) -> dict[str, Any]:
    """Return a migration whole."""
    row = story.row
    refused = [each["host"] for each in row.refusals]
    names = sorted({row.source, row.target, *row.tried, *refused} - {None}, key=len, reverse=True)
    return {
        "id": row.id,
        "uuid": row.uuid,
        "server_id": row.server_id,
        "server_name": story.server_name,
        "kind": row.kind,
        "action": row.action,
        "status": migration_status(row, _marks(story)),
        "source": reader.host(row.source),
        "target": reader.host(row.target),
        "attempt": row.attempt,
        "segment": row.segment,
        "open": row.open,
        "window_open": row.window_open,
        "verdict": row.verdict,
        "cancelled": row.cancelled,
        "outcome": row.outcome,
        "reason": reader.text(row.reason, names),
        "request_id": row.request_id,
        "fence": reader.host(row.fence),
        "needs_fence": row.fence is not None,
        "window_closes_at": _time(row.window_closes_at),
        "was_running": row.was_running,
        "rate_limit": (row.steering or {}).get("rate"),
        "hurried": bool((row.steering or {}).get("hurry")),
        "old_flavor": row.old_flavor["name"],
        "new_flavor": row.new_flavor["name"],
        "created_at": _time(row.created_at),
        "updated_at": _time(row.updated_at),
        "finished_at": _time(row.finished_at),
        "targets": [{"host": reader.host(each["host"]), "weight": each["weight"]} for each in row.targets or ()],
        "refusals": [_refusal(each["host"], each["filter"], each["reason"], reader) for each in row.refusals],
        "segments": [_segment(story, number, names, reader) for number in range(len(row.segments))],
        "progress": progress_of(progress, reader) if progress is not None and row.open else None,
    }


def plan(
    row: Row[Any], table: protocols.Protocol, targets: Targets, foresight: Foresight, reader: Reader
) -> dict[str, Any]:
    """Return what a move would be: in which way and why, where to, and step by step."""
    return {
        "server_id": row.server_id,
        "kind": row.kind,
        "source": reader.host(row.source),
        "was_running": row.was_running,
        "old_flavor": row.old_flavor["name"],
        "new_flavor": row.new_flavor["name"],
        "way": foresight.way,
        "reason": reader.text(foresight.reason or None, [row.source]),
        "allocated_bytes": foresight.allocated,
        "possible": bool(targets.hosts) and foresight.way is not Way.NONE,
        "targets": [
            {"host": reader.host(host), "weight": weight}
            for host, weight in zip(targets.hosts, targets.weights, strict=True)
        ],
        "refusals": [_refusal(each.host, each.filter, each.reason, reader) for each in targets.refusals],
        "protocol": table.name,
        "version": table.version,
        "steps": [{"step": step.name, "where": step.where, "why": step.why} for step in table.steps],
    }


def _refusal(host: str, rule: str, reason: str, reader: Reader) -> dict[str, Any]:
    return {"host": reader.host(host), "filter": rule, "reason": reader.text(reason, [host])}


def progress_of(progress: Progress, reader: Reader) -> dict[str, Any]:
    """Return how far a step is: bytes, bytes per second, seconds."""
    outlook = progress.outlook or Outlook()
    return {
        "step": progress.step,
        "attempt": progress.attempt,
        "done": progress.done,
        "total": progress.total,
        "rate": progress.rate,
        "eta": progress.eta,
        "left": max(0, progress.total - progress.done),
        "phase": progress.phase,
        "round": outlook.round,
        "dirty_rate": outlook.dirty_rate,
        "downtime": outlook.downtime,
        "host": reader.host(progress.host),
    }


def _marks(story: Story) -> dict[str, Mark]:
    row = story.row
    return {
        entry.step: Mark(entry.mark)
        for entry in story.entries
        if (entry.segment, entry.attempt) == (row.segment, row.attempt)
    }


def _segment(story: Story, number: int, names: list[str], reader: Reader) -> dict[str, Any]:
    row = story.row
    written = row.segments[number]
    mine = [entry for entry in story.entries if entry.segment == number]
    attempts = {entry.attempt for entry in mine}
    if number == row.segment:
        attempts.add(row.attempt)
    return {
        "protocol": written["protocol"],
        "version": written["version"],
        "request_id": written["request_id"],
        "attempts": [
            _attempt(story, written, attempt, [entry for entry in mine if entry.attempt == attempt], names, reader)
            for attempt in sorted(attempts)
        ],
    }


def _attempt(
    story: Story, written: dict[str, Any], attempt: int, entries: list[Row[Any]], names: list[str], reader: Reader
) -> dict[str, Any]:
    row = story.row
    by_step = {entry.step: entry for entry in entries}
    table = _table(written)
    target = row.target if attempt == row.attempt else row.tried[attempt - 1] if attempt <= len(row.tried) else None
    return {
        "attempt": attempt,
        "target": reader.host(target),
        "steps": [_step(step, by_step.get(step.name), names, reader) for step in table],
    }


def _table(written: dict[str, Any]) -> tuple[Step, ...]:
    """Return the rows of a protocol; none when this release does not hold the version that a record names."""
    try:
        return protocols.protocol(written["protocol"], written["version"]).steps
    except KeyError:
        return ()


def _step(step: Step, entry: Row[Any] | None, names: list[str], reader: Reader) -> dict[str, Any]:
    view: dict[str, Any] = {"step": step.name, "where": step.where, "why": step.why, "mark": None}
    if entry is None:
        return view
    seconds = round(entry.ended_at - entry.started_at, 3) if entry.ended_at and entry.started_at else None
    return view | {
        "host": reader.host(entry.host),
        "mark": entry.mark,
        "started_at": _time(entry.started_at),
        "ended_at": _time(entry.ended_at),
        "seconds": seconds,
        "tries": entry.tries,
        "undo_tries": entry.undo_tries,
        "reason": reader.text(entry.reason or None, names),
        "facts": {**entry.facts, **entry.undo_facts} if reader.hosts else None,
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else clock.iso_micro(seconds) + "Z"
