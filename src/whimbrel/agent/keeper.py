"""Ends the guests of a host whose lease has run out: the host's own proof that they run nowhere else twice.

A process of its own, which needs neither the network, nor the agent, nor the hypervisor's daemon: it looks at one
file and at a clock, and kills. While no lease was ever given in this boot there is nothing to keep.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

import structlog

from whimbrel.agent.admission import KEEPER_FILE, LEASE_FILE, read_number
from whimbrel.agent.directories import HostDirectories, write_durably
from whimbrel.domain.errors import SettingsError
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

LOOK = 0.5
"""Seconds between two looks at the clock."""

log = structlog.get_logger(__name__)

EndAll = Callable[[], list[str]]
"""Ends every guest of this host at once, and returns what was ended."""


class Keeper:
    """Looks, again and again, whether guests may still run here."""

    def __init__(self, settings: Agent, end_all: EndAll) -> None:
        self._directory = Path(settings.run_dir)
        self._end_all = end_all
        self._expired = False

    def run(self, stop: Event) -> None:
        """Keep until told to stop."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        log.info("keeper ready", lease=str(self._directory / LEASE_FILE))
        while not stop.is_set():
            self.look()
            stop.wait(LOOK)

    def look(self) -> None:
        """Say that a keeper is here; end all guests if the lease has run out, as often as there are any."""
        now = clock.boottime()
        deadline = read_number(self._directory / LEASE_FILE, "deadline")
        beat = {"beat": now, "pid": os.getpid(), "deadline": deadline}
        write_durably(self._directory / KEEPER_FILE, json.dumps(beat))
        expired = deadline is not None and now > deadline
        if expired:
            ended = self._end_all()
            if ended or not self._expired:
                log.error("the lease has run out", guests_ended=ended, seconds_ago=round(now - (deadline or now), 1))
        elif self._expired:
            log.info("the lease was renewed")
        self._expired = expired


def run(settings: Agent, stop: Event) -> None:
    """Keep this host's lease until told to stop; SettingsError where guests are no processes."""
    if settings.hypervisor != "libvirt":
        raise SettingsError(f"The guests of hypervisor {settings.hypervisor!r} are no processes that could be ended.")
    root = HostDirectories(settings.instances_dir).root
    Keeper(settings, lambda: kill_guests(root)).run(stop)


def kill_guests(root: Path) -> list[str]:
    """Kill every QEMU process that has a disk below this directory; return what was killed, as pids."""
    killed = []
    marks = f"{root}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended while we looked
            if (entry / "comm").read_bytes().startswith(b"qemu-system") and marks in (entry / "cmdline").read_bytes():
                handle = os.pidfd_open(int(entry.name))
                try:
                    if marks in (entry / "cmdline").read_bytes():
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        killed.append(entry.name)
                finally:
                    os.close(handle)
    return killed
