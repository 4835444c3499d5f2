"""Two hosts of which one sends its disks to the other, through a real sshd on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from whimbrel.agent.control import StepControl
from whimbrel.agent.directories import HostDirectories, write_manifest
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.disks.store import HostDisks
from whimbrel.agent.heartbeat import channel_of
from whimbrel.domain.migration import Verb
from whimbrel.domain.server import Disk, DiskRole, Guest
from whimbrel.identity.authority import RECEIVE, Leave, SshAuthority
from whimbrel.identity.enrolment import SSHD_CONFIG, Enrolment, enroll
from whimbrel.migration.messages import Facts, Order, Pass, Place, Work
from whimbrel.migration.protocols import COLD
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

UUID = "0c5a6d1e-7b1c-4f67-9a55-1f9d2a4b8c10"
ATTEMPT = "7-1"
MIB = 1 << 20
DISKS = (Disk(0, DiskRole.ROOT, "raw", 256), Disk(1, DiskRole.SWAP, "raw", 4))
GUEST = Guest(UUID, "witness", 1, 128, DISKS, ())


class NoChildren:
    """The ledger's part, which is not what is tested here."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def record_child(self, pid: int, start_time: int, purpose: str) -> None:
        self.pids.append(pid)

    def forget_child(self, pid: int) -> None:
        self.pids.remove(pid)


class Side:
    """What one host has."""

    def __init__(self, settings: Agent) -> None:
        root = Path(settings.instances_dir)
        root.mkdir(exist_ok=True)
        self.children = NoChildren()
        self.names = HostDirectories(root)
        self.channels = SshChannels(settings, self.children)
        self.disks = HostDisks(settings, self.channels)


class Pair:
    """Source and target, with a private sshd before the target."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.authority = SshAuthority.load(directory / "authority")
        self.settings = self.agent("h1")
        self.source, self.target = Side(self.settings), Side(self.agent("h2"))
        self.enroll("h1", "h2")
        (directory / "agent.toml").write_text(f'[agent]\nhost = "h2"\ninstances_dir = "{directory}/h2"\n')
        Path("/run/sshd").mkdir(exist_ok=True)
        config = directory / "h2-channel" / SSHD_CONFIG
        config.write_text(f"{config.read_text()}StrictModes no\n")  # pytest's directories lie below /tmp
        self.listen()

    def listen(self) -> None:
        """Start the sshd."""
        config = self.directory / "h2-channel" / SSHD_CONFIG
        self.sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
        eventually(lambda: can_connect(self.port))

    def agent(self, name: str) -> Agent:
        here = self.directory / name
        directories = {"instances_dir": str(here), "channel_dir": f"{here}-channel", "run_dir": f"{here}-run"}
        return Agent(name, "127.0.0.1", **directories, channel_port=self.port, max_copies=1)

    def enroll(self, *names: str) -> None:
        receiver = [
            sys.executable,
            "-I",
            "-m",
            "whimbrel.agent.disks.receive",
            "--config",
            f"{self.directory}/agent.toml",
        ]
        for name in names:
            place = self.directory / f"{name}-channel"
            enroll(place, Enrolment(name, "127.0.0.1", self.port, [self.authority.public_key], receiver, place))

    def pass_for(self, order: Order, **changes: Any) -> Pass:
        """What the conductor would give with the order; the way is from h1 to h2, where the one sshd is."""
        said = {name: channel_of(self.agent(name)) for name in ("h1", "h2")}
        base = order.step == "prepare" and order.work.image is not None
        command = f"{RECEIVE} base {order.work.image.sha256}" if base else f"{RECEIVE} {order.server} {order.attempt}"
        leave = replace(Leave(said["h1"].key, "127.0.0.1", "h2", command, "migration 7"), **changes)
        certificate, until = self.authority.sign(leave)
        return Pass(certificate, until, said["h2"].host_key, self.port)

    def close(self) -> None:
        self.sshd.kill()
        self.sshd.wait()

    def order(self, step: str, results: dict[str, Facts] | None = None, **changes: Any) -> Order:
        work = replace(Work(GUEST, GUEST, None, Place("h1", "127.0.0.1"), Place("h2", "127.0.0.1"), True, 5), **changes)
        order = Order("h1", UUID, 7, 0, ATTEMPT, "cold", COLD.version, step, Verb.DO, 2, 3, 60, work, results or {})
        return replace(order, channel=self.pass_for(order))

    def make_server(self, mebibytes: int = 32) -> None:
        """A stopped server on the source: data and holes in turns, with odd sizes."""
        live = self.source.names.live(UUID)
        live.mkdir()
        with (live / "disk-0").open("wb") as file:
            file.truncate(256 * MIB)
            for index in range(mebibytes):
                file.seek(index * 2 * MIB + 4096 * (index % 3))
                file.write(os.urandom(MIB))
        (live / "disk-1").write_bytes(b"swap")
        (live / "config.iso").write_bytes(os.urandom(70_001))
        write_manifest(live, {"server": UUID, "attempt": "1-1"})

    def open(self, control: StepControl | None = None) -> Facts:
        """Everything that comes before the guest is stopped, then the seal."""
        self.target.disks.prepare(self.order("prepare"), patience())
        facts = self.source.channels.open(self.order("open_channel"), control or patience())
        self.source.names.seal(UUID, ATTEMPT)
        return facts

    def push(self, opened: Facts, control: StepControl | None = None) -> Facts:
        return self.source.disks.push(self.order("copy_disks", {"open_channel": opened}), control or patience())

    def verify(self, pushed: Facts) -> Facts:
        return self.target.disks.verify(self.order("verify_disks", {"copy_disks": pushed}), patience())

    def received(self, name: str) -> Path:
        return self.target.names.incoming(UUID, ATTEMPT) / name


def patience(limit: float = 60, stall: float = 30) -> StepControl:
    return StepControl(limit, stall=stall)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def eventually(happens: Callable[[], object], seconds: float = 10) -> None:
    deadline = clock.monotonic() + seconds
    while not happens():
        assert clock.monotonic() < deadline, "it did not happen in time"
        Event().wait(0.02)
