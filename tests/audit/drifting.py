"""A cloud without hypervisors whose files, guests and books a test can change behind its back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from tests.cloud import wait_for
from tests.compat.clients import Wire
from tests.fakecloud import FakeCloud
from whimbrel.lab.seed import IMAGE_NAME
from whimbrel.store.engine import Store
from whimbrel.store.tables import migrations

Json = dict[str, Any]


class Drifting:
    """The cloud as its administrator has it, and as somebody with a shell on its machines has it."""

    def __init__(self, fake: FakeCloud) -> None:
        self.fake = fake
        self.store = Store(f"sqlite:///{fake.dir}/whimbrel.db")
        self.wire = Wire(fake)
        self._made = 0

    # --- the administrator ------------------------------------------------------------------------

    def whimbrel(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as a person does."""
        environment = {
            **os.environ, "OS_CLIENT_CONFIG_FILE": str(self.fake.clouds_yaml), "OS_CLOUD": "admin", "NO_PROXY": "*",
        }  # fmt: skip
        command = [sys.executable, "-m", "whimbrel", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)

    def audit(self, *words: str) -> tuple[int, Json]:
        """Run an audit; return its exit code and report."""
        done = self.whimbrel("audit", "--json", *words)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["audit"]

    def server(self, host: str) -> str:
        """Create a server on a host and wait until it runs; return its id."""
        self._made += 1
        image = self.wire.http.get(f"{self.wire.root}/image/v2/images").json()["images"]
        flavors = self.wire("GET", "/flavors").json()["flavors"]
        body = {
            "name": f"vm{self._made}",
            "imageRef": next(row["id"] for row in image if row["name"] == IMAGE_NAME),
            "flavorRef": next(row["id"] for row in flavors if row["name"] == "small"),
            "networks": "none",
            "host": host,
        }
        answer = self.wire("POST", "/servers", {"server": body})
        assert answer.status_code == 202, answer.text
        server: str = answer.json()["server"]["id"]
        self.wait(server, "ACTIVE")
        return server

    def act(self, server: str, action: str, body: Any = None) -> None:
        """Ask for an action."""
        answer = self.wire("POST", f"/servers/{server}/action", {action: body})
        assert answer.is_success, answer.text

    def wait(self, server: str, *states: str) -> None:
        """Wait until the server rests in one of these states."""

        def rests() -> bool:
            shown = self.wire("GET", f"/servers/{server}").json()["server"]
            return shown["status"] in states and shown["OS-EXT-STS:task_state"] is None

        wait_for(f"server {server} to be {states}", rests)

    def move(self, server: str, host: str) -> None:
        """Move a server to a host and keep it there."""
        self.act(server, "migrate", {"host": host})
        self.wait(server, "VERIFY_RESIZE")
        self.act(server, "confirmResize")
        self.wait(server, "ACTIVE")
        wait_for(
            "the confirm",
            lambda: not self.books(lambda tx: tx.execute(select(migrations).where(migrations.c.open)).all()),
        )

    def delete(self, server: str) -> None:
        """Delete a server and wait until it is gone."""
        self.wire("DELETE", f"/servers/{server}")
        wait_for(f"server {server} to go", lambda: self.wire("GET", f"/servers/{server}").status_code == 404)

    # --- the shell --------------------------------------------------------------------------------

    def books(self, function: Any, *arguments: Any, **values: Any) -> Any:
        """Run a transaction of the test's own on the database."""
        return self.store.write_now(function, *arguments, **values)

    def instances(self, host: str) -> Path:
        """Return where a host keeps its servers."""
        return self.fake.dir / host / "instances"

    def directories(self, host: str, server: str) -> list[str]:
        """Return what a host has of a server, without the server's id."""
        return sorted(path.name.removeprefix(server) for path in self.instances(host).glob(f"{server}*"))

    def directory(self, host: str, name: str, attempt: str) -> Path:
        """Make a server's directory by hand."""
        path = self.instances(host) / name
        path.mkdir()
        (path / "disk-0").write_text("somebody's bytes\n")
        (path / "manifest.json").write_text(json.dumps({"attempt": attempt}))
        return path

    @contextmanager
    def guests(self, host: str) -> Iterator[Json]:
        """Change what a host's hypervisor knows."""
        path = self.instances(host) / "fake-guests.json"
        records: Json = json.loads(path.read_text()) if path.exists() else {}
        yield records
        path.write_text(json.dumps(records))

    def boot(self, host: str) -> str:
        """Return the mark of the host's boot."""
        return (self.fake.dir / host / "run" / "boot").read_text().strip()


def only(report: Json, kind: str) -> Json:
    """Return the one finding of a kind."""
    (finding,) = [row for row in report["findings"] if row["kind"] == kind]
    found: Json = finding
    return found


def kinds(report: Json) -> list[str]:
    """Return the kinds that were found."""
    return sorted(row["kind"] for row in report["findings"])


def row(tx: Connection, table: Any, **values: Any) -> None:
    """Insert a row."""
    tx.execute(table.insert().values(**values))
