"""The channels of this host, as a source: OpenSSH with one forced command, and the copy slots.

A channel is opened while the guest still runs, so that a wrong key, a wrong name or a full disk costs the guest
nothing. It stays open until the copy; one that broke in between is opened anew by the copy itself.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from whimbrel.agent.directories import HostDirectories, in_words
from whimbrel.agent.disks.extents import allocated
from whimbrel.agent.disks.fetch import Blocks, from_host
from whimbrel.agent.disks.frames import COMMAND, CONFIG_DRIVE, PROBE, VERSION
from whimbrel.agent.disks.session import Children, Session
from whimbrel.domain.errors import StepError, TimedOut
from whimbrel.domain.server import DiskRole
from whimbrel.migration.messages import Facts, Order, Place
from whimbrel.migration.ports import Control
from whimbrel.ops import clock, ids
from whimbrel.ops.settings import Agent

SSH_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=5",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ControlPath=none",
)

SLOT_LIMIT = 3600.0
"""Seconds to wait for a copy slot; the receiver waits longer."""

UNUSED = 180.0
"""Seconds for which a slot is kept for a copy that does not begin: an evacuation may have overtaken the move, or a
restored database may have forgotten it. A copy that begins later waits for a slot again."""

Key = tuple[str, str]
"""A server and an attempt."""


class CopySlots:
    """How many copies run at once; who comes first is served first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line: dict[Key, float] = {}
        """Who holds a slot or waits for one, in the order of coming, and until when it is kept."""
        self._lock = threading.Lock()

    def take(self, key: Key, control: Control, *, keep: float = math.inf) -> None:
        """Wait for a slot, outside the step's limit; one that is held already is kept. A cancel leaves the line.

        Unless it is taken again within `keep` seconds, it is given back by itself.
        """
        with self._lock:
            self._line[key] = math.inf
        patience = clock.monotonic() + SLOT_LIMIT
        try:
            while not self._is_in(key):
                if clock.monotonic() > patience:
                    raise TimedOut(f"No copy slot was free for {SLOT_LIMIT / 60:g} minutes; raise `max_copies`.")
                control.report(0, 0, "waiting for a copy slot")
                control.wait(0.2)
                control.restart_limit()
        except StepError:
            self.give_back(key)
            raise
        with self._lock:
            self._line[key] = clock.monotonic() + keep

    def give_back(self, key: Key) -> None:
        """Free a slot, or leave the line; one that is not held is accepted."""
        with self._lock:
            self._line.pop(key, None)

    def _is_in(self, key: Key) -> bool:
        now = clock.monotonic()
        with self._lock:
            self._line = {other: until for other, until in self._line.items() if now < until}
            return key in islice(self._line, self._limit)


