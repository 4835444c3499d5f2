"""How an attempt, a segment and a migration end, and what follows: next target, undo window, next segment."""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import Connection, Row

from whimbrel.domain.migration import Kind, Mark, Outcome, Verdict
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.migration.journal import Entry
from whimbrel.migration.protocols import Protocol
from whimbrel.ops import clock, settings
from whimbrel.store import journal, migrations, servers_core

_log = structlog.get_logger()

CANCELLED = "It was cancelled on request."


def finish(tx: Connection, migration: Row[Any], table: Protocol, *, done: bool, conf: settings.Conductor) -> bool:
    """End this attempt; return whether there is something to decide right away."""
    if migration.verdict == Verdict.DELETE and table.name != "delete":
        return next_segment(tx, migration)
    match table.name, done:
        case (("cold" | "resize" | "suspended"), True):
            return _open_window(tx, migration, conf.confirm_window)
        case (("cold" | "resize" | "suspended" | "live" | "build" | "evacuate"), False):
            return _next_attempt(tx, migration)
        case "live", True:
            return _close(tx, migration, Outcome.COMPLETED)
        case (("build" | "evacuate"), True):
            servers_core.set_values(tx, migration.server_id, launched_at=clock.now(), fault=None)
            return _close(tx, migration, Outcome.COMPLETED)
        case "confirm", _:
            return _close(tx, migration, Outcome.CONFIRMED)
        case "revert", True:
            return _close(tx, migration, Outcome.REVERTED, _reason(_entries(tx, migration)))
        case "revert", False:
            return _reopen_window(tx, migration)
        case "power", _:
            failed = _reason(_entries(tx, migration)) if not done else None
            if not done:
                # The order may never have come, so what the host says of its guest counts again, whatever its number.
                will = {"power_state": PowerState.RUNNING} if _is_still_to_run(tx, migration) else {}
                servers_core.set_values(tx, migration.server_id, host_number=0, **will)
            return _close(tx, migration, Outcome.COMPLETED if done else Outcome.ERROR, failed)
        case _:
            # A move whose server is deleted in its undo window counts as confirmed, as in Nova.
            moved = migration.kind in (Kind.MIGRATION, Kind.RESIZE) and migration.finished_at is not None
            return _close(tx, migration, Outcome.CONFIRMED if moved else Outcome.COMPLETED)


def next_segment(tx: Connection, migration: Row[Any]) -> bool:
    """Go on to the segment that the verdict has added; a delete skips any that was added before it."""
    to = len(migration.segments) - 1
    migrations.save(
        tx,
        migration.id,
        migration.revision,
        {"segment": to, "window_open": False, "window_closes_at": None, "fence": None},
    )
    return True


def no_host(tx: Connection, migration: Row[Any]) -> bool:
    """End a migration for which no host is left, with what the scheduler said of each."""
    if migration.tried:
        reason = migration.reason or "Every host that could take the server failed."
    else:
        refusals = "; ".join(f"{row['host']}: {row['reason']}" for row in migration.refusals)
        reason = f"No valid host was found. {refusals}" if refusals else "No valid host was found."
    return _fail(tx, migration, reason)


def _next_attempt(tx: Connection, migration: Row[Any]) -> bool:
    """This target did not work out; everything is undone, so try the next one, or end."""
    if migration.cancelled:
        if migration.kind == Kind.BUILD:
            fault = {"code": 500, "created": clock.now(), "message": CANCELLED}
            servers_core.set_values(tx, migration.server_id, fault=fault)
        return _close(tx, migration, Outcome.CANCELLED, CANCELLED)
    entries = _entries(tx, migration)
    reason = _reason(entries) or _late(entries)
    left = [row for row in migration.targets or [] if row["host"] not in migration.tried]
    if not left:
        return _fail(tx, migration, reason or "Every host that could take the server failed.")
    _log.info("next attempt", migration=migration.id, server=migration.server_id, reason=reason)
    migrations.save(
        tx, migration.id, migration.revision, {"attempt": migration.attempt + 1, "target": None, "reason": reason}
    )
    return True


def _fail(tx: Connection, migration: Row[Any], reason: str) -> bool:
    if migration.kind == Kind.BUILD:
        fault = {"code": 500, "created": clock.now(), "message": reason}
        servers_core.set_values(tx, migration.server_id, fault=fault)
    return _close(tx, migration, Outcome.ERROR, reason)


def _open_window(tx: Connection, migration: Row[Any], confirm_window: int) -> bool:
    now = clock.now()
    down = any(entry.facts.get("guest_down") for entry in _entries(tx, migration).values())
    servers_core.set_values(tx, migration.server_id, launched_at=now)
    migrations.save(
        tx,
        migration.id,
        migration.revision,
        {
            "window_open": True,
            "window_closes_at": now + confirm_window if confirm_window else None,
            "finished_at": now,
            "cancelled": migration.verdict is not None and migration.cancelled,
            "reason": _reason(_entries(tx, migration)) if down else None,
        },
    )
    _log.info(
        "undo window open",
        request_id=migration.segments[migration.segment]["request_id"],
        migration=migration.id,
        server=migration.server_id,
        on=migration.target,
    )
    return migration.verdict is not None


def _reopen_window(tx: Connection, migration: Row[Any]) -> bool:
    """A revert refused before it touched anything: the server runs on at the target, and the user may choose again."""
    reason = _reason(_entries(tx, migration)) or f"Host {migration.source} cannot be reached."
    if migration.cancelled:
        reason = "The revert was cancelled; the server runs on where it was moved to."
    migrations.save(
        tx,
        migration.id,
        migration.revision,
        {"window_open": True, "verdict": None, "cancelled": False, "reason": reason},
    )
    return False


def _close(tx: Connection, migration: Row[Any], outcome: Outcome, reason: str | None = None) -> bool:
    migrations.close(tx, migration, outcome, reason)
    values: dict[str, Any] = {}
    if migration.kind == Kind.EVACUATION and outcome is not Outcome.COMPLETED and migration.was_running:
        # It is its old host's again. What a target reported in between is not how it was there.
        values["power_state"] = PowerState.RUNNING
    servers_core.set_values(tx, migration.server_id, **values)
    return False


def _entries(tx: Connection, migration: Row[Any]) -> dict[str, Entry]:
    return journal.entries(tx, migration.id, migration.segment, migration.attempt)


def _is_still_to_run(tx: Connection, migration: Row[Any]) -> bool:
    """Return whether this was a start after an interruption, and its host was only interrupted once more."""
    if migration.action != PowerAction.START or not migration.was_running or migration.cancelled:
        return False
    entries = _entries(tx, migration).values()
    return all(entry.mark is not Mark.FAILED or entry.facts.get("revoked") for entry in entries)


def _reason(entries: dict[str, Entry]) -> str | None:
    """Return why the attempt turned: rows begin in order, so the last one begun that failed is the cause."""
    told = [entry for entry in entries.values() if entry.reason and entry.mark is not Mark.DONE]
    return max(told, key=lambda entry: entry.started_at or 0.0).reason if told else None


def _late(entries: dict[str, Entry]) -> str | None:
    """Return why the attempt turned when the host that was silent then has answered since."""
    return next((entry.reason for entry in entries.values() if entry.reason), None)


def power_from(facts: dict[str, Any]) -> PowerState | None:
    """Return the power state that a step's facts tell, None when they tell none."""
    state = facts.get("power_state")
    return PowerState(state) if state is not None else None
