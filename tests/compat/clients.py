"""The clients that people have: `openstack` as a command, the SDK, and plain HTTP where the bytes themselves matter."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import httpx2
import yaml
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from tests.fakecloud import FakeCloud

COMMAND_SECONDS = 60
SERVER_SECONDS = 45
LOOK_SECONDS = 0.1

Json = dict[str, Any]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["openstackclient.shell", "tests.compat.clients"])


def wait_for(what: str, look: Callable[[], Any], seconds: float = SERVER_SECONDS) -> Any:
    """Return the first true answer of `look`; fail with `what` did not come."""
    end, pause = monotonic() + seconds, Event()
    while not (found := look()):
        assert monotonic() < end, f"waited {seconds:g} s for {what}"
        pause.wait(LOOK_SECONDS)
    return found


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    error: str

    def json(self) -> Any:
        """Return the output of a command that was asked for JSON."""
        return json.loads(self.out)


class Command:
    """`openstack`, unmodified, as one of the personas.

    A new interpreter needs two seconds to import the client, so each command is a fork of one that has imported it:
    a process of its own that calls the client's own entry point, and nothing is left over from the one before.
    """

    def __init__(self, cloud: FakeCloud, directory: Path, persona: str = "admin") -> None:
        self._cloud = cloud
        self._directory = directory
        self._persona = persona

    def __call__(self, line: str, *more: str) -> Said:
        """Run a command, whatever becomes of it; `more` are words that have spaces."""
        paths = [str(self._directory / name) for name in ("out", "error")]
        process = _forks.Process(target=_run, args=([*line.split(), *more], self._environment(), paths))
        process.start()
        process.join(COMMAND_SECONDS)
        if process.exitcode is None:
            process.kill()
        out, error = (Path(path).read_text() for path in paths)
        assert process.exitcode is not None, f"openstack {line} did not end: {out} {error}"
        return Said(process.exitcode, out, error)

    def ok(self, line: str, *more: str) -> str:
        """Run a command that must succeed; return what it said."""
        said = self(line, *more)
        assert said.code == 0, f"openstack {line}: {said}"
        return said.out

    def json(self, line: str, *more: str) -> Any:
        """Run a command that must succeed and is asked for JSON; return that."""
        return json.loads(self.ok(f"{line} -f json", *more))

    def refused(self, line: str, *more: str) -> str:
        """Run a command that must fail; return its words."""
        said = self(line, *more)
        assert said.code != 0, f"openstack {line}: {said}"
        return said.error

    def _environment(self) -> dict[str, str]:
        return {"OS_CLIENT_CONFIG_FILE": str(self._cloud.clouds_yaml), "OS_CLOUD": self._persona}


def _run(words: list[str], environment: dict[str, str], paths: list[str]) -> None:
    os.environ.update(environment)
    for stream, path in zip((1, 2), paths, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    from openstackclient import shell

    warnings.simplefilter("ignore")
    sys.exit(shell.main(words))


class Wire:
    """The compute API over plain HTTP, as one of the personas."""

    def __init__(self, cloud: FakeCloud, persona: str = "admin") -> None:
        auth = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"][persona]["auth"]
        self.root = auth["auth_url"].removesuffix("/identity/v3")
        self.http = httpx2.Client(base_url=f"{self.root}/compute/v2.1", timeout=30, trust_env=False)
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        body = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": auth["project_name"], "domain": domain}},
        }
        answer = self.http.post(f"{auth['auth_url']}/auth/tokens", json={"auth": body}).raise_for_status()
        self.http.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]
        self.project_id = answer.json()["token"]["project"]["id"]

    def __call__(self, method: str, path: str, body: Any = None, version: str | None = "2.100") -> httpx2.Response:
        """Send a request at a microversion (None: without the header) and return the answer, whatever it is."""
        headers = {} if version is None else {"OpenStack-API-Version": f"compute {version}"}
        return self.http.request(method, path, json=body, headers=headers)


class Clients:
    """Every client, as any persona, of one cloud."""

    def __init__(self, cloud: FakeCloud, directory: Path) -> None:
        self.cloud = cloud
        self.directory = directory
        self._connections: dict[str, Any] = {}
        self._wires: dict[str, Wire] = {}

    def openstack(self, persona: str = "admin") -> Command:
        """Return the command."""
        return Command(self.cloud, self.directory, persona)

    def sdk(self, persona: str = "admin") -> Any:
        """Return the SDK's connection."""
        if persona not in self._connections:
            configured = OpenStackConfig(config_files=[str(self.cloud.clouds_yaml)]).get_one(persona)
            self._connections[persona] = Connection(config=configured)
        return self._connections[persona]

    def wire(self, persona: str = "admin") -> Wire:
        """Return plain HTTP."""
        if persona not in self._wires:
            self._wires[persona] = Wire(self.cloud, persona)
        return self._wires[persona]

    def close(self) -> None:
        """Let go of every connection."""
        for connection in self._connections.values():
            connection.close()
        for wire in self._wires.values():
            wire.http.close()


@dataclass
class Server:
    """A server of the project demo, as its administrator sees it."""

    clients: Clients
    id: str
    name: str

    def show(self) -> Json:
        """Return the server at the newest microversion."""
        shown: Json = self.clients.wire()("GET", f"/servers/{self.id}").raise_for_status().json()["server"]
        return shown

    @property
    def host(self) -> str:
        """The host that it is on."""
        return str(self.show()["OS-EXT-SRV-ATTR:host"])

    def act(self, action: str, body: Any = None, persona: str = "admin", version: str = "2.100") -> httpx2.Response:
        """Ask for an action and return the answer, whatever it is."""
        return self.clients.wire(persona)("POST", f"/servers/{self.id}/action", {action: body}, version)

    def wait(self, status: str) -> Json:
        """Wait until the server rests in this state."""

        def rests() -> Json | None:
            shown = self.show()
            return shown if (shown["status"], shown["OS-EXT-STS:task_state"]) == (status, None) else None

        found: Json = wait_for(f"server {self.name} to be {status}", rests)
        return found

    def move(self, host: str | None = None) -> None:
        """Migrate the server, and wait for the undo window."""
        assert self.act("migrate", {"host": host} if host else None).status_code == 202
        self.wait("VERIFY_RESIZE")

    def migrations(self) -> list[Json]:
        """Return its migrations, newest first."""
        found: list[Json] = self.clients.wire()("GET", f"/os-migrations?instance_uuid={self.id}").json()["migrations"]
        return found
