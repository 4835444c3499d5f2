"""How an evacuation begins: recovery outranks whatever the silent host was doing, and nothing of that is forgotten.

What must hold: a server of which a whole copy exists elsewhere is not made anew from its image; the way back to that
copy is a revert, or the move's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Kind, Mark, Outcome, Verb, Where
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.store import claims, debts, journal, migrations
from whimbrel.store.actions import Asked
from whimbrel.store.migrations import Begun

OVERTAKEN = "Its host is silent, and the server is evacuated instead."


def begin(
    tx: Connection, server_id: str, asked: Asked, project_id: str, *, target: str | None, leave_stopped: bool = False
) -> Begun:
    """Open an evacuation, and end what cannot go on without the silent host; Conflict when a copy is elsewhere.

    `leave_stopped`: the guest is not started at the target, whatever it did before.
    """
    was_running = None
    running = migrations.open_of(tx, server_id)
    if running is not None:
        _overtake(tx, running)
        if running.kind != Kind.POWER:
            was_running = running.was_running
    return migrations.begin(
        tx,
        server_id,
        Kind.EVACUATION,
        protocols.EVACUATE,
        request_id=asked.request_id,
        user_id=asked.user_id,
        project_id=project_id,
        forced_host=target,
        action=PowerAction.STOP if leave_stopped else None,
        was_running=was_running,
    )


def _overtake(tx: Connection, row: Row[Any]) -> None:
    """End an open migration whose source is silent: what it made at its target is owed, what it claimed given back."""
    if row.kind not in (Kind.MIGRATION, Kind.RESIZE, Kind.LIVE, Kind.POWER) or row.verdict is not None:
        raise Conflict(
            f"Server {row.server_id} has an open {row.verdict or row.kind} (migration {row.id}); wait for it."
        )
    entries = journal.entries(tx, row.id, row.segment, row.attempt)
    if row.window_open or "hand_over" in entries:
        raise Conflict(
            f"A whole copy of server {row.server_id} is on {row.source}: revert migration {row.id} instead of making "
            f"it anew from its image. If {row.target} is off for good, prove that with `whimbrel fence {row.target}`."
        )
    made = entries.get("prepare")
    if row.kind != Kind.POWER and row.target is not None and made is not None:
        _owe_the_copy(tx, row, made.mark)
    attempt = migrations.attempt_label(row)
    claims.give_back(tx, [each for each in claims.of_server(tx, row.server_id) if each.attempt == attempt])
    migrations.close(tx, row, Outcome.ERROR, OVERTAKEN)


def _owe_the_copy(tx: Connection, row: Row[Any], mark: Mark) -> None:
    """Let the target owe what a revert would have made it do: end and remove what this attempt made there."""
    if mark in (Mark.UNDONE, Mark.NOT_DONE, Mark.SKIPPED):
        return
    made = journal.row_for(tx, (row.id, row.segment, row.attempt, "prepare"))
    assert made is not None
    table, step = protocols.REVERT, protocols.REVERT.step("discard_target")
    assert step.where is Where.TARGET
    order = replace(journal.order_of(made), protocol=table.name, version=table.version, step=step.name, verb=Verb.DO)
    debts.owe(tx, order, step.name, Verb.DO)