class SshChannels:
    """The channels port: one session per server and attempt."""

    def __init__(self, settings: Agent, children: Children) -> None:
        self._settings, self._children = settings, children
        self._directories = HostDirectories(settings.instances_dir)
        self._slots = CopySlots(settings.max_copies)
        self._sessions: dict[Key, Session] = {}
        self._lock = threading.Lock()

    def open(self, order: Order, control: Control) -> Facts:
        """Open the channel, ask the target for room and whether the storage is shared."""
        self._end(order)
        needed = sum(allocated(path) for path in self.files(order))
        _, target = places(order)
        with self._probe(order) as (probe, secret):
            session, answer = self._greet(order, control, {"probe": probe})
        try:
            # A resize changes the copy's size, so it takes a true copy even there.
            shared = _is_shared(answer.get("probe"), secret, target) and order.protocol != "resize"
            if not answer.get("prepared"):
                raise StepError(f"Attempt {order.attempt} was not prepared on {target.host}; it cannot receive disks.")
            free = int(answer["free"])
            if not shared and free < needed:
                raise StepError(
                    f"Target {target.host} has {_gib(free)} free where its servers are kept, the disks need "
                    f"{_gib(needed)}. Make room there or choose another host.",
                    free_bytes=free,
                    needed_bytes=needed,
                )
        except StepError:
            session.end()
            raise
        with self._lock:
            self._sessions[_key(order)] = session
        return {"shared": shared, "free_bytes": free, "needed_bytes": needed}

    def session(self, order: Order, control: Control) -> Session:
        """Return the open channel, opened anew when it broke."""
        with self._lock:
            session = self._sessions.get(_key(order))
        if session is not None and session.alive():
            return session
        self._end(order)
        session, _ = self._greet(order, control, {"probe": False})
        with self._lock:
            self._sessions[_key(order)] = session
        return session

    def open_for_memory(self, order: Order, control: Control) -> Session:
        """Open another channel of the attempt, for the memory of its guest; the caller ends it."""
        return self._greet(order, control, {"memory": True}, "awaited")[0]

    def close(self, order: Order) -> None:
        """Close the channel and give its copy slot back; one that is closed is accepted."""
        self._end(order)
        self._slots.give_back(_key(order))

    def is_open(self, order: Order) -> bool:
        """Return whether the channel is open now."""
        with self._lock:
            session = self._sessions.get(_key(order))
        return session is not None and session.alive()

    def reserve_slot(self, order: Order, control: Control) -> None:
        """Wait until this host may run one more copy, which is to begin soon."""
        self._slots.take(_key(order), control, keep=UNUSED)

    def take_slot(self, order: Order, control: Control) -> None:
        """Hold the copy's slot until the channel is closed; one that was reserved too long ago is waited for again."""
        self._slots.take(_key(order), control)

    def files(self, order: Order) -> list[Path]:
        """Return the files that a move carries, from the sealed directory or, before the seal, the live one.

        Swap is made anew at the target; the config drive is opaque and carried like a disk.
        """
        home = self.home(order)
        names = [disk.name for disk in order.work.old.disks if disk.role is not DiskRole.SWAP]
        paths = [home / name for name in names]
        for path in paths:
            if not path.is_file():
                raise StepError(f"{path} is missing on {order.host}, so server {order.server} cannot be moved.")
        if (home / CONFIG_DRIVE).is_file():
            paths.append(home / CONFIG_DRIVE)
        return paths

    def home(self, order: Order) -> Path:
        """Return the directory that a move carries from: the sealed one or, before the seal, the live one."""
        sealed = self._directories.sealed(order.server, order.attempt)
        return sealed if sealed.is_dir() else self._directories.live(order.server)

    @contextmanager
    def _probe(self, order: Order) -> Iterator[tuple[bool, str]]:
        """Leave a file with a secret where the target sees it if, and only if, the storage is shared.

        It lies in the server's directory, so one that a crash leaves is written over, and goes with the server.
        """
        source, target = places(order)
        secret = ids.new_secret()
        if source.host == target.host:  # one directory, and still each needs a copy of its own
            yield False, secret
            return
        path = self.home(order) / PROBE
        with in_words("probe for shared storage with", path):
            path.write_text(secret, encoding="ascii")
        try:
            yield True, secret
        finally:
            with in_words("remove", path):
                path.unlink(missing_ok=True)

    def _greet(self, order: Order, control: Control, what: Facts, answer: str = "free") -> tuple[Session, Facts]:
        """Start the receiver at the target, say what for, and hear what it finds there."""
        source, target = places(order)
        command = self._command(source, target)
        try:
            session = Session(command, source, target, self._children)
        except FileNotFoundError as error:
            raise StepError(f"{command[0]} is not installed on {source.host}; install the OpenSSH client.") from error
        try:
            session.tell({"hello": VERSION, "server": order.server, "attempt": order.attempt, **what}, control)
            return session, session.hear(answer, control)
        except BaseException:
            session.end()
            raise

    def base_image(self, order: Order) -> Blocks | None:
        """Read the server's base image from its source; None when this host is the source or there is none."""
        source, target = order.work.source, order.work.target
        if source is None or target is None or source.host == target.host or order.work.image is None:
            return None
        return from_host(self._ssh(source, f"{COMMAND} base {order.work.image.sha256}"), source, target)

    def _command(self, source: Place, target: Place) -> list[str]:
        if source.host == target.host:
            receive = [sys.executable, "-I", "-m", "whimbrel.agent.disks.receive"]
            return [*receive, "--host", target.host, "--instances", os.fspath(self._directories.root)]
        return self._ssh(target, COMMAND)

    def _ssh(self, host: Place, command: str) -> list[str]:
        """Return how to reach the receiver of a host. Its sshd runs the forced command and tells it this one."""
        argv = ["ssh", "-T", "-x", "-a", "-c", self._settings.ssh_cipher]
        if self._settings.ssh_config:
            argv += ["-F", self._settings.ssh_config]
        for option in SSH_OPTIONS:
            argv += ["-o", option]
        return [*argv, "--", host.address, command]

    def _end(self, order: Order) -> None:
        with self._lock:
            session = self._sessions.pop(_key(order), None)
        if session is not None:
            session.end()


def places(order: Order) -> tuple[Place, Place]:
    """Return source and target of a move; raise StepError when the order names only one."""
    source, target = order.work.source, order.work.target
    if source is None or target is None:
        raise StepError(f"Order {order.number} ({order.step}) needs a source and a target host.")
    return source, target


def _is_shared(seen: object, secret: str, target: Place) -> bool:
    """Decide by what the target saw of the probe file; anything but the file or nothing is a fault."""
    if seen is None:
        return False
    if seen != secret:
        raise StepError(
            f"{target.host} sees the probe for shared storage with another content, so it is not certain whether "
            f"the two hosts share a file system. Check the mounts of both."
        )
    return True


def _key(order: Order) -> Key:
    return order.server, order.attempt


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
