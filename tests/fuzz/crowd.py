"""A cloud with a server in every state there is, that is put back as it was after each request that changed it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Integer, update

from tests.fuzz.wire import Answer, ask
from tests.unit import compute_cloud as fill
from tests.unit.cloud import Cloud, open_cloud
from whimbrel.api.app import build_app
from whimbrel.bus import queues
from whimbrel.domain.migration import Mark
from whimbrel.identity import passwords
from whimbrel.migration.messages import Console
from whimbrel.ops import clock
from whimbrel.store.tables import hosts, metadata, networks

HOSTS = ("h1", "h2", "h3")


@dataclass
class Crowd:
    """The cloud, its application, the names of what is in it, and the database as it was at the start."""

    cloud: Cloud
    app: Any
    loop: asyncio.AbstractEventLoop
    live: sqlite3.Connection
    pristine: sqlite3.Connection
    image_dir: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    tokens: dict[str, str | None] = field(default_factory=dict)

    def ask(self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> Answer:
        """Send one request."""
        return self.loop.run_until_complete(ask(self.app, method, target, headers, body))

    def digest(self) -> str:
        """Return the digest of every row of every table, and of the image store's files."""
        digest = hashlib.blake2b()
        for table in metadata.sorted_tables:
            digest.update(repr(self.live.execute(f'SELECT * FROM "{table.name}" ORDER BY rowid').fetchall()).encode())
        for path in sorted(self.image_dir.rglob("*")):
            digest.update(f"{path}{path.stat().st_size}".encode())
        return digest.hexdigest()

    def misfits(self) -> list[str]:
        """Name what SQLite has taken and PostgreSQL would not: texts beyond their column, NULs, large integers."""
        found = []
        for table in metadata.sorted_tables:
            for row in self.live.execute(f'SELECT * FROM "{table.name}"'):
                for column, value in zip(table.columns, row, strict=True):
                    length = getattr(column.type, "length", None)
                    if isinstance(value, str) and (
                        len(value) > (length or 2**30) or "\0" in value or r"\u0000" in value
                    ):
                        found.append(f"{table.name}.{column.name}: {value[:300]!r}")
                    if type(column.type) is Integer and isinstance(value, int) and abs(value) >= 2**31:
                        found.append(f"{table.name}.{column.name}: {value}")
        return found

    def put_back(self) -> None:
        """Make the database what it was at the start."""
        self.pristine.backup(self.live)


@contextmanager
def crowded(folder: Path) -> Iterator[Crowd]:
    """Make the cloud in a folder, and take it down. Passwords are hashed cheaply, because many are."""
    loop = asyncio.new_event_loop()
    before = passwords.MEMORY_KIB, passwords.ITERATIONS
    passwords.MEMORY_KIB, passwords.ITERATIONS = 64, 1
    log = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    opened = open_cloud(folder)
    cloud = loop.run_until_complete(opened.__aenter__())
    try:
        names = loop.run_until_complete(_people(cloud))
        live = sqlite3.connect(folder / "cloud.sqlite", check_same_thread=False)
        pristine = sqlite3.connect(":memory:")
        live.backup(pristine)
        app = build_app(cloud.services)
        crowd = Crowd(cloud, app, loop, live, pristine, folder / "images", names)
        crowd.tokens = {name: cloud.token(name)["X-Auth-Token"] for name in ("admin", "alice", "rita", "bob")}
        crowd.tokens |= {"nobody": None, "forger": "gAAAAA-not-one-of-ours", "latin": "\xe9\xff"}
        yield crowd
        live.close()
    finally:
        passwords.MEMORY_KIB, passwords.ITERATIONS = before
        structlog.configure(**log)
        loop.run_until_complete(cloud.services.bus.close())
        loop.run_until_complete(opened.__aexit__(None, None, None))
        loop.close()


