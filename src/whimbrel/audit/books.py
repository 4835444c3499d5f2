"""What the database says that the hosts should look like, read in one transaction and then plain data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from whimbrel.domain.claim import Resources, resources_of
from whimbrel.domain.migration import Outcome
from whimbrel.domain.server import PowerState
from whimbrel.ops import clock
from whimbrel.store import claims as claims_ledger
from whimbrel.store import hosts_view
from whimbrel.store.servers_core import flavor_of
from whimbrel.store.tables import claims, debts, hosts, migrations, servers


@dataclass(frozen=True)
class HostEntry:
    """A host: when it was heard of, whether that was lately, and the most that may be claimed there."""

    name: str
    heard_at: float
    up: bool
    limit: Resources


@dataclass(frozen=True)
class ServerEntry:
    """A server: where it belongs, at which epoch and order number, whether it runs, and the room of its flavor."""

    id: str
    name: str
    host: str | None
    epoch: int
    number: int
    power: PowerState
    deleted: bool
    room: Resources


@dataclass(frozen=True)
class MigrationEntry:
    """A migration. `attempt` is the label of its newest attempt; `busy`: a step may be at work."""

    id: int
    server: str
    kind: str
    source: str | None
    target: str | None
    attempt: str
    attempts: int
    open: bool
    window_open: bool
    window_closes_at: float | None
    window_since: float | None
    fence: str | None
    outcome: str | None

    @property
    def busy(self) -> bool:
        """Whether a step of it may be at work, or may be about to."""
        return self.open and not self.window_open

    def gave_up(self, attempt: str) -> bool:
        """Return whether nothing that this attempt made can ever be live again, so that a late removal is right too.

        What a confirmed attempt has made is live, or sealed by a later one that may be reverted.
        """
        later = attempt != self.attempt
        return not self.open and (later or self.outcome in (Outcome.ERROR, Outcome.CANCELLED, Outcome.REVERTED))


@dataclass(frozen=True)
class ClaimEntry:
    """A claim; `owed`: only its disk part is left, for files that are not yet gone."""

    id: int
    host: str
    server: str
    attempt: str
    room: Resources
    owed: bool


@dataclass(frozen=True)
class DebtEntry:
    """A clean-up that a host owes."""

    id: int
    host: str
    server: str
    step: str
    created_at: float


@dataclass(frozen=True)
class Books:
    """One moment of the database. `open` is by server; `closed` holds those migrations that were asked for."""

    at: float
    hosts: dict[str, HostEntry]
    servers: dict[str, ServerEntry]
    open: dict[str, MigrationEntry]
    closed: dict[int, MigrationEntry]
    claims: tuple[ClaimEntry, ...]
    debts: tuple[DebtEntry, ...]


def read(tx: Connection, down_after: float, also: Collection[str] = (), attempts: Collection[int] = ()) -> Books:
    """Read the books: all that lives, and also these servers if deleted and these migrations if closed.

    A host that was not heard of for `down_after` seconds counts as down.
    """
    now = clock.now()
    named = set(also)
    owned = [ClaimEntry(*_claim(row)) for row in tx.execute(select(claims).order_by(claims.c.id))]
    named |= {claim.server for claim in owned}
    unpaid = select(debts).where(debts.c.paid_at.is_(None)).order_by(debts.c.id)
    running = [_migration(row) for row in tx.execute(select(migrations).where(migrations.c.open))]
    return Books(
        at=now,
        hosts={row.name: _host(row, now - down_after) for row in tx.execute(select(hosts).order_by(hosts.c.number))},
        servers={row.id: _server(row) for row in _servers(tx, named)},
        open={migration.server: migration for migration in running},
        closed={row.id: _migration(row) for row in _by_number(tx, attempts)},
        claims=tuple(owned),
        debts=tuple(DebtEntry(row.id, row.host, row.server_id, row.step, row.created_at) for row in tx.execute(unpaid)),
    )


AT_ONCE = 500
"""Names in one question to the database, which bounds how many it takes."""


def _servers(tx: Connection, also: Collection[str]) -> list[Row[Any]]:
    c = servers.c
    columns = (c.id, c.name, c.host, c.epoch, c.order_number, c.power_state, c.deleted_at, c.flavor)
    rows: list[Row[Any]] = list(tx.execute(select(*columns).where(c.deleted_at.is_(None))))
    missing = sorted(set(also) - {row.id for row in rows})
    for start in range(0, len(missing), AT_ONCE):
        rows += tx.execute(select(*columns).where(c.id.in_(missing[start : start + AT_ONCE])))
    return rows


def _by_number(tx: Connection, numbers: Collection[int]) -> list[Row[Any]]:
    wanted = sorted(numbers)
    rows: list[Row[Any]] = []
    for start in range(0, len(wanted), AT_ONCE):
        some = migrations.c.id.in_(wanted[start : start + AT_ONCE])
        rows += tx.execute(select(migrations).where(some, migrations.c.open.is_(False)))
    return rows


def _host(row: Row[Any], heard_since: float) -> HostEntry:
    up = hosts_view.is_up(row, heard_since)
    return HostEntry(row.name, row.heard_at, up, claims_ledger.capacity_of(row).limit())


def _server(row: Row[Any]) -> ServerEntry:
    return ServerEntry(
        id=row.id,
        name=row.name,
        host=row.host,
        epoch=row.epoch,
        number=row.order_number,
        power=PowerState(row.power_state),
        deleted=row.deleted_at is not None,
        room=resources_of(flavor_of(row.flavor)),
    )


def _migration(row: Row[Any]) -> MigrationEntry:
    return MigrationEntry(
        id=row.id,
        server=row.server_id,
        kind=row.kind,
        source=row.source,
        target=row.target,
        attempt=f"{row.id}-{row.attempt}",
        attempts=row.attempt,
        open=row.open,
        window_open=row.window_open and row.verdict is None,
        window_closes_at=row.window_closes_at,
        window_since=row.finished_at,
        fence=row.fence,
        outcome=row.outcome,
    )


def _claim(row: Row[Any]) -> tuple[int, str, str, str, Resources, bool]:
    room = Resources(row.vcpus, row.ram_mb, row.disk_gb)
    return row.id, row.host, row.server_id, row.attempt, room, row.owed
