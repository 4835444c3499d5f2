"""Disks without a hypervisor: tiny files in the real directories, carried between fake agents of one machine.

A disk file is a line that says what it is, then what its guest wrote. The place of ssh is taken by a directory
that all fake agents share, `fake-wire` beside their state directories: a target notes there where it receives, as
a source would learn it through its channel. Digests are made and compared as for real disks.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whimbrel.agent import console
from whimbrel.agent.directories import (
    HostDirectories,
    in_words,
    read_manifest,
    write_durably,
    write_manifest,
)
from whimbrel.agent.disks.channel import UNUSED, CopySlots, places
from whimbrel.agent.disks.frames import EARLIER
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Disk, DiskRole
from whimbrel.migration.messages import Facts, Foresee, Foresight, Order, Way
from whimbrel.migration.ports import Control
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent


class Wire:
    """Where each attempt's target receives."""

    def __init__(self, settings: Agent) -> None:
        self._directory = Path(settings.state_dir).parent / "fake-wire"

    def receive_at(self, order: Order, incoming: Path) -> None:
        """Note that this attempt's bytes go to this directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_durably(self._note(order), str(incoming))

    def target(self, order: Order) -> Path:
        """Return where the bytes go; StepError when the target has not prepared for them, or not on this wire."""
        _, target = places(order)
        try:
            incoming = Path(self._note(order).read_text(encoding="utf-8"))
        except FileNotFoundError:
            incoming = None
        if incoming is not None and not incoming.is_dir():  # the target has given it its live name meanwhile
            incoming = incoming.with_name(order.server)
        if incoming is None or not incoming.is_dir():
            raise StepError(
                f"Attempt {order.attempt} was not prepared on {target.host}, or its state directory is not beside "
                f"that of {order.host}; it cannot receive disks."
            )
        return incoming

    def forget(self, order: Order) -> None:
        """The bytes have arrived."""
        self._note(order).unlink(missing_ok=True)

    def _note(self, order: Order) -> Path:
        return self._directory / f"{order.server}.{order.attempt}"


class FakeChannels:
    """The Channels port: open or closed in memory, so that a restart of the agent closes them all."""

    def __init__(self, settings: Agent) -> None:
        self._wire = Wire(settings)
        self._directories = HostDirectories(settings.instances_dir)
        self._slots = CopySlots(settings.max_copies)
        self._open: set[tuple[str, str]] = set()

    def open(self, order: Order, control: Control) -> Facts:
        """Find the target on the wire."""
        incoming = self._wire.target(order)
        self._open.add((order.server, order.attempt))
        free = os.statvfs(incoming)
        needed = sum(path.stat().st_size for path in carried(self._directories, order))
        return {"shared": False, "free_bytes": free.f_bavail * free.f_frsize, "needed_bytes": needed}

    def close(self, order: Order) -> None:
        """Close the channel and give its copy slot back; one that is closed is accepted."""
        self._open.discard((order.server, order.attempt))
        self._slots.give_back((order.server, order.attempt))

    def is_open(self, order: Order) -> bool:
        """Return whether the channel is open now."""
        return (order.server, order.attempt) in self._open

    def reserve_slot(self, order: Order, control: Control) -> None:
        """Wait until this host may run one more copy, which is to begin soon."""
        self._slots.take((order.server, order.attempt), control, keep=UNUSED)

    def take_slot(self, order: Order, control: Control) -> None:
        """Hold the copy's slot until the channel is closed; one that was reserved too long ago is waited for again."""
        self._slots.take((order.server, order.attempt), control)


