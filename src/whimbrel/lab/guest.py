"""The test guest's disk image: built once from the sources in `guest/`, then kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Literal

from whimbrel.domain.errors import Unavailable

SOURCES = Path(__file__).parents[3] / "guest"
BUILD_DEADLINE = 300.0


def cache_dir() -> Path:
    """Return the directory that outlives a lab: WHIMBREL_CACHE, else `whimbrel` in the user's cache."""
    chosen = os.environ.get("WHIMBREL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whimbrel"


def image(firmware: Literal["bios", "uefi"] = "bios") -> Path:
    """Return the image that boots so, building it if its sources have changed since the last time.

    Raise Unavailable if it cannot be built.
    """
    if not (SOURCES / "build.sh").exists():
        raise Unavailable(f"{SOURCES} is not there: the lab runs from a source tree, not from an installed wheel.")
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    built = cache_dir() / f"guest-{firmware}-{digest.hexdigest()[:12]}.qcow2"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [SOURCES / "build.sh", built, firmware], capture_output=True, text=True, timeout=BUILD_DEADLINE, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Unavailable(f"The guest image could not be built: {reason}")
    return built
