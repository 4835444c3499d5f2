"""The conductor's own steps on the database: the port `Books`, bound to one transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from whimbrel.domain.claim import resources_of
from whimbrel.domain.errors import StepError
from whimbrel.domain.migration import Where
from whimbrel.migration.messages import Facts
from whimbrel.migration.ports import Case
from whimbrel.ops import clock
from whimbrel.store import claims, networks
from whimbrel.store.servers_core import flavor_of
from whimbrel.store.tables import hosts, migrations, servers


class StoreBooks:
    """Claims, placement and closure of servers, each inside the transaction that it was made with."""

    def __init__(self, tx: Connection) -> None:
        self._tx = tx

    def take_claim(self, case: Case) -> Facts:
        """Set the new flavor's room aside at the target; raise StepError with the figures when it is not there."""
        if case.target is None:
            raise StepError(f"No host is left to try for server {case.server}.")
        need = resources_of(flavor_of(self._migration(case).new_flavor))
        free = claims.take(self._tx, case.target, case.server, case.attempt, need)
        self._choose_root_disk(case.server, case.target)
        return {"host": case.target, "free_vcpus": free.vcpus, "free_ram_mb": free.ram_mb, "free_disk_gb": free.disk_gb}

    def give_back_claim(self, case: Case) -> None:
        """Give back what this attempt claimed at the target."""
        mine = [row for row in claims.of_server(self._tx, case.server) if row.attempt == case.attempt]
        claims.give_back(self._tx, mine)

    def settle_claims(self, case: Case, *, keep: Where | None) -> Facts:
        """Keep the server's claim at the target (this attempt's) or at the source, and give the others back."""
        rows = claims.of_server(self._tx, case.server)
        if keep is Where.TARGET:
            rows = [row for row in rows if row.attempt != case.attempt]
        elif keep is Where.SOURCE:
            rows = [row for row in rows if row.attempt == case.attempt]
        claims.give_back(self._tx, rows)
        return {"given_back": [row.host for row in rows]}

    def place(self, case: Case, *, at: Where) -> Facts:
        """Record that the server belongs to the source or the target now, at a new epoch, with that side's flavor."""
        migration = self._migration(case)
        host = case.target if at is Where.TARGET else case.source
        flavor = migration.new_flavor if at is Where.TARGET else migration.old_flavor
        server = self._tx.execute(select(servers).where(servers.c.id == case.server)).one()
        epoch = server.epoch + 1
        self._tx.execute(
            update(servers)
            .where(servers.c.id == case.server)
            .values(host=host, flavor=flavor, epoch=epoch, updated_at=clock.now())
        )
        return {"host": host, "epoch": epoch}

    def close_server(self, case: Case) -> None:
        """Record that the server is deleted; its addresses are free."""
        now = clock.now()
        networks.free_ports(self._tx, case.server)
        self._tx.execute(
            update(servers).where(servers.c.id == case.server).values(deleted_at=now, terminated_at=now, updated_at=now)
        )

    def _choose_root_disk(self, server_id: str, host: str) -> None:
        """Give a server that is being built the root disk's format of its host, for life: a setting may change."""
        format_there = select(hosts.c.root_disk).where(hosts.c.name == host).scalar_subquery()
        self._tx.execute(
            update(servers).where(servers.c.id == server_id, servers.c.host.is_(None)).values(root_disk=format_there)
        )

    def _migration(self, case: Case) -> Row[Any]:
        return self._tx.execute(select(migrations).where(migrations.c.id == case.migration)).one()
