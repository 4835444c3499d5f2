"""The messages on the bus. Each is plain data; what each may cause is decided by who receives it.

Every message may come twice, late, out of order, or never.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from whimbrel.domain.migration import Answer, Refusal, Verb
from whimbrel.domain.server import Guest, Image, PowerAction, PowerState
from whimbrel.migration import bounds

Facts = dict[str, Any]
"""What a step found or did, JSON-shaped; written to the journal and carried to the later steps."""


@dataclass(frozen=True)
class Place:
    """One of the two hosts: its name and the address that the other one reaches it at."""

    host: str
    address: str


@dataclass(frozen=True)
class Work:
    """What a migration is about: the server as it was, as it shall be, and where.

    `old` is the server at the source, `guest` the server at the target (they differ in a resize).
    `grace` is how many seconds the guest has to shut itself down.
    """

    guest: Guest
    old: Guest
    image: Image | None
    source: Place | None
    target: Place | None
    was_running: bool
    grace: int
    action: PowerAction | None = None


@dataclass(frozen=True)
class Order:
    """Conductor to agent: do or undo one step. Authority is (epoch, number); the agent obeys nothing older."""

    host: str
    server: str
    migration: int
    segment: int
    attempt: str
    protocol: str
    version: int
    step: str
    verb: Verb
    epoch: int
    number: int
    limit: float
    work: Work
    results: dict[str, Facts] = field(default_factory=dict)
    request_id: str = ""

    @property
    def from_image(self) -> bool:
        """Whether the disks are made anew from the image, because there is no copy to take over."""
        return self.protocol in ("build", "evacuate")

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.label("server, attempt or step", self.server, self.attempt, self.step)
        bounds.number("migration, segment, epoch or number", self.migration, self.segment, self.epoch, self.number)
        bounds.measure("limit", self.limit)


@dataclass(frozen=True)
class Ask:
    """Conductor to agent: what became of this order? Carries no authority; answered by a StepReport."""

    order: Order


@dataclass(frozen=True)
class StepReport:
    """Agent to conductor: what became of an order. Believed only from the host that the journal names.

    `elapsed` is seconds of work so far, for RUNNING.
    """

    host: str
    server: str
    migration: int
    segment: int
    attempt: str
    step: str
    verb: Verb
    number: int
    answer: Answer
    facts: Facts = field(default_factory=dict)
    reason: str = ""
    elapsed: float = 0.0

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.label("server, attempt or step", self.server, self.attempt, self.step)
        bounds.number("migration, segment or number", self.migration, self.segment, self.number)
        bounds.text("reason", self.reason, most=bounds.LONGEST_TEXT)
        bounds.measure("elapsed", self.elapsed)
        bounds.nesting("facts", self.facts)
        if self.facts.get("power_state") is not None:
            bounds.one_of("power_state", str(self.facts["power_state"]), tuple(PowerState))
        for name in ("epoch", "number"):
            if self.answer is Answer.STALE:
                bounds.number(name, int(self.facts.get(name, 0)))


@dataclass(frozen=True)
class GuestReport:
    """One line of a heartbeat: a server's state on this host, as of the newest order that the host has seen.

    `interrupted`: it ran by this host's right, and not by its user's wish it does not run: the host has lost its
    power or its lease since, or was told to stand aside for an evacuation that did not come about.
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
    """CLOCK_BOOTTIME of the host when this was sent, if it asks for its lease to be renewed; seconds."""

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
        bounds.measure("lease_asked", self.lease_asked or 0.0)


@dataclass(frozen=True)
class Welcome:
    """Conductor to an agent that has started, or has lost its lease: the epoch and order number of each server now.

    Nothing up to there is obeyed any more: an order that waited for the host may be from before another was given the
    server, and one that still counts is sent again. `admission` is that of the heartbeat that asked, so an old Welcome
    admits nobody.
    """

    host: str
    admission: str
    servers: dict[str, tuple[int, int]]

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.text("admission", self.admission, most=64)
        bounds.number("epoch or number", *(each for pair in self.servers.values() for each in pair))


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
class Progress:
    """Agent to whoever looks, once a second, on a topic; may be lost. Bytes, bytes per second, seconds."""

    host: str
    server: str
    migration: int
    attempt: str
    step: str
    done: int
    total: int
    rate: float
    eta: float | None
    note: str = ""

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.label("server, attempt or step", self.server, self.attempt, self.step)
        bounds.number("migration", self.migration)
        bounds.number("done or total", self.done, self.total, most=bounds.MOST_BYTES)
        bounds.measure("rate", self.rate, most=bounds.MOST_BYTES)
        bounds.measure("eta", self.eta or 0.0, least=-bounds.MOST_BYTES, most=bounds.MOST_BYTES)
        bounds.text("note", self.note, most=bounds.LONGEST_TEXT)


@dataclass(frozen=True)
class Changed:
    """Conductor to whoever looks: this migration's journal has a new revision. May be lost."""

    migration: int
    server: str
    revision: int

    def __post_init__(self) -> None:
        bounds.number("migration or revision", self.migration, self.revision)


@dataclass(frozen=True)
class Wake:
    """Api to conductor: there is something to decide about this migration."""

    migration: int

    def __post_init__(self) -> None:
        bounds.number("migration", self.migration)


@dataclass(frozen=True)
class SelectTargets:
    """Conductor to scheduler (call): which hosts could take this server?"""

    vcpus: int
    ram_mb: int
    disk_gb: int
    architecture: str
    exclude: tuple[str, ...]
    """Hosts that were tried before in this migration."""
    source: str | None
    same_host_allowed: bool
    forced_host: str | None
    protocol: str
    version: int

    def __post_init__(self) -> None:
        bounds.number("vcpus, ram_mb or disk_gb", self.vcpus, self.ram_mb, self.disk_gb)


@dataclass(frozen=True)
class Targets:
    """Scheduler's answer: hosts, best first, each with its weight, and why each other was refused."""

    hosts: tuple[str, ...]
    weights: tuple[float, ...]
    refusals: tuple[Refusal, ...]

    def __post_init__(self) -> None:
        for name in self.hosts:
            bounds.host("hosts", name)
        if len(self.weights) != len(self.hosts):
            raise ValueError(f"there are {len(self.hosts)} hosts and {len(self.weights)} weights")


@dataclass(frozen=True)
class ReadConsole:
    """Api to agent (call): the last `lines` lines of a server's serial console (None: all that is kept)."""

    server: str
    lines: int | None

    def __post_init__(self) -> None:
        bounds.label("server", self.server)
        bounds.number("lines", self.lines or 0)


@dataclass(frozen=True)
class Console:
    """The agent's answer to ReadConsole."""

    text: str


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


MESSAGES = (
    Order, Ask, StepReport, Heartbeat, Welcome, Lease, Progress, Changed, Wake, SelectTargets, Targets, ReadConsole,
    Console, Inspect, Inspection,
)  # fmt: skip
"""All that may cross the bus."""
