"""The lab that the proof breaks and mends: gated roles, disks that can be filled, and every kind of fault."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cloud import Cloud, wait_for
from tests.consoles import boots_of, has_records, read
from tests.fault.auditor import Auditor
from tests.fault.cells import PATIENCE
from tests.fault.gates import Gates
from whimbrel.lab import Lab
from whimbrel.lab.processes import ENVIRONMENT, members, start_time
from whimbrel.ops import clock

ROOT = Path(__file__).parents[2]
DISK_MIB = 700
"""Each host's disk is one of its own, in memory, so that it can be full without harm to this machine's."""
QUICK = {
    "agent": {"heartbeat_interval": 1, "stall_timeout": 5, "max_copies": 16},
    "conductor": {"ask_after": 1.0, "shutdown_grace": 8, "patience": PATIENCE, "service_down_after": 10},
}
HOSTS = ("h1", "h2")


class Bench:
    """A lab of two hosts with its control plane, each role in a process of its own that can be held at gates."""

    fake = False

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cloud = self._cloud()
        self.gates = Gates(lab.dir / "gates")
        self.auditor = self._auditor()
        self._first_seen: dict[tuple[object, ...], tuple[int, int]] = {}
        self._reset: set[tuple[object, ...]] = set()

    @classmethod
    @contextlib.contextmanager
    def up(cls, dir: Path) -> Iterator[Bench]:
        """Make the lab and take it down again."""
        disks = [dir / "hosts" / name / "instances" for name in HOSTS]
        for disk in disks:
            disk.mkdir(parents=True)
            _run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=711", "whimbrel-proof", str(disk))
        try:
            lab = Lab.up(dir, hosts=len(HOSTS), split=True, settings=QUICK)
            try:
                bench = cls(lab)
                bench.gate_all()
                yield bench
                bench.cloud.close()
            finally:
                for host in lab.hosts.values():
                    host.crash()
                for disk in disks:
                    _run("umount", str(disk))
                lab.down()
        finally:
            for disk in disks:
                subprocess.run(["umount", "--lazy", str(disk)], check=False, capture_output=True)

    def _cloud(self) -> Cloud:
        return Cloud(self.lab)

    def _auditor(self) -> Auditor:
        return Auditor(self.cloud)

    # --- roles that can be held -----------------------------------------------------------------------

    def gate_all(self) -> None:
        """Start the roles that can be held in place of the plain ones."""
        for role, host in (("conductor", None), *(("agent", name) for name in HOSTS)):
            self.lab.kill(role, host)
        since = clock.now()
        self.mend()
        wait_for("the agents", lambda: all(self.cloud.heard_at(name) > since + 1 for name in HOSTS))

    def start_gated(self, role: str, host: str | None = None) -> None:
        """Start a conductor or an agent that can be held; one that runs is left alone."""
        one = self.lab.host(host) if host else None
        name = f"{role}@{host}" if host else role
        inside = one.up() if one else None
        processes = one.processes if one else self.lab.processes
        if processes.find(name, inside=inside) is not None:
            return
        config = one.dir / "agent.toml" if one else self.lab.dir / "controller.toml"
        processes.start(
            name,
            [sys.executable, "-m", "tests.fault.gated", role, config, self.gates.dir],
            log=self.lab.dir / "logs" / f"{name}.log",
            inside=inside,
            environment={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        )

    # --- faults -------------------------------------------------------------------------------------

    def inject(self, fault: str, source: str, target: str, servers: list[str]) -> set[str]:
        """Do the harm; return the servers that it concerns: of a killed guest only its own."""
        lab, (where, _, what) = self.lab, fault.partition(" ")
        host = {"source": source, "target": target}.get(where)
        match what or where:
            case "agent" | "libvirtd" as daemon:
                lab.kill(daemon, host)
            case "power":
                lab.host(str(host)).crash()
            case "link":
                lab.link(target, up=False)
            case "full":
                self.fill(target)
            case "qemu":
                return {server for server in servers if self.kill_guest(server)}
            case role:
                lab.kill(role)
        return set(servers)

    def kill_guest(self, server: str) -> bool:
        """Kill the guest's process wherever it runs; return whether there was one."""
        return sum(self.lab.kill("qemu", host, server=server) for host in HOSTS) > 0

    def boot_of(self, server: str) -> tuple[object, ...] | None:
        """Return what identifies the boot of the guest's process that runs and writes now, None while there is none.

        What stands on the console when a process is first seen may be of an earlier one, so only what is added to it
        counts. A guest whose first words found no room on a full disk is reset: it reads its disk again and says so.
        """
        for host, process in self._guest_processes(server):
            console = read(self.cloud.instances(host) / server / "console.log")
            boots = boots_of(console)
            if not boots and has_records(console) and process not in self._reset:
                self._reset.add(process)
                self.lab.host(host).exec(["virsh", "reset", server])
            said = (len(boots), boots[-1].last if boots else 0)
            if self._first_seen.setdefault(process, said) != said and said[1]:
                return process
        return None

    def _guest_processes(self, server: str) -> list[tuple[str, tuple[object, ...]]]:
        """Return the host and the identity of every process that holds the server's disks."""
        found = []
        for name, host in self.lab.hosts.items():
            for pid, _ in members(host.pid or 0):
                words = _command_line(pid)
                if words and "qemu-system" in words[0] and server in words:
                    found.append((name, (name, pid, start_time(pid))))
        return found

    def fill(self, host: str) -> None:
        """Leave no byte on the disk of a host."""
        filler = self.lab.host(host).dir / "instances/_base/filler"
        filler.parent.mkdir(exist_ok=True)
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], check=False, capture_output=True)

    def mend(self) -> None:
        """Bring back whatever is away."""
        lab = self.lab
        for role in ("rabbitmq", "scheduler", "api"):
            lab.start(role)
        self.start_gated("conductor")
        for name, host in lab.hosts.items():
            (host.dir / "instances/_base/filler").unlink(missing_ok=True)
            lab.link(name, up=True)
            host.power_on()
            host.start("sshd")
            host.start("libvirtd")
            host.wait_ready()
            self.start_gated("agent", name)
        wait_for("the API", self.cloud.answers)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
