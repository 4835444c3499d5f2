"""A cloud without hypervisors on loopback: RabbitMQ, a controller and one process per agent, for the control plane alone."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

import yaml

from whimbrel.lab.broker import Broker


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
        self.broker = Broker(self.dir / "broker", "127.0.0.1", free_port(), user="bench", password=self._password)
        self.clouds_yaml = self.dir / "clouds.yaml"
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
        users = [{"name": "admin", "password": self._password, "project": "admin", "roles": ["admin"]}]
        network = {"name": "private", "cidr": "10.98.0.0/22", "mtu": 1500}
        bootstrap = {"projects": ["admin"], "users": users, "network": network}
        (self.dir / "bootstrap.json").write_text(json.dumps(bootstrap))
        self._run("bootstrap", "--config", str(controller), "--file", str(self.dir / "bootstrap.json"))
        auth = {
            "auth_url": f"{url}/identity/v3",
            "username": "admin",
            "password": self._password,
            "project_name": "admin",
        }
        self.clouds_yaml.write_text(yaml.safe_dump({"clouds": {"admin": {"auth": auth}}}))
        self._spawn("controller", controller)
        for number in range(1, self._hosts + 1):
            self._spawn("agent", self._agent(number), name=f"agent{number}")
        self._seed()

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
url = "{self.broker.url}"
[agent]
host = "h{number}"
address = "127.0.0.1"
hypervisor = "fake"
instances_dir = "{home}/instances"
state_dir = "{home}/state"
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

    def _seed(self) -> None:
        from benchmarks.cloud import Cloud

        end = time.monotonic() + 60
        while True:
            try:
                cloud = Cloud(self.clouds_yaml)
                up = [s for s in cloud.get("/os-services")["services"] if s["state"] == "up"]
                if len([s for s in up if s["binary"] == "nova-compute"]) == self._hosts:
                    break
            except Exception as error:  # whatever it is: not up yet, and the deadline decides
                if time.monotonic() > end:
                    raise TimeoutError(f"the cloud did not come up: {error}") from error
            time.sleep(0.2)
        body = {"name": "tiny", "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        image = cloud.http.post("/image/v2/images", json=body).json()["id"]
        headers = {"Content-Type": "application/octet-stream"}
        cloud.http.put(f"/image/v2/images/{image}/file", content=bytes(1 << 20), headers=headers).raise_for_status()
