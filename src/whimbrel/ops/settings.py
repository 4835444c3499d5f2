"""One typed settings file for every role (TOML); an unknown or ill-typed key is an error that names it.

Durations are seconds, sizes MiB or GiB as the name says. Secrets stand in files that the settings name.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from whimbrel.ops.errors import SettingsError

Rate = Annotated[int, Meta(ge=128 << 10, le=1 << 50)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[int, Meta(ge=1, le=10**9)]
Moment = Annotated[float, Meta(gt=0, le=1e9)]
"""Seconds too, and parts of them."""
Amount = Annotated[int, Meta(ge=0, le=2_000_000_000)]
Ratio = Annotated[float, Meta(gt=0, le=1000)]
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")]
"""Becomes a queue's name, and stands in paths and commands."""


class Database(msgspec.Struct, forbid_unknown_fields=True):
    """Where the controller keeps its truth. `url` is SQLAlchemy's: `sqlite:////path` or `postgresql+psycopg://...`."""

    url: str


class Broker(msgspec.Struct, forbid_unknown_fields=True):
    """RabbitMQ, as an AMQP URL. The heartbeat is how long a silent broker is believed, in seconds.

    At an `amqps` URL the broker must show a certificate for the URL's host, of an authority in `ca_file` (PEM; None:
    of one that this machine trusts).
    """

    url: str
    heartbeat: Seconds = 10
    ca_file: str | None = None


class Logs(msgspec.Struct, forbid_unknown_fields=True):
    """How to log: `json` lines or a `console` for people, to `file` or standard error."""

    format: str = "json"
    level: str = "info"
    file: str | None = None


class Api(msgspec.Struct, forbid_unknown_fields=True):
    """The HTTP side. `public_url` is what clients are told; requests' Host headers are never believed.

    With `certificate_file` (PEM, with what it needs of its chain) and `key_file` it speaks TLS, and nothing else.
    """

    listen: str = "127.0.0.1"
    port: Port = 8774
    public_url: str = "http://127.0.0.1:8774"
    image_dir: str = "/var/lib/whimbrel/images"
    region: str = "RegionOne"
    policy_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


