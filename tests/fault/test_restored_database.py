"""Real processes: the controller's database is put back to an old copy while servers moved, came and went."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.fakecloud import FakeCloud
from tests.fault.test_controllers import Client
from whimbrel.lab.processes import wait_until
from whimbrel.store.engine import Store
from whimbrel.store.tables import claims, migrations, servers, sightings

HEALED_WITHIN = 120.0


def copy(cloud: FakeCloud, to: Path) -> None:
    """Back the database up while everything runs."""
    if cloud.database is not None:
        to.write_text(cloud.database.tool("pg_dump", "whimbrel"))
        return
    with sqlite3.connect(cloud.dir / "whimbrel.db") as source, sqlite3.connect(to) as target:
        source.backup(target)


def put_back(cloud: FakeCloud, backup: Path) -> None:
    """Put it back while no controller runs."""
    if cloud.database is not None:
        cloud.database.tool("dropdb", "--force", "whimbrel")
        cloud.database.create("whimbrel")
        cloud.database.tool(
            "psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", "whimbrel", "--file", str(backup)
        )
        return
    for end in ("-wal", "-shm"):
        (cloud.dir / f"whimbrel.db{end}").unlink(missing_ok=True)
    shutil.copy(backup, cloud.dir / "whimbrel.db")


def rows(cloud: FakeCloud, table: Any) -> list[Any]:
    """Read a table."""
    store = Store(cloud.database_url)
    try:
        return list(store.read_now(lambda tx: tx.execute(select(table).order_by(*table.primary_key)).all()))
    finally:
        store.close()


@pytest.mark.parametrize(("database", "said"), [("sqlite", False), ("postgresql", True)])
def test_a_restored_database_learns_where_the_servers_are(database: str, said: bool) -> None:
    """By the book (`said`: with `whimbrel db restored`), and without a word to anybody."""
    with FakeCloud(3, database=database) as cloud:
        client = Client(cloud)
        made = {name: client.create(name) for name in ("stayed", "moved", "waits", "returned", "deleted")}
        for server in made.values():
            client.wait(server, "ACTIVE")
        copy(cloud, cloud.dir / "backup")
        for name, verdict in (("moved", "confirmResize"), ("waits", None), ("returned", "revertResize")):
            client.act(made[name], {"migrate": None})
            client.wait(made[name], "VERIFY_RESIZE")
            if verdict is not None:
                client.act(made[name], {verdict: None})
                client.wait(made[name], "ACTIVE")
        client.ask("DELETE", f"/compute/v2.1/servers/{made['deleted']}")
        made["created"] = client.create("created")
        client.wait(made["created"], "ACTIVE")
        assert wait_until(lambda: not [row for row in rows(cloud, migrations) if row.kind == "delete" and row.open], 60)
        truth = {row.id: row.host for row in rows(cloud, servers) if row.deleted_at is None}
        boots = console_boots(cloud, truth)
        cloud.kill("controller")
        put_back(cloud, cloud.dir / "backup")
        if said:
            config = str(cloud.dir / "controller.toml")
            subprocess.run([sys.executable, "-m", "whimbrel", "db", "restored", "--config", config], check=True)
        cloud.start("controller")
        known = {server: host for server, host in truth.items() if server != made["created"]}

        def healed() -> bool:
            found = {row.id: row for row in rows(cloud, servers)}
            lost = found.pop(made["deleted"])
            right = all(
                row.host == known[row.id] and row.fault is None and not row.doubted_at for row in found.values()
            )
            return bool(right and lost.fault and lost.fault.get("lost"))

        assert wait_until(healed, HEALED_WITHIN), [
            (r.name, r.host, known.get(r.id), r.fault) for r in rows(cloud, servers)
        ]
        assert console_boots(cloud, truth) == boots, "a guest was started although it ran"
        at = {(row.server_id, row.host) for row in rows(cloud, claims)} - {
            (made["deleted"], h) for h in ("h1", "h2", "h3")
        }
        assert at == set(known.items())
        assert [(row.server_id, row.host) for row in rows(cloud, sightings) if row.present] == [
            (made["created"], truth[made["created"]])
        ], "what the database does not know is noted, and left alone"
        assert client.server(made["deleted"])["status"] == "ERROR"
        assert not [row for row in rows(cloud, migrations) if row.open]
        move_on(client, made["moved"])


def console_boots(cloud: FakeCloud, truth: dict[str, str]) -> dict[str, int]:
    """Return how often each guest has started where it runs."""
    homes = {server: cloud.dir / host / "instances" / server for server, host in truth.items()}
    return {server: (home / "console.log").read_text().count("VERIFY") for server, home in homes.items()}


def move_on(client: Client, server: str) -> None:
    """A server whose place was learnt can be moved, at the latest the second time: its target may remember more."""
    for _ in range(2):
        client.act(server, {"migrate": None})
        if client.wait(server, "VERIFY_RESIZE", "ACTIVE") == "VERIFY_RESIZE":
            client.act(server, {"confirmResize": None})
            client.wait(server, "ACTIVE")
            return
    raise AssertionError("it cannot be moved")
