"""Migrations as the API reads them: pages for the lists, and one whole with its journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, or_, select

from whimbrel.domain.migration import Kind, Mark
from whimbrel.store.tables import journal, migrations, servers

MOVES = (Kind.MIGRATION, Kind.RESIZE, Kind.EVACUATION, Kind.LIVE)


@dataclass(frozen=True)
class Search:
    """Which migrations are wanted; None leaves a column out. `host` is either side."""

    kinds: tuple[str, ...] | None = None
    server_id: str | None = None
    source: str | None = None
    host: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    open: bool | None = None
    changed_since: float | None = None
    changed_before: float | None = None


@dataclass(frozen=True)
class Move:
    """A migration with the marks of its current segment and attempt."""

    row: Row[Any]
    marks: dict[str, Mark]


@dataclass(frozen=True)
class Story:
    """A migration whole: its server's name, and every row of its journal."""

    row: Row[Any]
    server_name: str
    entries: tuple[Row[Any], ...]


def page(tx: Connection, search: Search, before: int | None, limit: int) -> list[Move]:
    """Return at most `limit` migrations, newest first, that are older than the number `before`."""
    m = migrations.c
    query = select(migrations).order_by(m.id.desc()).limit(limit)
    conditions: tuple[tuple[Any, Callable[[Any], ColumnElement[bool]]], ...] = (
        (search.server_id, lambda value: m.server_id == value),
        (search.source, lambda value: m.source == value),
        (search.host, lambda value: or_(m.source == value, m.target == value)),
        (search.project_id, lambda value: m.project_id == value),
        (search.user_id, lambda value: m.user_id == value),
        (search.open, lambda value: m.open == value),
        (search.changed_since, lambda value: m.updated_at >= value),
        (search.changed_before, lambda value: m.updated_at <= value),
        (before, lambda value: m.id < value),
    )
    for value, condition in conditions:
        if value is not None:
            query = query.where(condition(value))
    if search.kinds is not None:
        query = query.where(m.kind.in_(search.kinds))
    rows = list(tx.execute(query))
    marks: dict[int, dict[str, Mark]] = {}
    for entry in tx.execute(
        select(journal.c.migration_id, journal.c.step, journal.c.mark)
        .join(migrations, m.id == journal.c.migration_id)
        .where(m.id.in_([row.id for row in rows]), journal.c.segment == m.segment, journal.c.attempt == m.attempt)
    ):
        marks.setdefault(entry.migration_id, {})[entry.step] = Mark(entry.mark)
    return [Move(row, marks.get(row.id, {})) for row in rows]


def number_of(tx: Connection, number_or_uuid: str) -> int | None:
    """Return a migration's number, None when there is none; clients page by its UUID, or by the number itself."""
    return tx.execute(select(migrations.c.id).where(_named(number_or_uuid))).scalar_one_or_none()


def story(tx: Connection, number_or_uuid: str) -> Story | None:
    """Return one migration whole, None when there is none."""
    query = (
        select(migrations, servers.c.name.label("server_name"))
        .join(servers, servers.c.id == migrations.c.server_id)
        .where(_named(number_or_uuid))
    )
    row = tx.execute(query).one_or_none()
    return None if row is None else stories(tx, [row])[0]


def _named(number_or_uuid: str) -> ColumnElement[bool]:
    if number_or_uuid.isascii() and number_or_uuid.isdecimal() and len(number_or_uuid) <= 9:
        return migrations.c.id == int(number_or_uuid)
    return migrations.c.uuid == number_or_uuid


def named_page(tx: Connection, search: Search, limit: int) -> list[Story]:
    """Return the newest migrations whole."""
    numbers = [move.row.id for move in page(tx, search, None, limit)]
    rows = tx.execute(
        select(migrations, servers.c.name.label("server_name"))
        .join(servers, servers.c.id == migrations.c.server_id)
        .where(migrations.c.id.in_(numbers))
        .order_by(migrations.c.id.desc())
    )
    return stories(tx, list(rows))


def stories(tx: Connection, rows: list[Row[Any]]) -> list[Story]:
    """Return migrations with their journals, in one query more."""
    entries: dict[int, list[Row[Any]]] = {}
    for entry in tx.execute(
        select(journal)
        .where(journal.c.migration_id.in_([row.id for row in rows]))
        .order_by(journal.c.segment, journal.c.attempt, journal.c.started_at)
    ):
        entries.setdefault(entry.migration_id, []).append(entry)
    return [Story(row, row.server_name, tuple(entries.get(row.id, ()))) for row in rows]
