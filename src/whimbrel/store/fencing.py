"""Proofs that a host cannot run guests, and what a host that comes back must know before it obeys.

What must hold: a proof is about one boot of one host, and counts only as long as nothing was heard of that host
since. A host that speaks has voided it, whoever gave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, case, or_, select, union, update

from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.domain.migration import Witness
from whimbrel.migration.messages import Wake
from whimbrel.ops import clock
from whimbrel.store import outbox
from whimbrel.store.tables import claims, debts, hosts, migrations, servers


@dataclass(frozen=True)
class Given:
    """A proof that counts now."""

    witness: Witness
    reason: str
    at: float


def give(
    tx: Connection, host: str, witness: Witness, reason: str, *, boot: str, silent_since: float
) -> list[tuple[int, str, object]]:
    """Write a proof down and wake what waits for it; return the messages to send after the commit.

    Raises NotFound for an unknown host, and Conflict when the host is in another boot than the proof is about, or
    was heard after `silent_since`.
    """
    row = tx.execute(select(hosts).where(hosts.c.name == host).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"Compute host {host} could not be found.")
    if row.boot != boot:
        raise Conflict(f"Host {host} has booted since: its boot is {row.boot}, the proof is about {boot}. Look again.")
    if row.heard_at > silent_since:
        raise Conflict(
            f"Host {host} was heard {clock.now() - row.heard_at:.0f} s ago, so it is not off. "
            f"Migrate its servers instead, or power it off first."
        )
    now = clock.now()
    tx.execute(
        update(hosts)
        .where(hosts.c.number == row.number)
        .values(fenced_boot=boot, fenced_at=now, fenced_by=witness, fence_reason=reason)
    )
    waiting = tx.execute(select(migrations.c.id).where(migrations.c.open, migrations.c.fence == host)).scalars()
    wakes: list[Wake] = [Wake(migration) for migration in waiting]
    return [(outbox.put(tx, outbox.CONDUCTOR_QUEUE, wake), outbox.CONDUCTOR_QUEUE, wake) for wake in wakes]


def note_lease(tx: Connection, host: str, seconds: float, *, new_boot: bool) -> None:
    """Write down, before it is sent, that the host is given a lease of so many seconds."""
    h = hosts.c
    longest = case((h.lease_seconds > seconds, h.lease_seconds), else_=seconds)
    values = {"lease_number": h.lease_number + 1, "lease_seconds": seconds if new_boot else longest}
    tx.execute(update(hosts).where(h.name == host).values(values))


def withdraw(tx: Connection, host: str) -> None:
    """Take a proof back that has not been used yet."""
    values = {"fenced_boot": None, "fenced_at": None, "fenced_by": None, "fence_reason": None}
    tx.execute(update(hosts).where(hosts.c.name == host).values(values))


def of(tx: Connection, host: str) -> Given | None:
    """Return the proof that counts for this host now, None when there is none."""
    row = tx.execute(select(hosts).where(hosts.c.name == host)).one_or_none()
    return None if row is None else of_row(row)


def of_row(row: Row[Any]) -> Given | None:
    """Return the proof that a host's row holds, if it counts."""
    if row.fenced_at is None or row.fenced_boot != row.boot or row.fenced_at <= row.heard_at:
        return None
    return Given(Witness(row.fenced_by), row.fence_reason or "", row.fenced_at)


_AWAITED = select(migrations.c.fence, migrations.c.kind).where(migrations.c.open, migrations.c.fence.is_not(None))


def awaited(tx: Connection) -> dict[str, bool]:
    """Return the hosts whose word or proof a migration waits for, each with whether an evacuation does."""
    rows = tx.execute(_AWAITED)
    found: dict[str, bool] = {}
    for row in rows:
        found[row.fence] = found.get(row.fence, False) or row.kind == "evacuation"
    return found


def standings(tx: Connection, host: str) -> dict[str, tuple[int, int]]:
    """Return epoch and order number of every server that this host has, may have, or owes the removal of."""
    theirs = union(
        select(servers.c.id).where(servers.c.host == host, servers.c.deleted_at.is_(None)),
        select(claims.c.server_id).where(claims.c.host == host),
        select(debts.c.server_id).where(debts.c.host == host, debts.c.paid_at.is_(None)),
        select(migrations.c.server_id).where(
            migrations.c.open, or_(migrations.c.source == host, migrations.c.target == host)
        ),
    )
    query = select(servers.c.id, servers.c.epoch, servers.c.order_number).where(servers.c.id.in_(theirs))
    return {row.id: (row.epoch, row.order_number) for row in tx.execute(query)}
