"""Running a tool of the host (qemu-img, genisoimage) within a step: ended when the step is told to stop."""

from __future__ import annotations

import subprocess
from pathlib import Path

from whimbrel.domain.errors import StepError
from whimbrel.migration.ports import Control

TURN = 0.2


def run(argv: list[str], directory: Path, control: Control) -> None:
    """Run a tool in a directory; raise StepError with its last words when it fails or is not installed."""
    try:
        child = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise StepError(f"{argv[0]} is not installed on this host; install the package that brings it.") from error
    try:
        while True:
            control.check()
            try:
                _, complaints = child.communicate(timeout=TURN)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    if child.returncode:
        lines = complaints.decode(errors="replace").strip().splitlines()
        words = lines[-1] if lines else f"exit status {child.returncode}"
        raise StepError(f"{argv[0]} failed in {directory}: {words.rstrip('.')}.")
