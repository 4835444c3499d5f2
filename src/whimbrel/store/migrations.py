"""Migrations: how they begin, get their verdict, and are read and written under compare-and-swap."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Row, Select, Update, bindparam, select, update

from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.migration import Kind, Outcome, Verdict
from whimbrel.domain.server import Manner, PowerAction, PowerState
from whimbrel.migration import protocols
from whimbrel.migration.messages import Wake
from whimbrel.migration.protocols import Protocol
from whimbrel.ops import clock, ids, metrics
from whimbrel.store import journal, outbox
from whimbrel.store.retries import LostRace
from whimbrel.store.tables import migrations, servers

_log = structlog.get_logger()


@dataclass(frozen=True)
class Begun:
    """What a transaction has begun: the migration, its segment, and the messages to send after the commit."""

    migration_id: int
    segment: int
    outbox: list[tuple[int, str, object]] = field(default_factory=list)


def begin(
    tx: Connection,
    server_id: str,
    kind: Kind,
    protocol: Protocol,
    *,
    request_id: str,
    user_id: str,
    project_id: str,
    new_flavor: dict[str, Any] | None = None,
    forced_host: str | None = None,
    action: PowerAction | None = None,
    was_running: bool | None = None,
    manner: Manner | None = None,
) -> Begun:
    """Open a migration of this server; raise NotFound, or Conflict when another one is open.

    `new_flavor` is the snapshot that the server will keep of the flavor that it is resized to; `was_running` says
    whether the guest is to run afterwards, as it does now if that is not said; without a `manner` its host decides.
    """
    server = _server(tx, server_id)
    if server.doubted_at is not None:
        raise Conflict(
            f"It is not known where server {server_id} runs since the database was restored; try again later."
        )
    # The server's row is locked, so none is opened meanwhile; the open one stays free for the conductor that drives it.
    running = tx.execute(_open_one(server_id)).one_or_none()
    if running is not None:
        raise Conflict(f"Server {server_id} has an open {running.kind} (migration {running.id}); wait until it ends.")
    moves = kind in (Kind.MIGRATION, Kind.RESIZE, Kind.EVACUATION, Kind.LIVE)
    if was_running is None:
        was_running = kind is Kind.BUILD or server.power_state == PowerState.RUNNING
    now = clock.now()
    result = tx.execute(
        migrations.insert().values(
            uuid=ids.new_uuid(),
            server_id=server_id,
            kind=kind,
            action=action,
            project_id=project_id,
            user_id=user_id,
            request_id=request_id,
            segments=[_segment(protocol, request_id) | ({"manner": manner} if manner else {})],
            source=server.host if moves else None,
            target=None if moves else server.host,
            forced_host=forced_host,
            old_flavor=server.flavor,
            new_flavor=server.flavor if new_flavor is None else new_flavor,
            was_running=was_running,
            created_at=now,
            updated_at=now,
        )
    )
    key = result.inserted_primary_key
    assert key is not None
    return _woken(tx, int(key[0]), 0)


def give_verdict(tx: Connection, server_id: str, verdict: Verdict, *, request_id: str) -> Begun:
    """Close the undo window. The same verdict again is accepted, another is a Conflict; none open is Invalid."""
    row = open_of(tx, server_id)
    if row is None or not (row.window_open or row.verdict):
        raise Invalid("Instance has not been resized.")
    if row.verdict is not None:
        if row.verdict == verdict:
            return Begun(row.id, row.segment)
        raise Conflict(f"Server {server_id} is being closed by a {row.verdict} already.")
    _set_verdict(tx, row, verdict, request_id)
    return _woken(tx, row.id, row.segment + 1)


def request_delete(tx: Connection, server_id: str, *, request_id: str, user_id: str, project_id: str) -> Begun:
    """Delete the server, whatever it is doing: what runs is cancelled first. Deleting twice is accepted."""
    row = open_of(tx, server_id)
    if row is None:
        return begin(
            tx,
            server_id,
            Kind.DELETE,
            protocols.DELETE,
            request_id=request_id,
            user_id=user_id,
            project_id=project_id,
        )
    if row.verdict == Verdict.DELETE or row.kind == Kind.DELETE:
        return Begun(row.id, row.segment)
    # Delete outranks: whatever verdict was being carried out ends first, then the server goes.
    tx.execute(
        update(migrations)
        .where(migrations.c.id == row.id)
        .values(
            verdict=Verdict.DELETE,
            cancelled=True,
            revision=row.revision + 1,
            segments=[*row.segments, _segment(protocols.DELETE, request_id)],
        )
    )
    return _woken(tx, row.id, len(row.segments))


def request_cancel(tx: Connection, migration_id: int) -> Begun:
    """Turn an open migration back; asking twice is accepted. Invalid, with the remedy, where it only goes forward."""
    row = load(tx, migration_id)
    if row is None or not row.open:
        raise Invalid(f"Migration {migration_id} has ended, so there is nothing to cancel.")
    if row.cancelled and row.verdict != Verdict.DELETE:
        return Begun(row.id, row.segment)
    why_not = _beyond_cancel(tx, row)
    if why_not:
        raise Invalid(f"Migration {migration_id} cannot be cancelled any more: {why_not}")
    save(tx, row.id, row.revision, {"cancelled": True})
    return _woken(tx, row.id, row.segment)


def _beyond_cancel(tx: Connection, row: Row[Any]) -> str:
    """Say why this migration only goes forward; nothing if it can still turn."""
    table = protocols.protocol(row.segments[row.segment]["protocol"], row.segments[row.segment]["version"])
    if row.verdict == Verdict.DELETE or row.kind == Kind.DELETE:
        return "its server is being deleted."
    if row.window_open and row.verdict is None:
        return f"server {row.server_id} runs at {row.target}. Revert it to go back."
    if row.window_open or table.name == "confirm":
        return f"it is being closed by a {row.verdict}."
    turn = next((step.name for step in table.steps if step.turns), None)
    if turn is None:
        return f"a {table.name} has no hand-over to be cancelled before; wait until it ends."
    if journal.row_for(tx, (row.id, row.segment, row.attempt, turn)) is not None:
        return f"server {row.server_id} was handed over. When it has ended, it can be moved back."
    return ""


_RUN_OUT: tuple[ColumnElement[bool], ...] = (
    migrations.c.open.is_(True),
    migrations.c.held.is_(False),
    migrations.c.window_open.is_(True),
    migrations.c.verdict.is_(None),
    migrations.c.window_closes_at <= bindparam("now"),
)
_WINDOWS = select(migrations.c.server_id).where(*_RUN_OUT)


def windows_run_out(tx: Connection, now: float) -> list[str]:
    """Return the servers whose undo window has run out without a verdict."""
    return list(tx.execute(_WINDOWS, {"now": now}).scalars())


def confirm_when_due(tx: Connection, server_id: str, now: float) -> Begun | None:
    """Confirm this server's migration if its window has run out; None when a verdict came first."""
    query = select(migrations).where(*_RUN_OUT, migrations.c.server_id == server_id).with_for_update()
    row = tx.execute(query, {"now": now}).one_or_none()
    if row is None:
        return None
    _set_verdict(tx, row, Verdict.CONFIRM, row.request_id)
    return _woken(tx, row.id, row.segment + 1)


