"""What a server is made of, as declared data: nothing here is ever read from a guest's disk."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class PowerState(enum.StrEnum):
    """What the hypervisor last said of a guest; UNKNOWN when it could not be asked."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class PowerAction(enum.StrEnum):
    """What a POWER segment asks of the host."""

    START = "start"
    STOP = "stop"
    REBOOT_SOFT = "reboot_soft"
    REBOOT_HARD = "reboot_hard"


class DiskRole(enum.StrEnum):
    """Why a disk is there: ROOT boots, EPHEMERAL moves with the server, SWAP is made anew at each host."""

    ROOT = "root"
    EPHEMERAL = "ephemeral"
    SWAP = "swap"


@dataclass(frozen=True)
class Flavor:
    """A size that servers can have: memory in MiB, root and ephemeral disk in GiB, swap in MiB."""

    id: str
    name: str
    vcpus: int
    ram_mb: int
    disk_gb: int
    ephemeral_gb: int = 0
    swap_mb: int = 0
    public: bool = True
    disabled: bool = False
    description: str | None = None
    extra_specs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """A base image as a host needs to know it: content by sha256, format as declared at upload.

    `ticket_url` lets a host that lacks the image fetch it, for a limited time.
    """

    id: str
    sha256: str
    format: str
    size_bytes: int
    virtual_size_mb: int
    ticket_url: str = ""


MOVE = "whimbrel:move"
"""The key under which a server's metadata, or a request, say in which manner it is moved."""


class Manner(enum.StrEnum):
    """How a guest that runs is moved when it is not moved live. A resize is never `suspended`: it boots anew."""

    AUTO = "auto"
    """Warm where that can be done, cold elsewhere."""
    COLD = "cold"
    """It is stopped before anything is copied."""
    WARM = "warm"
    """Its disks are copied while it runs, or it is not moved."""
    SUSPENDED = "suspended"
    """As warm, but it does not boot anew: it is held while its memory follows its disks. Or it is not moved."""


@dataclass(frozen=True)
class Disk:
    """One disk file of a server: `disk-<index>` in its directory. `base` is the sha256 that an overlay stands on."""

    index: int
    role: DiskRole
    format: str
    size_mb: int
    base: str | None = None

    @property
    def name(self) -> str:
        """The file's name in the server's directory."""
        return f"disk-{self.index}"


@dataclass(frozen=True)
class Nic:
    """One network interface: the same MAC and address on whichever host the server runs."""

    mac: str
    address: str
    prefix: int
    network: str
    gateway: str | None = None
    mtu: int = 1500


@dataclass(frozen=True)
class Guest:
    """All that a host must know to make and run one server; `user_data` is base64, because it may be any bytes."""

    uuid: str
    name: str
    vcpus: int
    ram_mb: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    user_data: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    uefi: bool = False
    """Whether it boots by UEFI; what that firmware remembers then lies beside the disks, and goes where they go."""
    tpm: str | None = None
    """The model of its TPM; what that remembers goes where the disks go, or with the memory of a guest that runs."""


def disks_for(flavor: Flavor, image: Image | None, root_format: str) -> tuple[Disk, ...]:
    """Declare the disks of a server of this flavor. A qcow2 root is an overlay on the image, a raw one is flat."""
    disks: list[Disk] = []
    root_mb = flavor.disk_gb * 1024 or (image.virtual_size_mb if image else 0)
    base = image.sha256 if image and root_format == "qcow2" else None
    disks.append(Disk(0, DiskRole.ROOT, root_format, root_mb, base))
    if flavor.ephemeral_gb:
        disks.append(Disk(len(disks), DiskRole.EPHEMERAL, root_format, flavor.ephemeral_gb * 1024))
    if flavor.swap_mb:
        disks.append(Disk(len(disks), DiskRole.SWAP, "raw", flavor.swap_mb))
    return tuple(disks)
