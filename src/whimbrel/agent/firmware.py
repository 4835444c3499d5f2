"""The UEFI firmware of this host: its code, which all guests share, and the variables, of which each has a copy.

The variables are made once, when the server is built, and carried with the disks after that: the boot entries, and
whatever else the guest's system wrote there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from whimbrel.agent.disks.frames import VARIABLES
from whimbrel.domain.errors import StepError
from whimbrel.ops.settings import Agent


def missing(settings: Agent) -> list[str]:
    """Return those of the two files that are not here; guests can boot by UEFI if it is none."""
    return [path for path in (settings.firmware, settings.firmware_variables) if not Path(path).is_file()]


def refuse_missing(settings: Agent) -> None:
    """Raise StepError if no guest can boot by UEFI here."""
    if absent := missing(settings):
        raise StepError(
            f"Host {settings.host} has no UEFI firmware, which the server's image asks for: {', '.join(absent)} is "
            f"missing. Install it (on Debian the package ovmf), or name it as agent.firmware and "
            f"agent.firmware_variables."
        )


def make_variables(directory: Path, settings: Agent) -> None:
    """Write the variables of a guest that never booted into a server's directory."""
    path = directory / VARIABLES
    shutil.copyfile(settings.firmware_variables, path)
    path.chmod(0o600)
