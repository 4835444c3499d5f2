"""Instance actions and their events, read from the journal: what was asked, step by step, and how it went."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from whimbrel.api.call import Version
from whimbrel.api.views.servers import host_id
from whimbrel.domain.migration import Kind, Mark, Outcome
from whimbrel.ops import clock
from whimbrel.store.actions import Told

WELL = frozenset({Mark.DONE, Mark.SKIPPED, Mark.OWED})
AT_WORK = frozenset({Mark.DOING, Mark.UNDOING, Mark.NOT_DONE})


def action(told: Told, version: Version) -> dict[str, Any]:
    """Return an action without its events."""
    row = told.action
    view = {
        "action": row.action,
        "instance_uuid": row.server_id,
        "request_id": row.request_id,
        "user_id": row.user_id,
        "project_id": row.project_id,
        "start_time": clock.iso_micro(row.started_at),
        "message": row.message or ("Error" if failed(told) else None),
    }
    if version >= (2, 58):
        view["updated_at"] = clock.iso_micro(updated_at(told))
    return view


def updated_at(told: Told) -> float:
    """Return when something last happened for this action, in epoch seconds."""
    times = [moment for entry in told.entries for moment in (entry.started_at, entry.ended_at) if moment is not None]
    if told.migration is not None and not told.migration.open and _is_last(told):
        times.append(told.migration.finished_at or told.migration.updated_at)
    return float(max([told.action.updated_at, *times]))


def failed(told: Told) -> bool:
    """Return whether what was asked did not come about."""
    move = told.migration
    if move is None:
        return False
    if not move.open and _is_last(told):
        return bool(move.outcome in (Outcome.ERROR, Outcome.CANCELLED))
    over = move.segment > told.action.segment or move.window_open
    newest = max((entry.attempt for entry in told.entries), default=0)
    return bool(over and any(entry.mark not in WELL for entry in told.entries if entry.attempt == newest))


def _is_last(told: Told) -> bool:
    assert told.migration is not None
    return bool(told.migration.segment == told.action.segment)


def events(told: Told, version: Version, *, admin: bool) -> list[dict[str, Any]]:
    """Return the action's events in the order in which they began."""
    rows = [_step(entry, told, version, admin) for entry in told.entries]
    if told.migration is not None and told.action.segment == 0 and told.migration.kind in _CHOICES:
        rows.insert(0, _choice(told, version, admin))
    return rows


_CHOICES = {
    Kind.BUILD: "schedule_servers",
    Kind.MIGRATION: "cold_migrate",
    Kind.RESIZE: "cold_migrate",
    Kind.EVACUATION: "rebuild_server",
    Kind.LIVE: "live_migrate",
}


def _choice(told: Told, version: Version, admin: bool) -> dict[str, Any]:
    """The scheduler's part: which hosts there were, or why there was none."""
    move = told.migration
    assert move is not None
    done = move.targets is not None
    refusals = [f"{row['host'] if admin else 'a host'}: {row['reason']}" for row in move.refusals]
    began = min((entry.started_at for entry in told.entries if entry.started_at), default=move.updated_at)
    result = None if not done else "Success" if move.targets else "Error"
    details = None if move.targets or not done else "No valid host was found. " + "; ".join(refusals)
    view = {
        "event": _CHOICES[move.kind],
        "start_time": clock.iso_micro(move.created_at),
        "finish_time": clock.iso_micro(began) if done else None,
        "result": result,
        "traceback": None,
    }
    return _versioned(view, (None, details.strip() if details else None), told, version, admin)


def _step(entry: Row[Any], told: Told, version: Version, admin: bool) -> dict[str, Any]:
    mark = Mark(entry.mark)
    result = "Success" if mark in WELL else None if mark in AT_WORK else "Error"
    if mark is Mark.UNDONE and not entry.reason:
        result = "Success"
    details = _without_hosts(entry.reason, told, entry) if not admin else entry.reason
    if mark is Mark.UNDONE:
        details = f"Undone. {details}".strip()
    view = {
        "event": f"{'compute' if entry.host else 'conductor'}_{entry.step}",
        "start_time": clock.iso_micro(entry.started_at or told.action.started_at),
        "finish_time": clock.iso_micro(entry.ended_at) if entry.ended_at and mark not in AT_WORK else None,
        "result": result,
        "traceback": None,
    }
    return _versioned(view, (entry.host, details or None), told, version, admin)


def _without_hosts(words: str, told: Told, entry: Row[Any]) -> str:
    """Take the names of hosts out of a sentence: only administrators may see them."""
    move = told.migration
    for name in {entry.host, *((move.source, move.target, *move.tried) if move is not None else ())} - {None}:
        words = words.replace(name, "(a host)")
    return words


def _versioned(
    view: dict[str, Any], where_and_why: tuple[str | None, str | None], told: Told, version: Version, admin: bool
) -> dict[str, Any]:
    host, details = where_and_why
    if not admin and version >= (2, 51):
        del view["traceback"]
    if version >= (2, 62):
        view["hostId"] = host_id(told.action.project_id, host)
        if admin:
            view["host"] = host or ""
    if version >= (2, 84):
        view["details"] = details
    return view
