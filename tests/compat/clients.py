"""The clients that people have: `openstack` as a command, the SDK, and plain HTTP where the bytes themselves matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import httpx2
import yaml
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from tests.fakecloud import FakeCloud
from whimbrel.lab.seed import IMAGE_NAME

ROOT = Path(__file__).parents[2]
SERVER_SECONDS = 45
LOOK_SECONDS = 0.1

Json = dict[str, Any]


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


class Commands:
    """Runs `openstack`; see `tests.compat.command`."""

    def __init__(self, cloud: FakeCloud, directory: Path) -> None:
        self._clouds_yaml = str(cloud.clouds_yaml)
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.compat.command"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def run(self, persona: str, words: list[str]) -> Said:
        """Run a command as a persona, whatever becomes of it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        out, error = self._directory / "out", self._directory / "error"
        environment = {"OS_CLIENT_CONFIG_FILE": self._clouds_yaml, "OS_CLOUD": persona}
        request = {"words": words, "environment": environment, "out": str(out), "error": str(error)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Said(code, out.read_text(), error.read_text())

    def close(self) -> None:
        """End, by closing what requests come from."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@dataclass(frozen=True)
class Openstack:
    """`openstack` as one persona. A line is split at its spaces; `more` are words that have some."""

    commands: Commands
    persona: str

    def __call__(self, line: str, *more: str) -> Said:
        """Run a command, whatever becomes of it."""
        return self.commands.run(self.persona, [*line.split(), *more])

    def ok(self, line: str, *more: str) -> str:
        """Run a command that must succeed; return what it said."""
        said = self(line, *more)
        assert said.code == 0, f"openstack {line}: {said}"
        return said.out

    def json(self, line: str, *more: str) -> Any:
        """Run a command that must succeed, and is asked for JSON; return that."""
        return json.loads(self.ok(f"{line} -f json", *more))

    def refused(self, line: str, *more: str) -> str:
        """Run a command that must fail; return its words."""
        said = self(line, *more)
        assert said.code == 1, f"openstack {line}: {said}"
        return said.error


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


def message(answer: httpx2.Response) -> str:
    """Return the words of a refusal, whose body must be of the form that clients read."""
    ((name, fault),) = answer.json().items()
    assert set(fault) == {"code", "message"} and fault["code"] == answer.status_code, (name, fault)
    return str(fault["message"])


class Clients:
    """Every client, as any persona, of one cloud."""

    def __init__(self, cloud: FakeCloud, directory: Path) -> None:
        self.cloud = cloud
        self._commands = Commands(cloud, directory)
        self._connections: dict[str, Any] = {}
        self._wires: dict[str, Wire] = {}

    def openstack(self, persona: str = "admin") -> Openstack:
        """Return the command."""
        return Openstack(self._commands, persona)

    def sdk(self, persona: str = "admin") -> Any:
        """Return the SDK's connection."""
        if persona not in self._connections:
            configured = OpenStackConfig(config_files=[str(self.cloud.clouds_yaml)]).get_one(persona)
            self._connections[persona] = Connection(config=configured)
        return self._connections[persona]

    def typed(self, line: str, persona: str = "admin") -> Said:
        """Run a command as a person does: the installed program, in a process of its own."""
        program, *words = line.split()
        environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(self.cloud.clouds_yaml), "OS_CLOUD": persona}
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *words],
            capture_output=True, text=True, env=environment, timeout=120, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def wire(self, persona: str = "admin") -> Wire:
        """Return plain HTTP."""
        if persona not in self._wires:
            self._wires[persona] = Wire(self.cloud, persona)
        return self._wires[persona]

    @cached_property
    def image_id(self) -> str:
        """The id of the image that everybody has."""
        found = self.wire()("GET", f"{self.wire().root}/image/v2/images?name={IMAGE_NAME}").json()["images"]
        return str(found[0]["id"])

    def flavor_id(self, name: str) -> str:
        """Return the id of a flavor."""
        return next(str(row["id"]) for row in self.wire()("GET", "/flavors").json()["flavors"] if row["name"] == name)

    def close(self) -> None:
        """Let go of every connection."""
        self._commands.close()
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
