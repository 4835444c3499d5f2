"""The small cloud with hosts, flavors and an image, and a stand-in for the conductor that writes what it would."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from tests.unit.cloud import Cloud
from whimbrel.domain.migration import Mark
from whimbrel.domain.server import Flavor
from whimbrel.ops import clock, ids
from whimbrel.store import flavors, images
from whimbrel.store.tables import claims, hosts, journal, migrations, servers

IMAGE = "aaaaaaaa-0000-4000-8000-000000000001"
PLACED = {"power_state": "running", "root_disk": "qcow2", "epoch": 1}


def furnish(cloud: Cloud, *names: str) -> None:
    """Add hosts, two flavors and an image."""

    def rows(tx: Connection) -> None:
        for name in names or ("h1", "h2"):
            add_host(tx, name)
        flavors.insert(tx, Flavor("1", "small", 1, 128, 1))
        flavors.insert(tx, Flavor("2", "large", 2, 256, 2))
        row = {"id": IMAGE, "name": "cirros", "project_id": "p", "visibility": "public", "disk_format": "qcow2",
               "container_format": "bare"}  # fmt: skip
        images.create(tx, row)
        content = {"size_bytes": 1 << 20, "virtual_size_bytes": 1 << 26, "sha256": "0" * 64, "status": "active"}
        images.change(tx, IMAGE, content)

    cloud.services.store.write_now(rows)


def add_host(tx: Connection, name: str, **more: Any) -> None:
    """Add a host that was heard of just now."""
    row = {
        "name": name, "service_uuid": ids.new_uuid(), "hypervisor_uuid": ids.new_uuid(),
        "address": f"10.0.0.{name[1:]}", "boot": "b", "ledger": "l", "protocols": {},
        "vcpus": 4, "ram_mb": 4096, "disk_gb": 40, "free_disk_gb": 30,
        "reserved_vcpus": 0, "reserved_ram_mb": 512, "reserved_disk_gb": 0,
        "cpu_ratio": 16.0, "ram_ratio": 1.0, "disk_ratio": 1.0, "architecture": "x86_64", "root_disk": "qcow2",
        "hypervisor": "libvirt", "hypervisor_version": 9000000, "uptime": "up 1 day",
        "heard_at": clock.now(), "created_at": clock.now(),
    }  # fmt: skip
    tx.execute(hosts.insert().values(**{**row, **more}))


def at(cloud: Cloud, who: str, version: str = "2.1") -> dict[str, str]:
    """Return the headers of a user's request at a microversion."""
    return {**cloud.token(who), "X-OpenStack-Nova-API-Version": version}


def servers_url(path: str = "") -> str:
    """Return the address of the servers resource."""
    return f"/compute/v2.1/servers{path}"


async def create(cloud: Cloud, who: str = "alice", **more: Any) -> str:
    """Create a server through the API and return its id."""
    body = {"server": {"name": "vm", "imageRef": IMAGE, "flavorRef": "1", **more}}
    answer = await cloud.http.post(servers_url(), json=body, headers=cloud.token(who))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["server"]["id"])


async def active(cloud: Cloud, who: str = "alice", *, host: str = "h1", **more: Any) -> str:
    """Create a server and write that its build has succeeded at the host."""
    server_id = await create(cloud, who, **more)
    close(cloud, server_id, "completed", host=host, **PLACED)
    return server_id


def close(cloud: Cloud, server_id: str, outcome: str, **server: Any) -> None:
    """Write that the server's open migration has ended, and what became of the server."""

    def write(tx: Connection) -> None:
        tx.execute(
            update(migrations)
            .where(migrations.c.server_id == server_id, migrations.c.open)
            .values(open=False, window_open=False, outcome=outcome, finished_at=clock.now())
        )
        if server:
            values = {"launched_at": clock.now(), "updated_at": clock.now(), **server}
            tx.execute(update(servers).where(servers.c.id == server_id).values(**values))

    cloud.services.store.write_now(write)


def progress(cloud: Cloud, server_id: str, *steps: tuple[str, Mark], **migration: Any) -> int:
    """Write journal rows for the open migration's current attempt, and columns of it; return its number."""

    def write(tx: Connection) -> int:
        row = tx.execute(select(migrations).where(migrations.c.server_id == server_id, migrations.c.open)).one()
        if migration:
            tx.execute(update(migrations).where(migrations.c.id == row.id).values(**migration))
        row = tx.execute(select(migrations).where(migrations.c.id == row.id)).one()
        for step, mark in steps:
            host = {"stop_guest": row.source, "start_guest": row.target, "prepare": row.target}.get(step)
            key = {"migration_id": row.id, "segment": row.segment, "attempt": row.attempt, "step": step}
            values = {"mark": mark, "host": host, "started_at": clock.now(), "ended_at": clock.now()}
            known = [journal.c[name] == value for name, value in key.items()]
            if tx.execute(update(journal).where(*known).values(**values)).rowcount == 0:
                tx.execute(journal.insert().values(**key, **values))
        return int(row.id)

    return cloud.services.store.write_now(write)


def open_window(cloud: Cloud, server_id: str, target: str = "h2") -> None:
    """Write that the server runs at the target and waits for a verdict."""
    progress(cloud, server_id, window_open=True, target=target, finished_at=clock.now())
    cloud.services.store.write_now(
        lambda tx: tx.execute(update(servers).where(servers.c.id == server_id).values(host=target))
    )


def claim(cloud: Cloud, host: str, server_id: str) -> None:
    """Write a claim of one CPU, 128 MiB and 1 GiB."""
    row = {"host": host, "server_id": server_id, "attempt": "1-1", "vcpus": 1, "ram_mb": 128, "disk_gb": 1}
    cloud.services.store.write_now(lambda tx: tx.execute(claims.insert().values(**row)))