class Identity(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens: the Fernet keys' file (made at the first start, mode 0600) and a token's life in seconds."""

    key_file: str = "/var/lib/whimbrel/token.keys"
    token_lifetime: Seconds = 3600


class Orders(msgspec.Struct, forbid_unknown_fields=True):
    """What proves to hosts that a controller speaks: the Ed25519 key (made at the first start, mode 0600).

    Controllers may share one, or have one each; a host's `controller_keys` names every public key that it obeys.
    """

    key_file: str = "/var/lib/whimbrel/order.key"


class Channels(msgspec.Struct, forbid_unknown_fields=True):
    """What lets hosts reach one another: the Ed25519 key that signs their passes (made at the first start, mode 0600).

    Controllers may share one, or have one each; a host's `channel_authorities` names every public key that it obeys.
    """

    authority_file: str = "/var/lib/whimbrel/channels.key"


class Scheduler(msgspec.Struct, forbid_unknown_fields=True):
    """Allocation ratios are per host defaults; a multiplier of 0 switches a weigher off."""

    ram_weight: Weight = 1.0
    cpu_weight: Weight = 1.0
    disk_weight: Weight = 1.0
    moves_weight: Weight = 1.0
    max_targets: Annotated[int, Meta(ge=1, le=1000)] = 4


class Conductor(msgspec.Struct, forbid_unknown_fields=True):
    """Bounds of the decisions. `confirm_window` 0 means that only a user closes the undo window.

    In `census` seconds every host that is up is heard, so it is more than the agents' `heartbeat_interval`: a conductor
    that starts waits so long, at most, before it orders anything.
    `audit_every` is in seconds; 0 means that only `whimbrel audit` audits.
    `lease_seconds` is how long a host with `lease = true` may run guests after it asked for its newest lease.
    `image_url` is where hosts fetch base images that they lack (with a ticket that each order carries).
    No host may be silent for longer than `patience`, in seconds, whatever its step's limit is.
    """

    image_url: str = "http://127.0.0.1:8774/image"

    max_attempts: Annotated[int, Meta(ge=1, le=1000)] = 3
    confirm_window: Amount = 0
    shutdown_grace: Amount = 60
    service_down_after: Seconds = 60
    ask_after: Moment = 5.0
    patience: Moment = 60.0
    census: Moment = 12.0
    same_host_resize: bool = False
    start_guests_after_boot: bool = True
    audit_every: Amount = 600
    lease_seconds: Moment = 60.0


class Agent(msgspec.Struct, forbid_unknown_fields=True):
    """One host. Totals and reserves are what the scheduler may plan with; 0 means: ask the machine."""

    host: Name
    address: str
    instances_dir: str = "/var/lib/whimbrel/instances"
    state_dir: str = "/var/lib/whimbrel/agent"
    run_dir: str = "/run/whimbrel"
    hypervisor: str = "libvirt"
    libvirt_uri: str = "qemu:///system"
    virt_type: str = "kvm"
    move: Literal["auto", "cold", "warm"] = "auto"
    """How servers that do not say it in their metadata (`whimbrel:move`) are moved from this host."""
    live_memory: Literal["running", "held"] = "running"
    """Whether a guest that moves live runs while its memory crosses, or is held from the beginning of it."""
    machine: str = "pc"
    firmware: str = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    """The UEFI firmware of guests whose image asks for it, without Secure Boot; of the package `ovmf` on Debian."""
    firmware_variables: str = "/usr/share/OVMF/OVMF_VARS_4M.fd"
    """What such a guest's firmware remembers at its first boot; each guest has a copy of its own."""
    swtpm_user: str = "tss"
    """As whom libvirt runs the TPMs of guests: `swtpm_user` in its qemu.conf."""
    cpu_model: str = "host-model"
    bridge: str = "br-guests"
    mtu: Annotated[int, Meta(ge=576, le=9216)] = 1500
    ssh_cipher: str = "aes128-gcm@openssh.com"
    channel_dir: str = "/etc/whimbrel/channel"
    """What `whimbrel host enroll` makes: this host's keys for its channels, and the configuration of their sshd."""
    channel_port: Port = 8022
    channel_authorities: list[str] = []
    """The public keys (`ssh-ed25519 AAAA...`) whose passes this host's sshd takes."""
    max_copies: Annotated[int, Meta(ge=1, le=1000)] = 2
    copy_rate: Rate | None = None
    """Bytes per second that all copies from this host may send together."""
    link_rate: Rate | None = None
    """Bytes per second that copies from this host may send to each other host."""
    receive_rate: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | None = None
    """Bytes per second that this host takes of each copy that comes to it, whatever the sender thinks."""
    compress: bool = True
    """Whether copies from this host are compressed while that saves time, which is measured as they go."""
    stall_timeout: Seconds = 60
    root_disk: str = "qcow2"
    heartbeat_interval: Seconds = 10
    vcpus: Amount = 0
    ram_mb: Amount = 0
    disk_gb: Amount = 0
    reserved_vcpus: Amount = 0
    reserved_ram_mb: Amount = 512
    reserved_disk_gb: Amount = 0
    cpu_ratio: Ratio = 16.0
    ram_ratio: Ratio = 1.0
    disk_ratio: Ratio = 1.0
    lease: bool = False
    """Ask for a lease, which `whimbrel keeper` on this host enforces: without a valid one no guest runs here."""
    controller_keys: list[str] = []
    """The public keys of the controllers that this host obeys."""
    ca_file: str | None = None
    """The authorities (PEM) by which an https image store is known; None: those that this machine trusts."""


RENEWED = ("copy_rate", "link_rate")
"""The keys of [agent] that a running agent reads again on SIGHUP."""


class FenceDevice(msgspec.Struct, forbid_unknown_fields=True):
    """How one host's power is asked after and cut: a program with the interface of the `fence-agents` package.

    `options` are given to it on standard input, as `key=value` lines; one whose value starts with `@` is read from
    the file that follows.
    """

    agent: str
    options: dict[str, str] = {}


class Fencing(msgspec.Struct, forbid_unknown_fields=True):
    """Fence devices by host. `power_off` lets an evacuation cut the power; otherwise they are only asked."""

    hosts: dict[str, FenceDevice] = {}
    power_off: bool = True
    timeout: Moment = 60.0
    ask_again_after: Moment = 20.0


class Metrics(msgspec.Struct, forbid_unknown_fields=True):
    """Where this process shows its metrics to Prometheus, to anybody who can reach it; port 0 means nowhere."""

    listen: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file. Each role reads the tables that it needs and refuses to start without them."""

    broker: Broker | None = None
    database: Database | None = None
    logs: Logs = msgspec.field(default_factory=Logs)
    api: Api = msgspec.field(default_factory=Api)
    identity: Identity = msgspec.field(default_factory=Identity)
    orders: Orders = msgspec.field(default_factory=Orders)
    channels: Channels = msgspec.field(default_factory=Channels)
    scheduler: Scheduler = msgspec.field(default_factory=Scheduler)
    conductor: Conductor = msgspec.field(default_factory=Conductor)
    fencing: Fencing = msgspec.field(default_factory=Fencing)
    agent: Agent | None = None
    metrics: Metrics = msgspec.field(default_factory=Metrics)


def load(path: Path) -> Settings:
    """Read and check the settings file; raise SettingsError naming the file, the key and the fault."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except RecursionError as error:
        raise SettingsError(f"{path} is nested too deeply to be read.") from error
    except (tomllib.TOMLDecodeError, ValueError) as error:  # a date like 2026-99-99 is a plain ValueError
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}.") from error


def renew(agent: Agent, path: Path) -> dict[str, int | None]:
    """Take over what a running agent may take over from its settings file; return it. SettingsError changes nothing."""
    newer = load(path).agent
    if newer is None:
        raise SettingsError(f"{path} has no [agent] table any more.")
    taken = {key: getattr(newer, key) for key in RENEWED}
    for key, value in taken.items():
        setattr(agent, key, value)
    return taken
