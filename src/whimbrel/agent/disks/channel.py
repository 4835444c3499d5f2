"""The channels of this host to another: OpenSSH with the order's pass, which allows one command, and the copy slots.

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
from tempfile import TemporaryDirectory

from whimbrel.agent.directories import HostDirectories, in_words
from whimbrel.agent.disks.extents import allocated
from whimbrel.agent.disks.fetch import Blocks, from_host
from whimbrel.agent.disks.frames import CONFIG_DRIVE, PROBE, VERSION
from whimbrel.agent.disks.incoming import carried
from whimbrel.agent.disks.pace import Paces
from whimbrel.agent.disks.session import Children, Session
from whimbrel.domain.errors import StepError, TimedOut
from whimbrel.identity.enrolment import CLIENT_KEY
from whimbrel.migration.messages import Facts, Order, Pass, Phase, Place
from whimbrel.migration.ports import Control
from whimbrel.ops import clock, ids
from whimbrel.ops.settings import Agent

SSH_OPTIONS = (
    "User=root",
    "BatchMode=yes",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "GlobalKnownHostsFile=none",
    "UpdateHostKeys=no",
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

PASSES_MAX = 256
"""Passes that are remembered; each serves for minutes, so what is forgotten first has run out."""

PASS_PATIENCE = 15.0
"""Seconds to wait for a newer pass; the conductor sends one each time it asks what became of an order."""

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
                control.report(0, 0, Phase.TURN)
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
        self.paces = Paces(settings)
        self._sessions: dict[Key, Session] = {}
        self._passes: dict[Key, Pass] = {}
        self._lock = threading.Lock()

    def keep_pass(self, order: Order) -> None:
        """Remember the pass that came with an order, or with a question after one; the newest counts."""
        if order.channel is None:
            return
        with self._lock:
            kept = self._passes.pop(_key(order), order.channel)
            self._passes[_key(order)] = max(kept, order.channel, key=lambda each: each.until)
            while len(self._passes) > PASSES_MAX:
                del self._passes[next(iter(self._passes))]

    def open(self, order: Order, control: Control) -> Facts:
        """Open the channel, ask the target for room and whether the storage is shared."""
        self._end(order)
        needed = sum(allocated(path) for path in self.files(order))
        _, target = places(order)
        with self._probe(order) as (probe, secret):
            session, answer = self._greet(order, control, {"probe": probe})
        try:
            # A resize changes the copy's size, so it takes a true copy even there. What a TPM remembers is never
            # shared, and a revert must not find an older one beside newer disks.
            shared = _is_shared(answer.get("probe"), secret, target)
            shared = shared and order.protocol != "resize" and order.work.old.tpm is None
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

        Config drive, firmware's variables and what the TPM remembers are opaque, and carried like a disk.
        """
        home = self.home(order)
        off = home != self._directories.live(order.server)
        paths = [home / name for name in carried(order.work.old, off=off)]
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
        with self._way_to(target, source, order, control) as command:
            try:
                session = Session(command, source, target, self._children)
            except FileNotFoundError as error:
                raise StepError(
                    f"{command[0]} is not installed on {source.host}; install the OpenSSH client."
                ) from error
            try:
                session.tell({"hello": VERSION, **what}, control)
                return session, session.hear(answer, control)
            except BaseException:
                session.end()
                raise

    def base_image(self, order: Order, control: Control) -> Blocks | None:
        """Read the server's base image from its source; None when this host is the source or there is none."""
        source, target = order.work.source, order.work.target
        if source is None or target is None or source.host == target.host or order.work.image is None:
            return None
        return self._fetch(source, target, order, control)

    def _fetch(self, source: Place, target: Place, order: Order, control: Control) -> Blocks:
        with self._way_to(source, target, order, control) as command:
            yield from from_host(command, source, target)

    @contextmanager
    def _way_to(self, there: Place, here: Place, order: Order, control: Control) -> Iterator[list[str]]:
        """Give the command that runs what the order's pass allows on the other host; its files go afterwards.

        ssh has read them by the time that the other end has answered.
        """
        if here.host == there.host:
            receive = [sys.executable, "-I", "-m", "whimbrel.agent.disks.receive", "--host", here.host]
            yield [*receive, "--instances", os.fspath(self._directories.root), order.server, order.attempt]
            return
        leave = self._pass(order, there, here, control)
        place = Path(self._settings.run_dir)
        with in_words("use", place):
            place.mkdir(parents=True, exist_ok=True)
            files = TemporaryDirectory(prefix="channel-", dir=place)
        with files as name:
            certificate, known_hosts = Path(name, "certificate"), Path(name, "known_hosts")
            with in_words("write", Path(name)):
                certificate.write_text(f"{leave.certificate}\n", encoding="ascii")
                known_hosts.write_text(f"{there.host} {leave.host_key}\n", encoding="ascii")
            own = (
                f"IdentityFile={self._settings.channel_dir}/{CLIENT_KEY}",
                f"CertificateFile={certificate}",
                f"UserKnownHostsFile={known_hosts}",
                f"HostKeyAlias={there.host}",
            )
            argv = ["ssh", "-F", "none", "-T", "-x", "-a", "-c", self._settings.ssh_cipher]
            argv += ["-b", here.address, "-p", str(leave.port)]
            for option in (*own, *SSH_OPTIONS):
                argv += ["-o", option]
            yield [*argv, "--", there.address]

    def _pass(self, order: Order, there: Place, here: Place, control: Control) -> Pass:
        """Return a pass that is good now, waiting a while for one; StepError if none comes."""
        deadline = clock.monotonic() + PASS_PATIENCE
        while True:
            with self._lock:
                kept = self._passes.get(_key(order))
            newest = max((each for each in (kept, order.channel) if each), key=lambda each: each.until, default=None)
            if newest is None:
                raise StepError(
                    f"No channel from {here.host} to {there.host}: the order brought no pass, because one of the two "
                    f"is not enrolled, or is forced down. Run `whimbrel host enroll` on both."
                )
            if newest.until > clock.now() + 1:
                return newest
            if clock.monotonic() > deadline:
                raise StepError(
                    f"No channel from {here.host} to {there.host}: the pass has run out and no newer one came. Check "
                    f"that the clocks of {here.host} and the conductor agree, and that the conductor runs."
                )
            control.wait(0.2)

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
