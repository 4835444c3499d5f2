"""One host of the lab: namespaces with an init, an SSH daemon, a libvirt daemon and files of its own.

What survives a crash lies in the host's directory (`etc-libvirt`, `var-lib-libvirt`, `instances`, `agent`, keys and
identity); what a power cut takes away is `run`, made anew at each boot. Hosts see each other over the network only,
though one disk of one machine carries all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from whimbrel.domain.errors import NotFound, Unavailable
from whimbrel.identity.authority import SshAuthority
from whimbrel.identity.enrolment import SSHD_CONFIG, Enrolment, enroll
from whimbrel.lab import configs, hostinit
from whimbrel.lab.network import Network
from whimbrel.lab.processes import ENVIRONMENT, Processes, children, enter, kill, members, wait_until
from whimbrel.lab.state import write_private
from whimbrel.ops import ids

BOOT_DEADLINE = 15.0
LIBVIRT_DEADLINE = 30.0

LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

# The control groups of one machine would be shared by all its hosts, and QEMU's own mount namespace cannot be made
# over a hidden /dev/kvm; hosts are apart without either.
QEMU_CONF = """\
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "{address}"
migration_host = "{address}"
"""


class Host:
    """One host; the object holds no state of its own and may be made anew anywhere."""

    def __init__(self, lab_dir: Path, name: str, network: Network, *, has_agent: bool) -> None:
        self.name = name
        self.has_agent = has_agent
        self.number = int(name[1:])
        self.lab_dir = lab_dir
        self.dir = lab_dir / "hosts" / name
        self.network = network
        self.address = network.host_address(self.number)
        self.processes = Processes(lab_dir / "run")

    @property
    def pid(self) -> int | None:
        """The pid of the host's init, or None if the host is down."""
        wrapper = self.processes.find(self._record)
        return next(iter(children(wrapper)), None) if wrapper else None

    @property
    def _record(self) -> str:
        return f"init@{self.name}"

    def prepare(self, addresses: dict[str, str]) -> None:
        """Write what the host keeps for life: directories, identity and configuration."""
        for name in ("instances", "agent", "etc-libvirt/qemu", *_VAR):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        uuid = ids.new_uuid()
        (self.dir / "machine-id").write_text(uuid.replace("-", "") + "\n")
        (self.dir / "hostname").write_text(self.name + "\n")
        names = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.dir / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.dir / "empty").touch()
        (self.dir / "var-lib-libvirt" / "instances").mkdir(exist_ok=True)
        (self.dir / "etc-libvirt" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=uuid))
        (self.dir / "etc-libvirt" / "qemu.conf").write_text(QEMU_CONF.format(address=self.address))
        self._enroll()

    def _enroll(self) -> None:
        receiver = [sys.executable, "-I", "-m", "whimbrel.agent.disks.receive", "--config", f"{self.dir}/agent.toml"]
        authorities = [SshAuthority.load(configs.channel_authority(self.lab_dir)).public_key]
        place = Path(configs.CHANNEL_DIR)
        made = Enrolment(self.name, self.address, configs.CHANNEL_PORT, authorities, receiver, place)
        enroll(self.dir / "var-lib-libvirt" / place.name, made)

    def boot(self) -> None:
        """Boot the host as its owner would: daemons, then the agent if the lab has agents; wait for libvirt."""
        self.power_on()
        self.wait_ready()
        if self.has_agent:
            self.start("agent")

    def power_on(self) -> None:
        """Start the host with an empty /run, then its SSH and libvirt daemons; a host that is up is left alone."""
        if self.pid is not None:
            return
        run = self.dir / "run"
        shutil.rmtree(run, ignore_errors=True)
        for name in ("sshd", "lock", "libvirt", "whimbrel"):
            (run / name).mkdir(parents=True)
        plan = self.dir / "init.json"
        write_private(plan, json.dumps(self._plan()))
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        init = [sys.executable, "-I", "-S", hostinit.__file__, str(plan)]
        command = ["nsenter", f"--net=/run/netns/{self.network.namespace(self.name)}", "unshare", *namespaces]
        log = self.lab_dir / "logs" / f"init@{self.name}.log"
        self.processes.start(self._record, [*command, *init], log=log)
        if not wait_until((run / "ready").exists, BOOT_DEADLINE):
            raise Unavailable(f"Host {self.name} did not boot within {BOOT_DEADLINE:g} s; see {log}.")
        self.start("sshd")
        self.start("libvirtd")

    def wait_ready(self) -> None:
        """Wait until libvirt answers; raise Unavailable after 30 s."""
        address = self.dir / "run" / "libvirt" / "libvirt-sock"
        if not wait_until(lambda: _listens(address), LIBVIRT_DEADLINE):
            log = self.lab_dir / "logs" / f"libvirtd@{self.name}.log"
            raise Unavailable(f"libvirtd on {self.name} did not answer within {LIBVIRT_DEADLINE:g} s; see {log}.")

    def crash(self) -> None:
        """Cut the host's power: init is killed, and the kernel kills all else on the host with it."""
        pid = self.pid
        if pid is not None:
            kill(pid)
        # The wrapper outside goes when it has seen its child go.
        wait_until(lambda: self.processes.find(self._record) is None, BOOT_DEADLINE)

    def exec(
        self, command: Sequence[str | Path], *, check: bool = True, timeout: float = 60, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and return what it said; `check` raises if it fails."""
        return subprocess.run(
            [*enter(self.up()), "env", "--chdir=/", *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
            input=input,
            env=ENVIRONMENT,
        )

    def start(self, role: str) -> int:
        """Start one of the host's daemons unless it runs; return its pid."""
        commands = {
            "sshd": ["/usr/sbin/sshd", "-D", "-e", "-f", f"{configs.CHANNEL_DIR}/{SSHD_CONFIG}"],
            "libvirtd": ["/usr/sbin/libvirtd"],
            "agent": [sys.executable, "-m", "whimbrel", "agent", "--config", f"{self.dir}/agent.toml"],
            "keeper": [sys.executable, "-m", "whimbrel", "keeper", "--config", f"{self.dir}/agent.toml"],
        }
        init = self.up()
        running = self.find(role)
        if running is not None:
            return running
        log = self.lab_dir / "logs" / f"{role}@{self.name}.log"
        return self.processes.start(f"{role}@{self.name}", commands[role], log=log, inside=init)

    def find(self, role: str) -> int | None:
        """Return the pid of a daemon of the host, or None."""
        init = self.pid
        return self.processes.find(f"{role}@{self.name}", inside=init) if init else None

    def kill(self, role: str) -> bool:
        """Kill a daemon of the host at once; return whether it ran."""
        init = self.pid
        return self.processes.kill(f"{role}@{self.name}", inside=init) if init else False

    def kill_guests(self, server: str | None = None) -> int:
        """Kill the host's QEMU processes, or that of one server (its UUID); return how many."""
        killed = 0
        for pid, _ in members(self.pid or 0):
            words = _command_line(pid)
            if words and Path(words[0]).name.startswith("qemu-system") and (server is None or server in words):
                kill(pid)
                killed += 1
        return killed

    def limit_disk(self, mib: int | None) -> None:
        """Put an empty disk of so many MiB where servers' files lie, until the next boot; None takes it off again."""
        place = configs.INSTANCES_DIR
        if mib is None:
            self.exec(["umount", "--lazy", place])
        else:
            self.exec(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "small-disk", place])

    def console(self, server: str) -> str:
        """Return what the server has written on its serial console on this host, whole lines only."""
        # Through the host's own eyes while it is up: its disk may be a small one (`limit_disk`).
        seen = Path(f"/proc/{self.pid}/root{configs.INSTANCES_DIR}") if self.pid else self.dir / "instances"
        path = seen / server / "console.log"
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError as error:
            raise NotFound(f"Host {self.name} holds no console of server {server}.") from error
        return text[: text.rfind("\n") + 1]

    def up(self) -> int:
        """Return the pid of the host's init; raise Unavailable if the host is down."""
        pid = self.pid
        if pid is None:
            raise Unavailable(f"Host {self.name} is down; start it with `whimbrel lab boot {self.name}`.")
        return pid

    def _plan(self) -> dict[str, object]:
        binds = [("run", "/run"), ("etc-libvirt", "/etc/libvirt"), ("hosts", "/etc/hosts")]
        binds += [(name, f"/{name.replace('-', '/')}") for name in _VAR]
        binds += [("instances", configs.INSTANCES_DIR)]
        # Not every machine has these.
        binds += [(name, f"/etc/{name}") for name in ("machine-id", "hostname") if Path("/etc", name).exists()]
        return {
            "hostname": self.name,
            "binds": [(str(self.dir / name), place) for name, place in binds],
            "hide": [(str(self.dir / "empty"), "/dev/kvm")] if Path("/dev/kvm").exists() else [],
            "ready": "/run/ready",
        }


_VAR = ("var-lib-libvirt", "var-log-libvirt", "var-log-swtpm", "var-cache-libvirt")


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _listens(address: Path) -> bool:
    """Return whether somebody listens there; a daemon that was killed leaves its socket's name behind."""
    try:
        directory = os.open(address.parent, os.O_PATH)  # the whole path may be longer than a socket's name may be
    except FileNotFoundError:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(f"/proc/self/fd/{directory}/{address.name}") == 0
    finally:
        os.close(directory)
