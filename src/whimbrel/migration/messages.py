"""The messages on the bus. Each is plain data; what each may cause is decided by who receives it.

Every message may come twice, late, out of order, or never.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from whimbrel.domain.migration import Answer, Refusal, Verb
from whimbrel.domain.server import Disk, Guest, Image, Manner, PowerAction, PowerState
from whimbrel.migration import bounds
from whimbrel.migration.presence import Heartbeat, Inspect, Inspection, Lease, Welcome

Facts = dict[str, Any]
"""What a step found or did, JSON-shaped; written to the journal and carried to the later steps."""


@dataclass(frozen=True)
class Place:
    """One of the two hosts: its name and the address that the other one reaches it at."""

    host: str
    address: str


LEAST_RATE = 128 << 10
"""Bytes per second: a slower copy could not be told from one that stands still."""


@dataclass(frozen=True)
class Steering:
    """How fast the copy of a migration may be (bytes per second, None without a limit), and whether to hurry it on:
    to stop or hold the guest as soon as that helps, instead of waiting until little is left."""

    rate: int | None = None
    hurry: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None:
            bounds.number("rate", self.rate, least=LEAST_RATE, most=bounds.MOST_BYTES)


@dataclass(frozen=True)
class Work:
    """What a migration is about: the server as it was, as it shall be, and where.

    `old` is the server at the source, `guest` the server at the target (they differ in a resize).
    `grace` is how many seconds the guest has to shut itself down. `manner` is None where the source's settings decide.
    """

    guest: Guest
    old: Guest
    image: Image | None
    source: Place | None
    target: Place | None
    was_running: bool
    grace: int
    action: PowerAction | None = None
    manner: Manner | None = None
    steering: Steering = Steering()


@dataclass(frozen=True)
class Pass:
    """Lets the host of an order reach the other one: a certificate, good `until` (seconds since the epoch) for a new
    session, and how the other is reached and known."""

    certificate: str
    until: float
    host_key: str
    port: int

    def __post_init__(self) -> None:
        bounds.text("certificate or host_key", self.certificate, self.host_key, most=4096)
        bounds.measure("until", self.until, most=bounds.MOST_BYTES)
        bounds.number("port", self.port, most=65535)


WITH_MEMORY = ("live", "suspended")
"""The protocols in which a guest's memory moves with it."""


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
    channel: Pass | None = None
    """With which the order's host reaches the other, if the order opens a channel."""

    @property
    def from_image(self) -> bool:
        """Whether the disks are made anew from the image, because there is no copy to take over."""
        return self.protocol in ("build", "evacuate")

    @property
    def moves_memory(self) -> bool:
        """Whether the guest's memory moves with it, so that it does not boot anew."""
        return self.protocol in WITH_MEMORY

    @property
    def holds_first(self) -> bool:
        """Whether the guest is held before its memory moves, whatever its host's settings say."""
        return self.protocol == "suspended"

    @property
    def carried_definition(self) -> str | None:
        """The definition that came from the source: of the guest that was stopped, or of the one that runs."""
        told = self.results.get("stop_guest") or self.results.get("describe_guest") or {}
        return told.get("definition")

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.label("server, attempt or step", self.server, self.attempt, self.step)
        bounds.number("migration, segment, epoch or number", self.migration, self.segment, self.epoch, self.number)
        bounds.measure("limit", self.limit)


@dataclass(frozen=True)
class Ask:
    """Conductor to agent: what became of this order? Carries no authority; answered by a StepReport.

    What it says of the pass and of the steering is newer than what the order said.
    """

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


class Phase(enum.StrEnum):
    """What a step is about while it moves bytes."""

    DISKS = "disks"
    MEMORY = "memory"
    IMAGE = "base image"
    TURN = "waiting for a copy slot"


@dataclass(frozen=True)
class Outlook:
    """Of the copy of a guest that runs: the round, how fast the guest writes (bytes per second), and for how many
    seconds it would be off (held, in a live move) for the rest if that were sent now; None until that is known."""

    round: int = 1
    dirty_rate: float | None = None
    downtime: float | None = None

    def __post_init__(self) -> None:
        bounds.number("round", self.round)
        bounds.measure("dirty_rate or downtime", self.dirty_rate or 0.0, self.downtime or 0.0, most=bounds.MOST_BYTES)


@dataclass(frozen=True)
class Progress:
    """Agent to whoever looks, once a second, on a topic; may be lost. Bytes, bytes per second, seconds.

    The same for every kind of move; `phase` says what crosses.
    """

    host: str
    server: str
    migration: int
    attempt: str
    step: str
    done: int
    total: int
    rate: float
    eta: float | None
    phase: Phase = Phase.DISKS
    outlook: Outlook | None = None

    def __post_init__(self) -> None:
        bounds.host("host", self.host)
        bounds.label("server, attempt or step", self.server, self.attempt, self.step)
        bounds.number("migration", self.migration)
        bounds.number("done or total", self.done, self.total, most=bounds.MOST_BYTES)
        bounds.measure("rate", self.rate, most=bounds.MOST_BYTES)
        bounds.measure("eta", self.eta or 0.0, least=-bounds.MOST_BYTES, most=bounds.MOST_BYTES)


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
    uefi: bool = False
    """Whether it needs a host that has UEFI firmware."""
    tpm: bool = False
    """Whether it needs a host that can give it a TPM."""

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


class Way(enum.StrEnum):
    """How a server would be moved from its host as it is now."""

    LIVE = "live"
    SUSPENDED = "suspended"
    WARM = "warm"
    COLD = "cold"
    NONE = "none"
    """Not in the manner that was asked for."""


@dataclass(frozen=True)
class Foresee:
    """Api to agent (call): how would this server be moved, if it were moved now? Nothing is begun."""

    server: str
    protocol: str
    manner: Manner | None
    was_running: bool
    disks: tuple[Disk, ...]

    def __post_init__(self) -> None:
        bounds.label("server or protocol", self.server, self.protocol)
        bounds.number("disks", len(self.disks), most=64)

    @property
    def must_run(self) -> bool:
        """Whether it is moved with its guest running while its disks are copied, or not at all."""
        return self.moves_memory or (self.manner is Manner.WARM and self.was_running)

    @property
    def moves_memory(self) -> bool:
        """Whether the guest's memory moves with it."""
        return self.protocol in WITH_MEMORY

    @property
    def way(self) -> Way:
        """In which way it is moved when its disks can be copied while its guest runs."""
        return Way(self.protocol) if self.moves_memory else Way.WARM


@dataclass(frozen=True)
class Foresight:
    """The agent's answer to Foresee: the way, why it is not a better one, and the bytes that the disks occupy."""

    way: Way
    reason: str
    allocated: int

    def __post_init__(self) -> None:
        bounds.text("reason", self.reason, most=bounds.LONGEST_TEXT)
        bounds.number("allocated", self.allocated, most=bounds.MOST_BYTES)


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


MESSAGES = (
    Order, Ask, StepReport, Heartbeat, Welcome, Lease, Progress, Changed, Wake, SelectTargets, Targets, ReadConsole,
    Console, Inspect, Inspection, Foresee, Foresight,
)  # fmt: skip
"""All that may cross the bus."""
