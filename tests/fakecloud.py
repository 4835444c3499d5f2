"""A cloud without hypervisors on loopback: RabbitMQ, a controller and one process per agent."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import yaml

from whimbrel.bus.signing import Signer
from whimbrel.lab import guest
from whimbrel.lab.broker import Broker
from whimbrel.lab.database import Database
from whimbrel.lab.seed import Seeder

PERSONAS = {
    "admin": ("admin", ["admin"]),
    "demo": ("demo", ["member"]),
    "manager": ("demo", ["manager", "member"]),
    "reader": ("demo", ["reader"]),
    "other": ("other", ["member"]),
}
"""User to project and roles."""


PORTS = range(20_000, 32_000, 4)
"""Below those that the kernel gives to outgoing connections, one of which might take a port before its server does."""


def free_port() -> int:
    """Return a port that was free a moment ago, as were the two after it, which a broker takes as well."""
    for _ in range(100):
        first = secrets.choice(PORTS)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 3):
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return first
    raise RuntimeError("This machine has no free ports.")


CONTROLLER = {"controller": 1}


class FakeCloud:
    """Started as a context; `clouds_yaml` is how it is used, `pids` what it runs as.

    `replicas` says how many processes of each control role there are; every api has a port, and so an URL, of its own.
    """

    def __init__(
        self, hosts: int = 2, *, database: str = "sqlite", replicas: Mapping[str, int] = CONTROLLER, conductor: str = ""
    ) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="whimbrel-bench-"))
        self.dir.chmod(0o711)  # PostgreSQL's own user passes through
        self._password = secrets.token_urlsafe(12)
        self._hosts = hosts
        self._conductor = conductor
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._configs: dict[str, Path] = {}
        self._logs: list[IO[bytes]] = []
        self.control_roles = [f"{role}{number or ''}" for role, count in replicas.items() for number in range(count)]
        serving = [name for name in self.control_roles if name.startswith(("api", "controller"))]
        self.urls = {name: f"http://127.0.0.1:{free_port()}" for name in serving}
        self.database = (
            Database(self.dir / "pg", "127.0.0.1", free_port(), user="w", password=self._password, durable=False)
            if database == "postgresql"
            else None
        )
        self.database_url = f"sqlite:///{self.dir}/whimbrel.db"
        passwords = {f"h{number}": secrets.token_urlsafe(12) for number in range(1, hosts + 1)}
        self.broker = Broker(
            self.dir / "broker", "127.0.0.1", free_port(), user="bench", password=self._password, hosts=passwords
        )
        self.clouds_yaml = self.dir / "clouds.yaml"
        self._order_key = self.dir / "order.key"
        self.pids: dict[str, int] = {}

    def __enter__(self) -> FakeCloud:
        try:
            self._start()
        except BaseException as error:
            for name, process in self._processes.items():
                if process.poll() is not None:  # the directory with its log is about to go
                    last = (self.dir / f"{name}.log").read_text(errors="replace")[-2000:]
                    error.add_note(f"{name} ended with {process.returncode}:\n{last}")
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(30)  # a crowded machine takes its time
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.broker.stop()
        if self.database is not None:
            self.database.stop()
        for log in self._logs:
            log.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start a process that was killed, as it was."""
        role = name.rstrip("0123456789")
        log = (self.dir / f"{name}.log").open("ab")
        self._logs.append(log)
        command = [sys.executable, "-m", "whimbrel", role, "--config", str(self._configs[name])]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        self._processes[name] = process
        self.pids[name] = process.pid

    def kill(self, name: str) -> None:
        """Kill a process at once, by its pid."""
        self._processes[name].kill()
        self._processes[name].wait(10)

    def _start(self) -> None:
        url = next(iter(self.urls.values()))
        if self.database is not None:
            self.database.start()
            self.database_url = self.database.create("whimbrel")
        self.broker.start(deadline=60)
        for name in self.control_roles:
            self._configs[name] = self._settings(name, self.urls.get(name, url), url)
        controller = next(iter(self._configs.values()))
        self._run("db", "upgrade", "--config", str(controller))
        network = {"name": "private", "cidr": "10.98.0.0/22", "mtu": 1500}
        users = [
            {"name": name, "password": self._password, "project": project, "roles": roles}
            for name, (project, roles) in PERSONAS.items()
        ]
        bootstrap = {"projects": ["admin", "demo", "other"], "users": users, "network": network}
        (self.dir / "bootstrap.json").write_text(json.dumps(bootstrap))
        self._run("bootstrap", "--config", str(controller), "--file", str(self.dir / "bootstrap.json"))
        clouds = {name: self._cloud(url, name, project) for name, (project, _) in PERSONAS.items()}
        self.clouds_yaml.write_text(yaml.safe_dump({"clouds": clouds}))
        for number in range(1, self._hosts + 1):
            self._configs[f"agent{number}"] = self._agent(number)
        for name in self._configs:
            self.start(name)
        self._seed(url)

    def _cloud(self, url: str, user: str, project: str) -> dict[str, object]:
        auth = {
            "auth_url": f"{url}/identity/v3",
            "username": user,
            "password": self._password,
            "project_name": project,
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        }
        return {"auth": auth, "region_name": "RegionOne", "identity_api_version": 3}

    def _settings(self, name: str, url: str, image_url: str) -> Path:
        text = f"""
[broker]
url = "{self.broker.url}"
[database]
url = "{self.database_url}"
[api]
port = {url.rpartition(":")[2]}
public_url = "{url}"
image_dir = "{self.dir}/images"
[identity]
key_file = "{self.dir}/keys"
[orders]
key_file = "{self._order_key}"
[conductor]
image_url = "{image_url}/image"
census = 4.0
{self._conductor}
"""
        path = self.dir / f"{name}.toml"
        path.write_text(text)
        return path

    def _agent(self, number: int) -> Path:
        home = self.dir / f"h{number}"
        home.mkdir()
        text = f"""
[broker]
url = "{self.broker.url_of(f"h{number}")}"
[agent]
host = "h{number}"
controller_keys = ["{Signer.load(self._order_key).public_key}"]
address = "127.0.0.1"
hypervisor = "fake"
instances_dir = "{home}/instances"
state_dir = "{self.dir}/state/h{number}"
run_dir = "{home}/run"
vcpus = 100
ram_mb = 100000
disk_gb = 1000
heartbeat_interval = 2
"""
        path = home / "agent.toml"
        path.write_text(text)
        return path

    def _run(self, *command: str) -> None:
        subprocess.run([sys.executable, "-m", "whimbrel", *command], check=True, timeout=60)

    def _seed(self, url: str) -> None:
        with Seeder(url, self.clouds_yaml) as seeder:
            seeder.wait_for_api()
            seeder.upload_image(guest.image())
            seeder.make_flavors()
            seeder.wait_for_agents([f"h{number}" for number in range(1, self._hosts + 1)])
