"""The same bench with guests that need no hypervisor: everything else is real, and a shot takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cloud import Cloud
from tests.consoles import boots_of, read
from tests.fault.auditor import Auditor
from tests.fault.bench import Bench
from whimbrel.agent.directories import write_durably
from whimbrel.lab import Lab
from whimbrel.lab.hosts import Host


def records(host: Host) -> dict[str, Any]:
    """Return what the fake hypervisor of a host knows, by server."""
    try:
        found: dict[str, Any] = json.loads((host.dir / "instances/fake-guests.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def runs(host: Host, record: dict[str, Any]) -> bool:
    """Return whether a guest runs: in this boot of a host that is up."""
    marker = host.dir / "run/whimbrel/boot"
    return (
        host.pid is not None
        and record["state"] == "running"
        and marker.exists()
        and record["boot"] == marker.read_text().strip()
    )


class FakeCloud(Cloud):
    """A cloud whose guests are records in a file."""

    def runners(self, server: str) -> list[str]:
        """Return the hosts on which the guest runs."""
        found = {name: records(host).get(server) for name, host in self.lab.hosts.items()}
        return [name for name, record in found.items() if record and runs(self.lab.host(name), record)]


class FakeAuditor(Auditor):
    """The look from outside where there are no processes and no wires."""

    def ledger(self, host: Host) -> Path:
        """Return where the host's agent keeps its ledger."""
        return self.lab.dir / "state" / host.name / "ledger.db"

    def processes_of_guests(self, host: Host) -> set[str]:
        """Return the servers whose guests run on this host."""
        return {server for server, record in records(host).items() if runs(host, record)}

    def domains(self, host: Host) -> set[str]:
        """Return the servers that the fake hypervisor knows on this host."""
        return set(records(host))

    def taps(self, host: Host, running: set[str]) -> list[str]:
        """These guests have no wires."""
        return []


class FakeBench(Bench):
    """A lab whose agents drive the fake hypervisor."""

    fake = True

    def __init__(self, lab: Lab) -> None:
        for name, host in lab.hosts.items():
            lab.kill("agent", name)
            path = host.dir / "agent.toml"
            state = f"{lab.dir}/state/{name}"
            own = {"hypervisor": "fake", "instances_dir": f"{host.dir}/instances", "state_dir": state}
            kept = [line for line in path.read_text().splitlines() if line.partition(" = ")[0] not in own]
            path.write_text("\n".join([*kept, *(f"{key} = {json.dumps(value)}" for key, value in own.items()), ""]))
        super().__init__(lab)

    def _cloud(self) -> Cloud:
        return FakeCloud(self.lab)

    def _auditor(self) -> Auditor:
        return FakeAuditor(self.cloud)

    def kill_guest(self, server: str) -> bool:
        """Let the guest's process be gone; return whether there was one."""
        for name in self.cloud.runners(server):
            host = self.lab.host(name)
            found = records(host)
            found[server]["state"] = "stopped"
            write_durably(host.dir / "instances/fake-guests.json", json.dumps(found))
            return True
        return False

    def boot_of(self, server: str) -> tuple[object, ...] | None:
        """Return what identifies the boot in which the guest runs now."""
        for host in self.cloud.runners(server):
            console = self.cloud.instances(host) / server / "console.log"
            if (boots := boots_of(read(console))) and boots[-1].last:
                return host, console.stat().st_ino, len(boots)
        return None