def open_of(tx: Connection, server_id: str) -> Row[Any] | None:
    """Return the server's open migration, locked for this transaction; None when there is none."""
    return tx.execute(_open_one(server_id).with_for_update()).one_or_none()


def _open_one(server_id: str) -> Select[Any]:
    return select(migrations).where(migrations.c.server_id == server_id, migrations.c.open)


_BY_ID = select(migrations).where(migrations.c.id == bindparam("migration_id")).with_for_update()


def load(tx: Connection, migration_id: int) -> Row[Any] | None:
    """Return a migration's row, locked for this transaction; None when there is none."""
    return tx.execute(_BY_ID, {"migration_id": migration_id}).one_or_none()


@cache
def _saving(names: tuple[str, ...]) -> Update:
    """Return the statement that writes these columns of one row; there are few such sets of columns."""
    mine = (migrations.c.id == bindparam("of_migration"), migrations.c.revision == bindparam("of_revision"))
    return update(migrations).where(*mine).values({name: bindparam(name) for name in names})


def save(tx: Connection, migration_id: int, revision: int, values: dict[str, Any]) -> None:
    """Write back under compare-and-swap; raise LostRace when the revision is not the one that was read."""
    written = {**values, "revision": revision + 1, "updated_at": clock.now()}
    mine = {"of_migration": migration_id, "of_revision": revision}
    if tx.execute(_saving(tuple(written)), {**mine, **written}).rowcount != 1:
        raise LostRace(f"migration {migration_id} is not at revision {revision} any more")


def attempt_label(migration: Row[Any]) -> str:
    """Return the attempt's name in every path, claim and order, unique in this cloud: migration and attempt."""
    return f"{migration.id}-{migration.attempt}"


def close(tx: Connection, migration: Row[Any], outcome: Outcome, reason: str | None = None) -> None:
    """Write down that a migration has ended, and how."""
    values = {"open": False, "held": False, "window_open": False, "fence": None}
    ended = {"outcome": outcome, "reason": reason, "finished_at": clock.now()}
    save(tx, migration.id, migration.revision, values | ended)
    metrics.migrations_ended.labels(migration.kind, outcome).inc()
    _log.info(
        "migration ended",
        request_id=migration.segments[migration.segment]["request_id"],
        migration=migration.id,
        server=migration.server_id,
        kind=migration.kind,
        outcome=outcome,
        **({"reason": reason} if reason else {}),
    )


def open_ids(tx: Connection) -> list[int]:
    """Return every open migration's id, oldest first."""
    return list(tx.execute(select(migrations.c.id).where(migrations.c.open).order_by(migrations.c.id)).scalars())


def _set_verdict(tx: Connection, row: Row[Any], verdict: Verdict, request_id: str) -> None:
    table = protocols.CONFIRM if verdict is Verdict.CONFIRM else protocols.REVERT
    result = tx.execute(
        update(migrations)
        .where(migrations.c.id == row.id, migrations.c.verdict.is_(None))
        .values(
            verdict=verdict,
            revision=row.revision + 1,
            segments=[*row.segments, _segment(table, request_id)],
        )
    )
    if result.rowcount != 1:
        raise Conflict(f"Server {row.server_id} has got another verdict in the same moment; look again.")


def _segment(protocol: Protocol, request_id: str) -> dict[str, Any]:
    return {"protocol": protocol.name, "version": protocol.version, "request_id": request_id}


def _woken(tx: Connection, migration_id: int, segment: int) -> Begun:
    message = Wake(migration_id)
    number = outbox.put(tx, outbox.CONDUCTOR_QUEUE, message)
    return Begun(migration_id, segment, [(number, outbox.CONDUCTOR_QUEUE, message)])


def _server(tx: Connection, server_id: str) -> Row[Any]:
    row = tx.execute(
        select(servers).where(servers.c.id == server_id, servers.c.deleted_at.is_(None)).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound(f"Instance {server_id} could not be found.")
    return row
