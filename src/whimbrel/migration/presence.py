"""What a host says of itself, unasked or asked, and the leave and the lease that it gets in return.

As with every message: it may come twice, late, out of order, or never.
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.domain.server import PowerState
from whimbrel.migration import bounds


@dataclass(frozen=True)
class GuestReport:
    """One line of a heartbeat: a server's state on this host, as of the newest order that the host has seen.

    `interrupted`: it ran by this host's right, and not by its user's wish it does not run, but because of what has
    happened to the host since.
    """

    server: str
    power_state: str
    epoch: int
    number: int
    interrupted: bool = False
    granted: int = 0
    """The epoch at which this host was last allowed to run it; 0 if it never was, or is sealed."""

    def __post_init__(self) -> None:
        bounds.label("server", self.server)
        bounds.one_of("power_state", self.power_state, tuple(PowerState))
        bounds.number("epoch, number or granted", self.epoch, self.number, self.granted)


@dataclass(frozen=True)
class Channel:
    """How a host is reached and known by others, and the public key with which it reaches them; as in .pub files."""

    port: int
    host_key: str
    key: str

    def __post_init__(self) -> None:
        bounds.number("port", self.port, least=1, most=65535)
        bounds.text("host_key or key", self.host_key, self.key)


@dataclass(frozen=True)
class Heartbeat:
    """Agent to conductor, every few seconds: I am here, this is my boot, my ledger, my room and my guests."""

    host: str
    address: str
    boot: str
    ledger: str
    protocols: dict[str, int]
    vcpus: int
    ram_mb: int
    disk_gb: int
    reserved_vcpus: int
    reserved_ram_mb: int
    reserved_disk_gb: int
    cpu_ratio: float
    ram_ratio: float
    disk_ratio: float
    architecture: str
    hypervisor: str
    hypervisor_version: int
    root_disk: str
    free_disk_gb: int
    uptime: str
    guests: tuple[GuestReport, ...] = ()
    admission: str = ""
    """Names the time since this agent last asked to be admitted."""
    admitted: bool = True
    """Whether it was: before that it takes no order."""
    lease_asked: float | None = None
    """CLOCK_BOOTTIME of the host when this was composed, if it asks for a lease or its renewal; seconds."""
    lease_kept: bool = False
    """Whether the host's keeper says that it keeps a lease now; without that no lease that runs out proves anything."""
    composed: float = 0.0
    """CLOCK_BOOTTIME of the host when this was composed; seconds. One that comes after a later one is ignored."""
    channel: Channel | None = None
    """None while the host is not enrolled: then no disk leaves or reaches it."""
    uefi: bool = False
    """Whether guests can boot by UEFI here."""
    tpm: bool = False
    """Whether guests can have a TPM here."""

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.text("address", self.address)
        bounds.text("boot, ledger or admission", self.boot, self.ledger, self.admission, most=64)
        bounds.text("architecture or hypervisor", self.architecture, self.hypervisor, most=32)
        bounds.text("root_disk", self.root_disk, most=16)
        bounds.text("uptime", self.uptime)
        bounds.number("vcpus, ram_mb or disk_gb", self.vcpus, self.ram_mb, self.disk_gb, self.free_disk_gb)
        bounds.number("what is reserved", self.reserved_vcpus, self.reserved_ram_mb, self.reserved_disk_gb)
        bounds.number("hypervisor_version or protocols", self.hypervisor_version, *self.protocols.values())
        bounds.measure("ratio", self.cpu_ratio, self.ram_ratio, self.disk_ratio, most=bounds.MOST_RATIO)
        bounds.measure("lease_asked or composed", self.lease_asked or 0.0, self.composed)


@dataclass(frozen=True)
class Lease:
    """Conductor to agent: the host may run guests until `seconds` after `asked`, which is its own CLOCK_BOOTTIME.

    That clock begins anew at each boot, so a Lease holds only for the admission whose heartbeat asked for it.
    """

    host: str
    admission: str
    asked: float
    seconds: float

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.text("admission", self.admission, most=64)
        bounds.measure("asked or seconds", self.asked, self.seconds)


@dataclass(frozen=True)
class Welcome:
    """Conductor to an agent that has started, or has lost its lease: the epoch and order number of each server now.

    Nothing up to there is obeyed any more: an order that waited for the host may be from before another was given the
    server, and one that still counts is sent again. `admission` is that of the heartbeat that asked, so an old Welcome
    admits nobody. A host that asked for a lease is admitted together with one.
    """

    host: str
    admission: str
    servers: dict[str, tuple[int, int]]
    lease: Lease | None = None

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.text("admission", self.admission, most=64)
        bounds.number("epoch or number", *(each for pair in self.servers.values() for each in pair))


@dataclass(frozen=True)
class Inspect:
    """Controller to agent (call): what is on your host? Carries no authority and changes nothing."""


@dataclass(frozen=True)
class SeenDirectory:
    """One directory of a server. `state` is live, incoming or sealed.

    `attempt` is that of its name, or, of a live one, the one that its manifest says made it; None when no manifest
    says so. `bytes` are those that its removal would free.
    """

    state: str
    attempt: str | None
    bytes: int

    def __post_init__(self) -> None:
        bounds.one_of("state", self.state, ("live", "incoming", "sealed"))
        bounds.label("attempt", *([] if self.attempt is None else [self.attempt]))
        bounds.number("bytes", self.bytes, most=bounds.MOST_BYTES)


@dataclass(frozen=True)
class SeenServer:
    """What a host has of one server, and what its ledger says of it (numbers are 0 when it says nothing).

    `power` is None when the hypervisor does not know the guest, and UNKNOWN when a process holds its disks that the
    hypervisor does not know to run. `granted`: this boot of this host may run it.
    """

    server: str
    power: PowerState | None
    directories: tuple[SeenDirectory, ...]
    epoch: int = 0
    number: int = 0
    grant_epoch: int | None = None
    granted: bool = False

    def __post_init__(self) -> None:
        bounds.label("server", self.server)
        bounds.number("epoch or number", self.epoch, self.number, self.grant_epoch or 0)


@dataclass(frozen=True)
class Inspection:
    """An agent's answer to Inspect: everything of servers on its host, by looking at the host itself.

    `fault` says why the hypervisor could not be asked (then no guest's power is known), or that there was more than
    one answer holds; empty when everything was looked at. `leftovers` are files that a crash left half made or half
    removed, `strange` names that are none of ours, `children` processes of steps, each as "pid N: purpose".
    """

    host: str
    instances_dir: str
    fault: str
    servers: tuple[SeenServer, ...]
    leftovers: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    children: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.text("instances_dir", self.instances_dir, most=4096)
        bounds.text("fault", self.fault, most=bounds.LONGEST_TEXT)
        bounds.text("a name", *self.leftovers, *self.strange, *self.children, most=4096)
