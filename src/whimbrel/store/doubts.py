"""Servers of which this database does not know where they run, because it was put back to an older state.

A doubted server is left alone: nothing is ordered for it, and its open migration is held, until what the hosts say
settles it. What they say meanwhile, and what they say of servers that this database places elsewhere or does not
know, stands in the table `sightings`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, text, update

from whimbrel.domain.claim import resources_of
from whimbrel.domain.migration import Outcome
from whimbrel.migration.presence import GuestReport
from whimbrel.ops import clock
from whimbrel.store import migrations, servers_core
from whimbrel.store.journal import AWAITED
from whimbrel.store.tables import claims, journal, servers, sightings
from whimbrel.store.tables import migrations as migrations_table

SKIPPED = 10_000
"""So many migration numbers are left out after a restore, because hosts may have files that bear them."""
ESTABLISHING = "This database was put back to an older state; where the server runs is being asked of the hosts."
LOST = (
    "No host has this server's files. It may have been deleted after the backup that this database was restored from."
)
OVERTAKEN = "This database was restored, and the hosts know more of this server than it does."


def doubt(tx: Connection, server_id: str) -> None:
    """Leave this server alone from now on, and hold what is open for it."""
    now = clock.now()
    fault = {"code": 500, "created": now, "message": ESTABLISHING, "declared": True}
    tx.execute(
        update(servers)
        .where(servers.c.id == server_id, servers.c.doubted_at.is_(None))
        .values(doubted_at=now, fault=fault, updated_at=now)
    )
    tx.execute(
        update(migrations_table)
        .where(migrations_table.c.server_id == server_id, migrations_table.c.open)
        .values(held=True)
    )


def doubt_everything(tx: Connection) -> int:
    """Doubt every server, after a restore; return how many there are."""
    wanted = tx.scalars(select(servers.c.id).where(servers.c.deleted_at.is_(None)).order_by(servers.c.id)).all()
    for server_id in wanted:
        doubt(tx, server_id)
    skip_numbers(tx)
    return len(wanted)


def skip_numbers(tx: Connection) -> None:
    """Leave out migration numbers that were given after the backup: names of files on hosts are made of them."""
    newest = tx.scalar(select(func.coalesce(func.max(migrations_table.c.id), 0)))
    after = int(newest or 0) + SKIPPED
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.setval(func.pg_get_serial_sequence("migrations", "id"), after)))
        return
    raised = tx.execute(text("UPDATE sqlite_sequence SET seq = :after WHERE name = 'migrations'"), {"after": after})
    if raised.rowcount == 0:
        tx.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES ('migrations', :after)"), {"after": after})


_DOUBTED = (
    select(servers)
    .where(servers.c.doubted_at.is_not(None), servers.c.deleted_at.is_(None))
    .order_by(servers.c.id)
    .limit(100)
    .with_for_update(skip_locked=True)
)


def doubted(tx: Connection) -> list[Row[Any]]:
    """Return the doubted servers, each locked for this transaction; those that another is settling are left out."""
    return list(tx.execute(_DOUBTED))


def abandon(tx: Connection, server_id: str) -> None:
    """End the server's open migration, whose journal is older than the truth; nothing is ordered for it."""
    row = migrations.open_of(tx, server_id)
    if row is not None:
        migrations.close(tx, row, Outcome.ERROR, OVERTAKEN)


def release(tx: Connection, server_id: str) -> int | None:
    """Let the held migration go on; return its number, None when there is none."""
    row = migrations.open_of(tx, server_id)
    if row is None:
        return None
    migrations.save(tx, row.id, row.revision, {"held": False})
    # It was not asked about meanwhile, so the host's silence begins to count now.
    awaited = journal.c.migration_id == row.id, journal.c.mark.in_(AWAITED)
    tx.execute(update(journal).where(*awaited).values(heard_at=clock.now()))
    return int(row.id)


def settle(tx: Connection, server_id: str, **values: Any) -> None:
    """End the doubt, with what was found."""
    servers_core.set_values(tx, server_id, doubted_at=None, **{"fault": None, **values})


def move_claim(tx: Connection, server: Row[Any], host: str) -> None:
    """Leave the server with one claim, at this host; what runs there takes its room, whether or not that was free."""
    tx.execute(delete(claims).where(claims.c.server_id == server.id, claims.c.host != host))
    if tx.execute(select(claims.c.id).where(claims.c.server_id == server.id).limit(1)).first() is None:
        need = resources_of(servers_core.flavor_of(server.flavor))
        room = {"vcpus": need.vcpus, "ram_mb": need.ram_mb, "disk_gb": need.disk_gb}
        tx.execute(insert(claims).values(host=host, server_id=server.id, attempt="0-0", owed=False, **room))


# --- what hosts say -------------------------------------------------------------------------------


_ABOUT = select(sightings).where(
    (sightings.c.host == bindparam("host"))
    | sightings.c.server_id.in_(
        select(servers.c.id).where(servers.c.host == bindparam("host"), servers.c.deleted_at.is_(None))
    )
)


def sightings_about(tx: Connection, host: str) -> list[Row[Any]]:
    """Return what this host has said, and what others have said of the servers that belong here."""
    return list(tx.execute(_ABOUT, {"host": host}))


def sightings_of(tx: Connection, server_id: str) -> list[Row[Any]]:
    """Return what each host has said of this server."""
    return list(tx.execute(select(sightings).where(sightings.c.server_id == server_id)))


def note(tx: Connection, host: str, server_id: str, line: GuestReport | None, earlier: Row[Any] | None) -> None:
    """Write down what a host says of a server; no line means that it has nothing of it."""
    now = clock.now()
    if line is None:
        values = {"epoch": 0, "number": 0, "granted": 0, "power_state": "unknown", "present": False}
    else:
        said = {"epoch": line.epoch, "number": line.number, "granted": line.granted}
        values = {**said, "power_state": line.power_state, "present": True}
    values["seen_at"] = now
    if earlier is None or earlier.present != values["present"]:
        values["first_seen_at"] = now
    if earlier is None:
        tx.execute(insert(sightings).values(server_id=server_id, host=host, **values))
    else:
        tx.execute(_of(update(sightings), host, server_id).values(values))


def forget(tx: Connection, host: str, server_id: str) -> None:
    """Drop what a host has said of a server: it is as it should be again."""
    tx.execute(_of(delete(sightings), host, server_id))


def _of(statement: Any, host: str, server_id: str) -> Any:
    return statement.where(sightings.c.host == host, sightings.c.server_id == server_id)
