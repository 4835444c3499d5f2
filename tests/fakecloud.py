"""A cloud without hypervisors on loopback: RabbitMQ, a controller and one process per agent."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

import yaml

from whimbrel.bus.signing import Signer
from whimbrel.lab import guest
from whimbrel.lab.broker import Broker
from whimbrel.lab.seed import Seeder

PERSONAS = {
    "admin": ("admin", ["admin"]),
    "demo": ("demo", ["member"]),
    "manager": ("demo", ["manager", "member"]),
    "reader": ("demo", ["reader"]),
    "other": ("other", ["member"]),
}
"""User to project and roles."""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FakeCloud:
    """Started as a context; `clouds_yaml` is how it is used, `pids` what it runs as."""

    def __init__(self, hosts: int = 2) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="whimbrel-bench-"))
        self._port = free_port()
        self._password = secrets.token_urlsafe(12)
        self._hosts = hosts
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
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
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(10)
        self.broker.stop()
        for log in self._logs:
            log.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _start(self) -> None:
        url = f"http://127.0.0.1:{self._port}"
        controller = self._settings(url)
        self.broker.start(deadline=60)
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
        self._spawn("controller", controller)
        for number in range(1, self._hosts + 1):
            self._spawn("agent", self._agent(number), name=f"agent{number}")
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

    def _settings(self, url: str) -> Path:
        text = f"""
[broker]
url = "{self.broker.url}"
[database]
url = "sqlite:///{self.dir}/whimbrel.db"
[api]
port = {self._port}
public_url = "{url}"
image_dir = "{self.dir}/images"
[identity]
key_file = "{self.dir}/keys"
[orders]
key_file = "{self._order_key}"
[conductor]
image_url = "{url}/image"
"""
        path = self.dir / "controller.toml"
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

    def _spawn(self, role: str, config: Path, name: str | None = None) -> None:
        log = (self.dir / f"{name or role}.log").open("wb")
        self._logs.append(log)
        process = subprocess.Popen(
            [sys.executable, "-m", "whimbrel", role, "--config", str(config)], stdout=log, stderr=log, env=os.environ
        )
        self._processes.append(process)
        self.pids[name or role] = process.pid

    def _seed(self, url: str) -> None:
        with Seeder(url, self.clouds_yaml) as seeder:
            seeder.wait_for_api()
            seeder.upload_image(guest.image())
            seeder.make_flavors()
            seeder.wait_for_agents([f"h{number}" for number in range(1, self._hosts + 1)])