async def _people(cloud: Cloud) -> dict[str, list[str]]:
    """Fill the cloud, and return what there is to name in a path or a query, by the name of the parameter."""
    fill.furnish(cloud, *HOSTS)

    def more(tx: Connection) -> None:
        fill.add_host(tx, "h9", heard_at=clock.now() - 9999.0)
        tx.execute(update(networks).values(cidr="10.99.0.0/24"))
        tx.execute(update(hosts).where(hosts.c.name.in_(HOSTS)).values(heard_at=clock.now() + 86_400.0))

    cloud.services.store.write_now(more)
    await cloud.services.bus.start()
    for host in HOSTS:
        await cloud.services.bus.consume(queues.agent(host), _console)
    servers = [await _server(cloud, state) for state in STATES]
    admin = cloud.token("admin")

    async def ids(url: str, noun: str, version: str = "2.1") -> list[str]:
        answer = await cloud.http.get(url, headers={**admin, "X-OpenStack-Nova-API-Version": version})
        return [str(item.get("id") or item["name"]) for item in answer.json()[noun]]

    migrations = await cloud.http.get("/whimbrel/v1/migrations", headers=admin)
    rows = migrations.json()["migrations"]
    return {
        "servers": servers,
        "hosts": list(HOSTS),
        "flavors": ["1", "2"],
        "images": await ids("/image/v2/images", "images"),
        "networks": await ids("/network/v2.0/networks", "networks"),
        "ports": await ids("/network/v2.0/ports", "ports"),
        "users": await ids("/identity/v3/users", "users"),
        "projects": await ids("/identity/v3/projects", "projects"),
        "roles": await ids("/identity/v3/roles", "roles"),
        "services": [
            *await ids("/compute/v2.1/os-services", "services"),
            *await ids("/compute/v2.1/os-services", "services", "2.53"),
        ],
        "hypervisors": [
            *await ids("/compute/v2.1/os-hypervisors", "hypervisors"),
            *await ids("/compute/v2.1/os-hypervisors", "hypervisors", "2.53"),
        ],
        "migrations": [str(row[key]) for row in rows for key in ("id", "uuid")],
        "requests": [row["request_id"] for row in rows],
    }


async def _console(message: object) -> object:
    return Console("login: ")


STATES = (
    "active", "building", "stopped", "locked", "resized", "migrating", "handed over", "confirming", "reverting",
    "fence", "error", "deleting", "deleted",
)  # fmt: skip


async def _server(cloud: Cloud, state: str) -> str:
    if state == "building":
        return await fill.create(cloud, name=state)
    server = await fill.active(cloud, name=state, metadata={"state": state})
    url = f"/compute/v2.1/servers/{server}"
    headers = fill.at(cloud, "admin", "2.100")

    async def act(body: dict[str, Any]) -> None:
        answer = await cloud.http.post(f"{url}/action", json=body, headers=headers)
        assert answer.status_code < 300, (state, answer.text)

    if state in ("resized", "migrating", "handed over", "confirming", "reverting", "fence"):
        await act({"migrate": None})
    match state:
        case "stopped":
            fill.close(cloud, server, "completed", power_state="stopped")
        case "locked":
            await act({"lock": None})
        case "migrating":
            fill.progress(cloud, server, ("claim", Mark.DONE), ("prepare", Mark.DOING), target="h2")
        case "handed over":
            steps = ("claim", "prepare", "stop_guest", "copy_disks", "hand_over")
            fill.progress(
                cloud, server, *((step, Mark.DONE) for step in steps), ("start_guest", Mark.DOING), target="h2"
            )
        case "fence":
            fill.progress(cloud, server, ("claim", Mark.DONE), ("start_guest", Mark.LOST), target="h2", fence="h2")
        case "resized" | "confirming" | "reverting":
            fill.open_window(cloud, server)
            if state != "resized":
                await act({"confirmResize" if state == "confirming" else "revertResize": None})
        case "error":
            await act({"os-resetState": {"state": "error"}})
        case "deleting" | "deleted":
            assert (await cloud.http.delete(url, headers=headers)).status_code == 204
            if state == "deleted":
                fill.close(cloud, server, "completed", deleted_at=clock.now(), terminated_at=clock.now())
    return server
