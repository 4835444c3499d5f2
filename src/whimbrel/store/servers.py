"""Servers as the API reads and writes them: pages of rows, one row, and each with what its state is derived from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select, update

from whimbrel.domain.migration import Mark
from whimbrel.ops import clock
from whimbrel.store.networks import ports_of
from whimbrel.store.tables import journal, migrations, ports, servers

Sort = tuple[tuple[str, bool], ...]
"""Columns to order by, each with whether it is descending."""

SORT_KEYS = {
    "created_at": servers.c.created_at,
    "updated_at": servers.c.updated_at,
    "launched_at": func.coalesce(servers.c.launched_at, 0.0),
    "display_name": servers.c.name,
    "uuid": servers.c.id,
    "host": func.coalesce(servers.c.host, ""),
    "project_id": servers.c.project_id,
    "user_id": servers.c.user_id,
    "locked": servers.c.locked,
}


@dataclass(frozen=True)
class Search:
    """Which servers are wanted; None leaves a column out. Patterns are regular expressions."""

    project_id: str | None = None
    equal: dict[str, Any] = field(default_factory=dict)
    name_pattern: str | None = None
    address_pattern: str | None = None
    flavor_id: str | None = None
    image_id: str | None = None
    changed_since: float | None = None
    changed_before: float | None = None
    deleted: bool | None = False
    sort: Sort = (("created_at", True),)


@dataclass(frozen=True)
class Situation:
    """A server, its open migration, that one's marks by step (current segment and attempt), and its addresses."""

    server: Row[Any]
    migration: Row[Any] | None
    marks: dict[str, Mark]
    addresses: tuple[Row[Any], ...] = ()


def page(tx: Connection, search: Search, after: Row[Any] | None, limit: int) -> list[Row[Any]]:
    """Return at most `limit` rows that come after the row `after` in the search's order."""
    query = _narrowed(select(servers), search)
    keys: list[tuple[ColumnElement[Any], bool]] = [(SORT_KEYS[name], down) for name, down in search.sort]
    keys.append((servers.c.number, keys[0][1] if keys else True))
    if after is not None:
        query = query.where(_beyond(tx, keys, after))
    return list(tx.execute(query.order_by(*(key.desc() if down else key.asc() for key, down in keys)).limit(limit)))


def _narrowed(query: Select[Any], search: Search) -> Select[Any]:
    s = servers.c
    conditions: list[ColumnElement[bool]] = [s[name] == value for name, value in search.equal.items()]
    if search.project_id is not None:
        conditions.append(s.project_id == search.project_id)
    if search.name_pattern is not None:
        conditions.append(s.name.regexp_match(search.name_pattern))
    if search.address_pattern is not None:
        matching = select(ports.c.server_id).where(ports.c.address.regexp_match(search.address_pattern))
        conditions.append(s.id.in_(matching))
    if search.flavor_id is not None:
        conditions.append(s.flavor["id"].as_string() == search.flavor_id)
    if search.image_id is not None:
        conditions.append(s.image["id"].as_string() == search.image_id)
    if search.changed_since is not None:
        conditions.append(s.updated_at >= search.changed_since)
    if search.changed_before is not None:
        conditions.append(s.updated_at <= search.changed_before)
    if search.deleted is not None:
        conditions.append(s.deleted_at.is_not(None) if search.deleted else s.deleted_at.is_(None))
    return query.where(and_(True, *conditions))


def _beyond(tx: Connection, keys: Sequence[tuple[ColumnElement[Any], bool]], after: Row[Any]) -> ColumnElement[bool]:
    """Return the condition that a row stands behind `after`: later in the first key, or equal there and so on."""
    place = tx.execute(select(*(key for key, _ in keys)).where(servers.c.id == after.id)).one()
    ways = []
    for depth, (key, down) in enumerate(keys):
        equal = [other == place[number] for number, (other, _) in enumerate(keys[:depth])]
        ways.append(and_(*equal, key < place[depth] if down else key > place[depth]))
    return or_(*ways)


def find(tx: Connection, server_id: str, project_id: str | None, *, deleted: bool = False) -> Row[Any] | None:
    """Return a server of the project (None: of any); a deleted one only when asked for."""
    query = select(servers).where(servers.c.id == server_id)
    if project_id is not None:
        query = query.where(servers.c.project_id == project_id)
    if not deleted:
        query = query.where(servers.c.deleted_at.is_(None))
    return tx.execute(query).one_or_none()


def situation(tx: Connection, row: Row[Any]) -> Situation:
    """Return one server with what its state is derived from."""
    return situations(tx, [row])[0]


def situations(tx: Connection, rows: Sequence[Row[Any]]) -> list[Situation]:
    """Return the servers with what their states are derived from, in three queries however many they are."""
    wanted = [row.id for row in rows]
    moves = {
        row.server_id: row
        for row in tx.execute(select(migrations).where(migrations.c.server_id.in_(wanted), migrations.c.open))
    }
    marks = _marks(tx, [move.id for move in moves.values()])
    addresses = ports_of(tx, wanted)
    found = []
    for row in rows:
        move = moves.get(row.id)
        mine = marks.get(move.id, {}) if move is not None else {}
        found.append(Situation(row, move, mine, tuple(addresses.get(row.id, ()))))
    return found


def _marks(tx: Connection, migration_ids: list[int]) -> dict[int, dict[str, Mark]]:
    if not migration_ids:
        return {}
    marks: dict[int, dict[str, Mark]] = {}
    for entry in tx.execute(
        select(journal.c.migration_id, journal.c.step, journal.c.mark)
        .join(migrations, migrations.c.id == journal.c.migration_id)
        .where(
            journal.c.migration_id.in_(migration_ids),
            journal.c.segment == migrations.c.segment,
            journal.c.attempt == migrations.c.attempt,
        )
    ):
        marks.setdefault(entry.migration_id, {})[entry.step] = Mark(entry.mark)
    return marks


def insert(tx: Connection, values: dict[str, Any]) -> None:
    """Write a new server's row; its times are now."""
    now = clock.now()
    tx.execute(servers.insert().values(**values, created_at=now, updated_at=now))


def change(tx: Connection, server_id: str, **values: Any) -> None:
    """Write columns of a server and its time of change."""
    tx.execute(update(servers).where(servers.c.id == server_id).values(**values, updated_at=clock.now()))


@dataclass(frozen=True)
class Usage:
    """What a project's servers take of its quota."""

    instances: int
    cores: int
    ram_mb: int


def usage(tx: Connection, project_id: str) -> Usage:
    """Sum up a project's servers, in the flavors that they have now."""
    row = tx.execute(
        select(
            func.count(),
            func.coalesce(func.sum(servers.c.flavor["vcpus"].as_integer()), 0),
            func.coalesce(func.sum(servers.c.flavor["ram_mb"].as_integer()), 0),
        ).where(servers.c.project_id == project_id, servers.c.deleted_at.is_(None))
    ).one()
    return Usage(int(row[0]), int(row[1]), int(row[2]))