class FakeDisks:
    """The Disks port over small text files."""

    def __init__(self, settings: Agent) -> None:
        self._host = settings.host
        self._directories = HostDirectories(settings.instances_dir)
        self._wire = Wire(settings)

    def prepare(self, order: Order, control: Control) -> Facts:
        """Make the incoming directory and the disks that do not come from the source; the manifest comes last."""
        if self._directories.is_live(order.server, order.attempt):
            return {}
        self._directories.discard(order.server, order.attempt)
        incoming = self._directories.incoming(order.server, order.attempt)
        with in_words("prepare", incoming):
            incoming.mkdir(mode=0o700, parents=True)
            for disk in order.work.guest.disks:
                if order.from_image or disk.role is DiskRole.SWAP:
                    write_durably(incoming / disk.name, _header(disk))
            disks = [asdict(disk) for disk in order.work.guest.disks]
            made_by = {"server": order.server, "attempt": order.attempt, "host": self._host}
            self._wire.receive_at(order, incoming)
            write_manifest(incoming, {**made_by, "disks": disks})
            free = os.statvfs(incoming)
            return {"free_bytes": free.f_bavail * free.f_frsize}

    def is_prepared(self, order: Order) -> bool:
        """Return whether the incoming directory of this attempt is whole."""
        return read_manifest(self._directories.incoming(order.server, order.attempt)) is not None

    def foresee(self, question: Foresee) -> Foresight:
        """Say how a server would be moved that lives here, and change nothing."""
        home = self._directories.live(question.server)
        with in_words("look at", home):
            held = sum((home / disk.name).stat().st_size for disk in question.disks if disk.role is not DiskRole.SWAP)
        if question.was_running:
            return Foresight(question.way, "", held)
        return Foresight(Way.NONE if question.must_run else Way.COLD, "The guest is off.", held)

    def precopy(self, order: Order, control: Control) -> Facts:
        """Let what the disks hold now cross already; `push` sends them once more, as they are then."""
        if not order.work.was_running:
            return {"skipped": "The guest is off."}
        target, sent = self._wire.target(order), 0
        for path in carried(self._directories, order):
            control.check()
            with in_words("send", path):
                content = path.read_text(encoding="utf-8")
                write_durably(target / path.name, content)
            sent += len(content)
        return {"bytes": sent}

    def close_log(self, order: Order, control: Control) -> None:
        """There is no log."""

    def end_precopy(self, order: Order, control: Control) -> None:
        """Nothing of it is here."""

    def push(self, order: Order, control: Control) -> Facts:
        """Send every disk's bytes to the target; return bytes and the digest of each disk."""
        if not self._directories.is_sealed(order.server, order.attempt):
            raise StepError(f"Server {order.server} was not sealed by attempt {order.attempt}; its disks may change.")
        self._record(order).unlink(missing_ok=True)
        facts = self._send(order, control)
        with in_words("write", self._record(order)):
            write_durably(self._record(order), json.dumps(facts))
        return facts

    def _send(self, order: Order, control: Control) -> Facts:
        began = clock.monotonic()
        target = self._wire.target(order)
        disks: dict[str, dict[str, Any]] = {}
        sent = 0
        paths = carried(self._directories, order)
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            control.check()
            with in_words("send", path):
                content = path.read_bytes()
                write_durably(target / path.name, content.decode("utf-8"))
            disks[path.name] = _identity(content)
            sent += len(content)
            control.report(sent, total)
        with suppress(FileNotFoundError):
            said = console.tail(paths[0].parent)
            write_durably(target / EARLIER, said.decode("utf-8", "replace"))
            disks[EARLIER] = _identity((target / EARLIER).read_bytes())
        seconds = round(clock.monotonic() - began, 3)
        return {"bytes": sent, "allocated": sent, "disks": disks, "shared": False, "seconds": seconds}

    def copy_on(self, order: Order, control: Control) -> None:
        """Nothing needs to be sent before the guest is held."""

    def push_held(self, order: Order, control: Control) -> Facts:
        """Send every disk as it is, now that the guest is held."""
        facts = self._send(order, control)
        with in_words("write", self._record(order)):
            write_durably(self._record(order), json.dumps(facts))
        return facts

    def pushed(self, order: Order) -> Facts | None:
        """Return what `push` returned, when the target holds everything that it sent."""
        try:
            facts: Facts = json.loads(self._record(order).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return facts

    def verify(self, order: Order, control: Control) -> Facts:
        """Read the disks back and compare with the digests in the order's results."""
        incoming = self._directories.arriving(order.server, order.attempt)
        verified = 0
        sent = order.results.get("copy_disks") or order.results["move_memory"]
        for name, expected in sent["disks"].items():
            control.check()
            with in_words("read back", incoming / name):
                found = _identity((incoming / name).read_bytes())
            if found != expected:
                raise StepError(
                    f"{name} of server {order.server} differs on {self._host} from what was sent "
                    f"(expected {expected}, found {found}); the source's copy is whole."
                )
            verified += found["size"]
        self._wire.forget(order)
        return {"verified_bytes": verified}

    def resize(self, order: Order, control: Control) -> Facts:
        """Give the incoming disks their new sizes; a disk grows and never shrinks."""
        incoming = self._directories.incoming(order.server, order.attempt)
        before = {disk.name: disk.size_mb for disk in order.work.old.disks}
        grown: dict[str, int] = {}
        for disk in order.work.guest.disks:
            path = incoming / disk.name
            with in_words("resize", path):
                header, _, writes = path.read_text(encoding="utf-8").partition("\n")
                size = int(json.loads(header)["size_mb"])
                if disk.size_mb < size:
                    raise StepError(f"{disk.name} has {size} MiB and cannot shrink to {disk.size_mb} MiB.")
                if disk.size_mb > size:
                    write_durably(path, _header(disk) + writes)
                if disk.size_mb > before.get(disk.name, size):
                    grown[disk.name] = disk.size_mb
        return {"grown_to_mb": grown}

    def _record(self, order: Order) -> Path:
        sealed = self._directories.sealed(order.server, order.attempt)
        home = sealed if sealed.is_dir() else self._directories.live(order.server)
        return home / f"pushed-{order.attempt}.json"


def carried(directories: HostDirectories, order: Order) -> list[Path]:
    """Return the disk files that a move carries; StepError when one is missing. Swap is made anew at the target."""
    home = directories.sealed(order.server, order.attempt)
    if not home.is_dir():
        home = directories.live(order.server)
    paths = [home / disk.name for disk in order.work.old.disks if disk.role is not DiskRole.SWAP]
    for path in paths:
        if not path.is_file():
            raise StepError(f"{path} is missing on {order.host}, so server {order.server} cannot be moved.")
    return paths


def _header(disk: Disk) -> str:
    return json.dumps({"disk": disk.name, "size_mb": disk.size_mb}) + "\n"


def _identity(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "digest": hashlib.sha256(content).hexdigest()}
