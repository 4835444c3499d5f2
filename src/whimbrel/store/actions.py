"""Instance actions: what a user asked of a server, and how it went, read from the journal of its segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from whimbrel.ops import clock
from whimbrel.store.tables import actions, journal, migrations


@dataclass(frozen=True)
class Asked:
    """Who asked, and under which request."""

    request_id: str
    user_id: str
    project_id: str


@dataclass(frozen=True)
class Told:
    """An action with its migration (None when it needed none) and the journal of its segment, oldest first."""

    action: Row[Any]
    migration: Row[Any] | None
    entries: tuple[Row[Any], ...]


def record(
    tx: Connection,
    server_id: str,
    action: str,
    asked: Asked,
    *,
    migration_id: int | None = None,
    segment: int | None = None,
) -> None:
    """Write an action down in the transaction that begins its work."""
    now = clock.now()
    tx.execute(
        actions.insert().values(
            request_id=asked.request_id,
            server_id=server_id,
            action=action,
            user_id=asked.user_id,
            project_id=asked.project_id,
            migration_id=migration_id,
            segment=segment,
            started_at=now,
            updated_at=now,
        )
    )


def of_server(tx: Connection, server_id: str, request_id: str | None = None) -> list[Told]:
    """Return a server's actions, newest first (or only that of one request), each with how it went."""
    query = select(actions).where(actions.c.server_id == server_id).order_by(actions.c.id.desc()).limit(1000)
    if request_id is not None:
        query = query.where(actions.c.request_id == request_id)
    rows = list(tx.execute(query))
    numbers = {row.migration_id for row in rows if row.migration_id is not None}
    moves = {row.id: row for row in tx.execute(select(migrations).where(migrations.c.id.in_(numbers)))}
    entries: dict[tuple[int, int], list[Row[Any]]] = {}
    for entry in tx.execute(
        select(journal)
        .where(journal.c.migration_id.in_(numbers))
        .order_by(journal.c.attempt, journal.c.started_at, journal.c.number)
    ):
        entries.setdefault((entry.migration_id, entry.segment), []).append(entry)
    return [
        Told(row, moves.get(row.migration_id), tuple(entries.get((row.migration_id, row.segment), ()))) for row in rows
    ]
