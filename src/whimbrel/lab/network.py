"""The wires of the lab: a switch in a network namespace of its own, a cable to each host and one to this machine.

Two networks run over it. `hosts` is where hosts and the control plane talk: 10.77.K.0/24 with this machine at .1.
`guests` carries the servers' frames: each host has a bridge `br-guests` with a cable to the switch's guest bridge, so
that servers on different hosts are neighbours; the switch itself answers there as the guests' gateway.
K is the first number that no interface of this machine uses, so that labs live side by side.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from whimbrel.domain.errors import Unavailable

GUEST_CIDR = "10.99.0.0/24"
GUEST_GATEWAY = "10.99.0.1/24"
GUEST_BRIDGE = "br-guests"
MTU = 1500
COMMAND_DEADLINE = 20.0


class Network:
    """The wires of one lab, named after it; `subnet` is the K of its addresses."""

    def __init__(self, name: str, subnet: int) -> None:
        self.name = name
        self.subnet = subnet
        self.switch = f"{name}-sw"
        self.uplink = f"wl-{subnet}"

    @property
    def address(self) -> str:
        """The address of this machine, where the control plane and the broker listen."""
        return f"10.77.{self.subnet}.1"

    def host_address(self, number: int) -> str:
        """Return the address of host `number` (1, 2, ...)."""
        return f"10.77.{self.subnet}.{10 + number}"

    def namespace(self, host: str) -> str:
        """Return the name of the host's network namespace."""
        return f"{self.name}-{host}"

    def connect_machine(self) -> None:
        """Make the switch and plug this machine in (its end of the cable was made by `reserve_subnet`)."""
        _ip(f"netns add {self.switch}")
        _ip(
            "link set lo up",
            "link add br-hosts type bridge",
            f"link add {GUEST_BRIDGE} type bridge",
            f"addr add {GUEST_GATEWAY} dev {GUEST_BRIDGE}",
            "link set br-hosts up",
            f"link set {GUEST_BRIDGE} up",
            inside=self.switch,
        )
        _keep_frames_from_iptables(self.switch)
        _ip(
            f"link set {self.uplink}p netns {self.switch}",
            f"addr add {self.address}/24 dev {self.uplink}",
            f"link set {self.uplink} up",
        )
        _ip(f"link set {self.uplink}p master br-hosts up", inside=self.switch)

    def connect_host(self, host: str, number: int) -> None:
        """Make the host's namespace with its bridge, and plug its two cables in."""
        namespace = self.namespace(host)
        _ip(f"netns add {namespace}")
        _ip(
            f"link add {host} type veth peer name eth0 netns {namespace}",
            f"link add {host}g type veth peer name eth1 netns {namespace}",
            f"link set {host} master br-hosts up",
            f"link set {host}g master {GUEST_BRIDGE} up",
            inside=self.switch,
        )
        _ip(
            "link set lo up",
            f"addr add {self.host_address(number)}/24 dev eth0",
            "link set eth0 up",
            f"link add {GUEST_BRIDGE} type bridge",
            f"link set eth1 master {GUEST_BRIDGE} up",
            f"link set {GUEST_BRIDGE} up",
            inside=namespace,
        )
        _keep_frames_from_iptables(namespace)

    def set_link(self, host: str, *, up: bool) -> None:
        """Plug both cables of the host in or pull them out, at the switch's end."""
        state = "up" if up else "down"
        _ip(f"link set {host} {state}", f"link set {host}g {state}", inside=self.switch)

    def limit(self, host: str, rate: str | None) -> None:
        """Limit the host's link in both directions to `rate` in tc's words ("200mbit"), or lift the limit."""
        for namespace, device in ((self.switch, host), (self.namespace(host), "eth0")):
            tc = ["tc", "-n", namespace, "qdisc"]
            if rate is None:
                # "Nothing to delete" is what we want to hear.
                subprocess.run([*tc, "del", "dev", device, "root"], stderr=subprocess.DEVNULL, check=False)
            else:
                shape = ["root", "tbf", "rate", rate, "burst", "512kb", "latency", "100ms"]
                _run([*tc, "replace", "dev", device, *shape])

    def namespaces(self) -> list[str]:
        """Return the names of the network namespaces of this lab that exist."""
        listed = json.loads(_run(["ip", "-json", "netns", "list"]) or "[]")
        return [one["name"] for one in listed if one["name"].startswith(f"{self.name}-")]

    def pids(self, namespace: str) -> list[int]:
        """Return the processes that are in the namespace."""
        return [int(pid) for pid in _run(["ip", "netns", "pids", namespace]).split()]

    def remove(self) -> None:
        """Remove the cables and namespaces; the cables of a namespace go with it, some time after it."""
        if self._has_uplink():
            try:
                _ip(f"link del {self.uplink}")
            except Unavailable:
                if self._has_uplink():  # else it went meanwhile, with a namespace that was removed before
                    raise
        for namespace in self.namespaces():
            _ip(f"netns del {namespace}")

    def _has_uplink(self) -> bool:
        return self.uplink in {link["ifname"] for link in _links()}


def reserve_subnet() -> int:
    """Take the first free subnet by making this machine's cable for it, which only one lab can."""
    taken = {
        address["local"].rpartition(".")[0]
        for link in _links()
        for address in link["addr_info"]
        if address["family"] == "inet"
    }
    for subnet in range(1, 255):
        name = f"wl-{subnet}"
        if f"10.77.{subnet}" in taken:
            continue
        done = subprocess.run(
            ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return subnet
        if "exists" not in done.stderr:
            raise Unavailable(f"This machine cannot make a network for the lab: {done.stderr.strip()}.")
    raise Unavailable("All of 10.77.1.0 to 10.77.254.0 are in use; end a lab with `whimbrel lab down`.")


def _links() -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(_run(["ip", "-json", "addr"]))
    return links


def _keep_frames_from_iptables(namespace: str) -> None:
    """Bridged frames are not this machine's business, whatever its firewall says."""
    script = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ -w $f ] && echo 0 >$f; done; :"
    _run(["ip", "netns", "exec", namespace, "sh", "-c", script])


def _ip(*lines: str, inside: str | None = None) -> None:
    where = ["-n", inside] if inside else []
    _run(["ip", *where, "-batch", "-"], text="\n".join(lines) + "\n")


def _run(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=COMMAND_DEADLINE, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise Unavailable(f"`{' '.join(command)}` failed: {said}")
    return done.stdout
