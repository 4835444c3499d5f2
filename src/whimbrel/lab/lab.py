"""A whole Whimbrel on one machine: hosts in namespaces, a private broker and, if wanted, the control plane on top.

`Lab.up` makes it, `Lab.open` finds one that another process made, `down` removes all of it, whatever state it is in:
what runs is asked of the kernel, never remembered.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from whimbrel.bus.signing import Signer
from whimbrel.domain.errors import Invalid, NotFound, Unavailable
from whimbrel.identity.authority import SshAuthority
from whimbrel.lab import certificates, configs, guest, state
from whimbrel.lab.broker import Broker
from whimbrel.lab.configs import Tables
from whimbrel.lab.hosts import Host
from whimbrel.lab.network import Network, reserve_subnet
from whimbrel.lab.processes import ENVIRONMENT, Processes, kill
from whimbrel.lab.seed import FLAVORS, IMAGE_NAME, Seeder
from whimbrel.lab.state import State
from whimbrel.ops import ids

HOSTS_MAX = 32
HOST_ROLES = ("agent", "libvirtd", "sshd")
TOOL_DEADLINE = 60.0
# These are hidden or replaced inside a host, so the lab's own files must not lie there.
HIDDEN = ("/run", "/proc", "/dev", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")


class Lab:
    """One lab; the object holds no state that the directory and the kernel do not have."""

    def __init__(self, dir: Path, facts: State) -> None:
        self.dir = dir
        self.facts = facts
        self.network = Network(facts.name, facts.subnet)
        self.hosts = {name: Host(dir, name, self.network, has_agent=facts.services) for name in facts.hosts}
        self.processes = Processes(dir / "run")
        self.broker = Broker(
            dir / "broker",
            self.network.address,
            facts.broker_port,
            user="whimbrel",
            password=facts.broker_password,
            hosts=facts.host_passwords,
            tls=certificates.tls_of(configs.tls_dir(dir), "broker"),
        )

    @classmethod
    def open(cls, dir: Path | str) -> Lab:
        """Return the lab that `dir` holds; raise NotFound if there is none."""
        dir = Path(dir).absolute()
        facts = state.load(dir)
        if facts is None:
            raise NotFound(f"There is no lab in {dir}; make one with `whimbrel lab up`, or name its --dir.")
        return cls(dir, facts)

    @classmethod
    def up(
        cls,
        dir: Path | str,
        *,
        hosts: int = 2,
        name: str | None = None,
        split: bool = False,
        services: bool = True,
        settings: Tables | None = None,
    ) -> Lab:
        """Make a lab in `dir` and wait until it works; one that is up already is returned as it is.

        `services=False` leaves the control plane and the agents out. `settings` overrides keys of the settings files
        by table ("agent", "conductor", ...). Raises Unavailable or Invalid; what was made by then is removed again.
        """
        dir = Path(dir).absolute()
        _check_request(dir, hosts, name)
        dir.mkdir(parents=True, exist_ok=True)
        with _locked(dir):
            facts = state.load(dir)
            if facts is not None:
                lab = cls(dir, facts)
                if facts.ready and any(host.pid for host in lab.hosts.values()):
                    return lab
                lab._remove()
            lab = cls(dir, _new_facts(dir, hosts, name, split, services))
            try:
                lab._build(settings or {})
            except BaseException:
                lab._remove()
                raise
        return lab

    def down(self) -> None:
        """End every process of the lab, remove its network and its files; only the logs stay."""
        with _locked(self.dir):
            self._remove()

    @property
    def api_url(self) -> str:
        """Where the API answers."""
        return configs.api_url(self.network.address)

    @property
    def clouds_yaml(self) -> Path:
        """The clients' configuration, with the passwords of the lab's users."""
        return self.dir / "clouds.yaml"

    @property
    def control_roles(self) -> tuple[str, ...]:
        """The names of the control plane's processes, in the order in which they are started."""
        if not self.facts.services:
            return ()
        return ("conductor", "scheduler", "api") if self.facts.split else ("controller",)

    def host(self, name: str) -> Host:
        """Return a host by its name; raise NotFound."""
        try:
            return self.hosts[name]
        except KeyError:
            raise NotFound(f"The lab has no host {name}; its hosts are {', '.join(self.hosts)}.") from None

    def start(self, role: str, host: str | None = None) -> int:
        """Start a role that was killed and return its pid; one that runs is left alone."""
        self._check_role(role, host)
        if host is not None:
            return self.host(host).start(role)
        if role == "rabbitmq":
            self.broker.start()
            return self.broker.pid or 0
        running = self.processes.find(role)
        if running is not None:
            return running
        command = [sys.executable, "-m", "whimbrel", role, "--config", f"{self.dir}/controller.toml"]
        return self.processes.start(role, command, log=self.dir / "logs" / f"{role}.log")

    def kill(self, role: str, host: str | None = None, *, server: str | None = None) -> bool:
        """Kill a role at once (`qemu`: a host's guests, or only `server`'s); return whether anything ran."""
        self._check_role(role, host, also=("qemu",))
        if host is not None:
            one = self.host(host)
            return bool(one.kill_guests(server)) if role == "qemu" else one.kill(role)
        if role == "rabbitmq":
            ran = self.broker.pid is not None
            self.broker.kill()
            return ran
        return self.processes.kill(role)

    def link(self, host: str, *, up: bool) -> None:
        """Plug the host's cables in or pull them out."""
        self.network.set_link(self.host(host).name, up=up)

    def limit(self, host: str, rate: str | None) -> None:
        """Limit the host's link in both directions, in tc's words ("200mbit"); None lifts the limit."""
        self.network.limit(self.host(host).name, rate)

    def console(self, host: str, server: str) -> str:
        """Return the serial console that a host keeps of a server, whole lines only."""
        return self.host(host).console(server)

    def on_switch(self, command: list[str], *, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command where the guests' gateway is, to talk to guests; the caller looks at the exit code."""
        return subprocess.run(
            ["ip", "netns", "exec", self.network.switch, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return what a client needs to use the lab, and which of its hosts are up."""
        services = self.facts.services
        return {
            "name": self.facts.name,
            "dir": str(self.dir),
            "api_url": self.api_url if services else None,
            "dashboard_url": None,
            "clouds_yaml": str(self.clouds_yaml) if services else None,
            "hosts": [{"name": h.name, "address": h.address, "pid": h.pid} for h in self.hosts.values()],
            "image": IMAGE_NAME if services else None,
            "flavors": list(FLAVORS) if services else [],
            "network": configs.NETWORK_NAME if services else None,
        }

    def running(self) -> dict[str, int | None]:
        """Return every process that should run, by `role` or `role@host`, with its pid or None."""
        found: dict[str, int | None] = {"rabbitmq": self.broker.pid}
        found |= {role: self.processes.find(role) for role in self.control_roles}
        roles = HOST_ROLES if self.facts.services else HOST_ROLES[1:]
        for host in self.hosts.values():
            found |= {f"{role}@{host.name}": host.find(role) for role in roles}
        return found

    def _build(self, settings: Tables) -> None:
        shutil.rmtree(self.dir / "logs", ignore_errors=True)
        (self.dir / "logs").mkdir()
        addresses = {host.name: host.address for host in self.hosts.values()}
        with ThreadPoolExecutor() as pool:
            # The slow ones first: the broker takes four seconds, the first build of the image three.
            certificates.make(configs.tls_dir(self.dir), self.network.address)
            broker = pool.submit(self.broker.start)
            image = pool.submit(guest.image) if self.facts.services else None
            self.network.connect_machine()
            Signer.load(configs.order_key(self.dir))
            SshAuthority.load(configs.channel_authority(self.dir))
            list(pool.map(lambda host: self._make_host(host, addresses, settings), self.hosts.values()))
            broker.result()
            if image is not None:
                self._start_services(image.result(), settings)
        self.facts.ready = True
        state.save(self.dir, self.facts)

    def _make_host(self, host: Host, addresses: dict[str, str], settings: Tables) -> None:
        self.network.connect_host(host.name, host.number)
        host.prepare(addresses)
        configs.write_agent(host.dir / "agent.toml", host.name, host.address, self.broker, settings)
        host.power_on()
        host.wait_ready()

    def _start_services(self, image: Path, settings: Tables) -> None:
        config = self.dir / "controller.toml"
        configs.write_controller(config, self.network.address, self.broker, settings)
        configs.write_users(self.dir, self.api_url)
        self._tool("db", "upgrade", "--config", str(config))
        self._tool("bootstrap", "--config", str(config), "--file", str(self.dir / "bootstrap.json"))
        for role in self.control_roles:
            self.start(role)
        for host in self.hosts:
            self.start("agent", host)
        with Seeder(self.api_url, self.clouds_yaml) as seeder:
            seeder.wait_for_api()
            seeder.upload_image(image)
            seeder.make_flavors()
            seeder.wait_for_agents(list(self.hosts))

    def _tool(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "whimbrel", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOOL_DEADLINE, env=ENVIRONMENT, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Unavailable(f"`whimbrel {' '.join(arguments)}` failed: {said}")

    def _remove(self) -> None:
        """Remove everything, as far as there is any of it."""
        for role in ("controller", "conductor", "scheduler", "api"):
            self.processes.kill(role)
        self.broker.kill()
        for host in self.hosts.values():
            host.crash()
        for namespace in self.network.namespaces():
            for pid in self.network.pids(namespace):
                kill(pid)
        self.network.remove()
        for entry in self.dir.iterdir():
            if entry.name in ("logs", "lock", state.FILE):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (self.dir / state.FILE).unlink(missing_ok=True)

    def _check_role(self, role: str, host: str | None, also: tuple[str, ...] = ()) -> None:
        on_hosts, central = (*HOST_ROLES, *also), ("rabbitmq", *self.control_roles)
        if role in on_hosts and host is None:
            raise Invalid(f"Say which host's {role} you mean: {role}@HOST.")
        if role in central and host is not None:
            raise Invalid(f"There is one {role}, and it runs on no host; leave @{host} out.")
        if role not in on_hosts and role not in central:
            raise Invalid(f"This lab has no role {role}; it has {', '.join((*central, *on_hosts))}.")


def _check_request(dir: Path, hosts: int, name: str | None) -> None:
    if os.geteuid() != 0:
        raise Invalid("A lab makes network namespaces and mounts, so it needs root: run it with sudo.")
    if not 1 <= hosts <= HOSTS_MAX:
        raise Invalid(f"A lab has 1 to {HOSTS_MAX} hosts.")
    if name is not None and not (name.isalnum() and name.isascii() and len(name) <= 16):
        raise Invalid("A lab's name is 1 to 16 letters and digits.")
    if any(dir.is_relative_to(hidden) for hidden in HIDDEN):
        raise Invalid(f"A lab cannot lie in {dir}, which its hosts do not see; choose another --dir.")


def _new_facts(dir: Path, hosts: int, name: str | None, split: bool, services: bool) -> State:
    """Reserve what only one lab can have, and write it down at once."""
    if name is not None and Network(name, 0).namespaces():
        raise Invalid(f"A lab named {name} is up on this machine; choose another --name.")
    subnet = reserve_subnet()
    names = [f"h{number}" for number in range(1, hosts + 1)]
    facts = State(
        name=name or f"lab{subnet}",
        subnet=subnet,
        hosts=names,
        broker_port=_free_ports(15000 + 12 * subnet),
        broker_password=ids.new_secret(18),
        host_passwords={name: ids.new_secret(18) for name in names},
        split=split,
        services=services,
    )
    state.save(dir, facts)
    return facts


def _free_ports(first: int) -> int:
    """Return the first of three ports that nobody listens on, out of the dozen that belong to the subnet."""
    for base in range(first, first + 12, 3):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + 3):
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise Unavailable(f"Ports {first} to {first + 11} are in use; end what listens there.")


@contextlib.contextmanager
def _locked(dir: Path) -> Iterator[None]:
    """One `up` or `down` of a lab at a time; the second one is told so."""
    with (dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"Another command is just making or removing the lab in {dir}; try again.") from None
        yield
