"""What this host has: from the settings where they say, else from the machine itself."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

GIB = 1024**3


@dataclass(frozen=True)
class Inventory:
    """Totals that may be planned with, memory in MiB and disk in GiB; `uptime` is a line as uptime(1) prints it."""

    vcpus: int
    ram_mb: int
    disk_gb: int
    free_disk_gb: int
    architecture: str
    uptime: str


def take(settings: Agent) -> Inventory:
    """Look at the host now; OSError if the file system of the servers' directories cannot be asked."""
    disk = os.statvfs(settings.instances_dir)
    return Inventory(
        vcpus=settings.vcpus or os.cpu_count() or 1,
        ram_mb=settings.ram_mb or _memory_mb(),
        disk_gb=settings.disk_gb or disk.f_blocks * disk.f_frsize // GIB,
        free_disk_gb=disk.f_bavail * disk.f_frsize // GIB,
        architecture=platform.machine(),
        uptime=_uptime(),
    )


def _memory_mb() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    raise OSError("/proc/meminfo has no MemTotal")


def _uptime() -> str:
    seconds = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    minutes = int(seconds) // 60
    load = ", ".join(f"{figure:.2f}" for figure in os.getloadavg())
    time = clock.iso(clock.now())[11:19]
    return f" {time} up {minutes // 1440} days, {minutes // 60 % 24}:{minutes % 60:02},  load average: {load}"
