"""Hosts as the API reads and writes them: what each has, what is claimed, how many servers, and its switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, or_, select, update

from whimbrel.domain.claim import NOTHING, Resources
from whimbrel.domain.errors import Conflict
from whimbrel.store import claims as claims_ledger
from whimbrel.store.tables import claims, hosts, migrations, servers


@dataclass(frozen=True)
class HostView:
    """A host's row with the sum of its claims and the number of its servers."""

    row: Row[Any]
    claimed: Resources
    guests: int

    def is_up(self, heard_since: float) -> bool:
        """Return whether the host was heard of since then and nobody has declared it down."""
        return is_up(self.row, heard_since)


def is_up(row: Row[Any], heard_since: float) -> bool:
    """Return whether a host was heard of since then and nobody has declared it down."""
    return bool(row.heard_at >= heard_since and not row.forced_down)


def everything(tx: Connection) -> list[HostView]:
    """Return all hosts in the order of their enrolment, in three queries."""
    claimed = claims_ledger.claimed(tx)
    guests = {
        row[0]: row[1]
        for row in tx.execute(
            select(servers.c.host, func.count()).where(servers.c.deleted_at.is_(None)).group_by(servers.c.host)
        )
    }
    rows = tx.execute(select(hosts).order_by(hosts.c.number))
    return [HostView(row, claimed.get(row.name, NOTHING), guests.get(row.name, 0)) for row in rows]


def find(tx: Connection, name: str) -> Row[Any] | None:
    """Return a host by its name, None when it never reported."""
    return tx.execute(select(hosts).where(hosts.c.name == name)).one_or_none()


def rows(tx: Connection) -> dict[str, Row[Any]]:
    """Return all hosts by name."""
    return {row.name: row for row in tx.execute(select(hosts))}


def change(tx: Connection, number: int, **values: Any) -> None:
    """Write columns of a host."""
    tx.execute(update(hosts).where(hosts.c.number == number).values(**values))


def servers_by_host(tx: Connection) -> dict[str, list[tuple[str, str]]]:
    """Return (name, id) of the servers on each host."""
    found: dict[str, list[tuple[str, str]]] = {}
    query = select(servers.c.host, servers.c.name, servers.c.id).where(
        servers.c.host.is_not(None), servers.c.deleted_at.is_(None)
    )
    for row in tx.execute(query.order_by(servers.c.number)):
        found.setdefault(row.host, []).append((row.name, row.id))
    return found


def remove(tx: Connection, host: Row[Any]) -> None:
    """Forget a host; Conflict while it has servers, or a migration that is not over."""
    tx.execute(select(hosts.c.number).where(hosts.c.number == host.number).with_for_update())  # no claim from here on
    here = servers.c.host == host.name
    if tx.execute(select(servers.c.id).where(here, servers.c.deleted_at.is_(None)).limit(1)).first() is not None:
        raise Conflict(
            "Unable to delete compute service that is hosting instances. Migrate or delete the instances first."
        )
    touched = or_(migrations.c.source == host.name, migrations.c.target == host.name)
    if tx.execute(select(migrations.c.id).where(touched, migrations.c.open).limit(1)).first() is not None:
        raise Conflict(
            "Unable to delete compute service that has in-progress migrations. "
            "Complete the migrations or delete the instances first."
        )
    tx.execute(delete(claims).where(claims.c.host == host.name))
    tx.execute(delete(hosts).where(hosts.c.number == host.number))
