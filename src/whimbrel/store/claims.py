"""Room set aside on hosts: one ledger, summed under the host's row lock, so that two moves never share room."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from whimbrel.domain.claim import Capacity, Resources
from whimbrel.domain.errors import StepError
from whimbrel.store.tables import claims, debts, hosts


def capacity_of(host: Row[Any]) -> Capacity:
    """Return what a host's row says that it has."""
    return Capacity(
        total=Resources(host.vcpus, host.ram_mb, host.disk_gb),
        reserved=Resources(host.reserved_vcpus, host.reserved_ram_mb, host.reserved_disk_gb),
        cpu_ratio=host.cpu_ratio,
        ram_ratio=host.ram_ratio,
        disk_ratio=host.disk_ratio,
    )


_SUMS = select(
    claims.c.host,
    func.sum(claims.c.vcpus).label("vcpus"),
    func.sum(claims.c.ram_mb).label("ram_mb"),
    func.sum(claims.c.disk_gb).label("disk_gb"),
).group_by(claims.c.host)


def claimed(tx: Connection) -> dict[str, Resources]:
    """Return the sum of all claims for each host that has any."""
    rows = tx.execute(_SUMS)
    return {row.host: Resources(int(row.vcpus), int(row.ram_mb), int(row.disk_gb)) for row in rows}


def take(tx: Connection, host: str, server_id: str, attempt: str, need: Resources) -> Resources:
    """Claim `need` at `host`; return what is left. Raise StepError with the figures when it does not fit."""
    # Writing the host's row first serialises claims on it, on PostgreSQL as well.
    result = tx.execute(update(hosts).where(hosts.c.name == host).values(claims_revision=hosts.c.claims_revision + 1))
    if result.rowcount != 1:
        raise StepError(f"Host {host} is not known any more; choose another host.")
    row = tx.execute(select(hosts).where(hosts.c.name == host)).one()
    if not row.enabled or row.forced_down:
        raise StepError(f"Host {host} was disabled or forced down a moment ago.")
    used = claimed_at(tx, host)
    limit = capacity_of(row).limit()
    free = Resources(limit.vcpus - used.vcpus, limit.ram_mb - used.ram_mb, limit.disk_gb - used.disk_gb)
    lacking = need.lacking(free)
    if lacking:
        raise StepError(f"Host {host} has no room left for the server: {'; '.join(lacking)}.")
    tx.execute(
        claims.insert().values(
            host=host,
            server_id=server_id,
            attempt=attempt,
            vcpus=need.vcpus,
            ram_mb=need.ram_mb,
            disk_gb=need.disk_gb,
            owed=False,
        )
    )
    return Resources(free.vcpus - need.vcpus, free.ram_mb - need.ram_mb, free.disk_gb - need.disk_gb)


def claimed_at(tx: Connection, host: str) -> Resources:
    """Return the sum of one host's claims."""
    row = tx.execute(
        select(
            func.coalesce(func.sum(claims.c.vcpus), 0),
            func.coalesce(func.sum(claims.c.ram_mb), 0),
            func.coalesce(func.sum(claims.c.disk_gb), 0),
        ).where(claims.c.host == host)
    ).one()
    return Resources(int(row[0]), int(row[1]), int(row[2]))


def give_back(tx: Connection, rows: list[Row[Any]]) -> None:
    """Free these claims; where a host still owes the removal of files, the disk part stays until it is paid."""
    for row in rows:
        owing = tx.execute(
            select(debts.c.id).where(
                debts.c.host == row.host, debts.c.server_id == row.server_id, debts.c.paid_at.is_(None)
            )
        ).first()
        if owing is None:
            tx.execute(delete(claims).where(claims.c.id == row.id))
        else:
            tx.execute(update(claims).where(claims.c.id == row.id).values(vcpus=0, ram_mb=0, owed=True))


def of_server(tx: Connection, server_id: str) -> list[Row[Any]]:
    """Return a server's claims that are not merely owed."""
    return list(tx.execute(select(claims).where(claims.c.server_id == server_id, claims.c.owed.is_(False))))


def settle_owed(tx: Connection, host: str, server_id: str) -> None:
    """Free what stayed claimed for files that are gone now."""
    tx.execute(delete(claims).where(claims.c.host == host, claims.c.server_id == server_id, claims.c.owed.is_(True)))
