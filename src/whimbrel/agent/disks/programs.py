"""Running a tool of the host (qemu-img, genisoimage) within a step: ended when the step is told to stop.

A tool reads what others have written, so it runs under limits of the kernel: a file that makes it compute or allocate
without end costs its own server's step, and never the host.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from whimbrel.domain.errors import StepError
from whimbrel.migration.ports import Control

TURN = 0.2

ADDRESS_SPACE = 2 << 30
"""Bytes that a tool may map, its threads' stacks included: qemu-img 7.2 maps 622 MiB while it converts."""
CPU_SECONDS = 1800
"""Seconds of computing; the step's own limit ends what only waits."""


def run(argv: list[str], directory: Path, control: Control, *, file_bytes: int | None = None) -> None:
    """Run a tool in a directory; raise StepError with its last words when it fails or is not installed.

    No file that it writes may grow beyond `file_bytes`.
    """
    if shutil.which(argv[0]) is None:
        raise StepError(f"{argv[0]} is not installed on this host; install the package that brings it.")
    limits = ["prlimit", f"--as={ADDRESS_SPACE}", f"--cpu={CPU_SECONDS}", "--core=0"]
    if file_bytes is not None:
        limits.append(f"--fsize={file_bytes}")
    try:
        child = subprocess.Popen(
            [*limits, "--", *argv],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise StepError("prlimit is not installed on this host; install util-linux.") from error
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
