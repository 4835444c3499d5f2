"""CPU, memory and disk of a host that are set aside, each claim with exactly one owner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from whimbrel.domain.server import Flavor


@dataclass(frozen=True)
class Resources:
    """An amount of room: virtual CPUs, memory in MiB, disk in GiB."""

    vcpus: int
    ram_mb: int
    disk_gb: int

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.vcpus + other.vcpus, self.ram_mb + other.ram_mb, self.disk_gb + other.disk_gb)

    def lacking(self, room: Resources) -> list[str]:
        """Name, in a sentence part each, what of `self` does not fit into `room`."""
        rows = (
            ("CPUs", self.vcpus, room.vcpus, ""),
            ("memory", self.ram_mb, room.ram_mb, " MiB"),
            ("disk", self.disk_gb, room.disk_gb, " GiB"),
        )
        return [f"{name}: {need}{unit} needed, {have}{unit} free" for name, need, have, unit in rows if need > have]


NOTHING = Resources(0, 0, 0)


@dataclass(frozen=True)
class Capacity:
    """What a host has, what it keeps for itself, and how far each may be promised more than once."""

    total: Resources
    reserved: Resources
    cpu_ratio: float
    ram_ratio: float
    disk_ratio: float

    def limit(self) -> Resources:
        """The most that claims may sum up to: floor((total - reserved) x ratio), never below zero."""
        return Resources(
            max(0, math.floor((self.total.vcpus - self.reserved.vcpus) * self.cpu_ratio)),
            max(0, math.floor((self.total.ram_mb - self.reserved.ram_mb) * self.ram_ratio)),
            max(0, math.floor((self.total.disk_gb - self.reserved.disk_gb) * self.disk_ratio)),
        )


def resources_of(flavor: Flavor) -> Resources:
    """Return the room that a server of this flavor takes; swap is rounded up to whole GiB of disk."""
    disk_gb = flavor.disk_gb + flavor.ephemeral_gb + math.ceil(flavor.swap_mb / 1024)
    return Resources(flavor.vcpus, flavor.ram_mb, disk_gb)
