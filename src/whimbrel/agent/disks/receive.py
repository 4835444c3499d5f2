"""The far end of a channel: sshd runs this program (`whimbrel-receive`), as the pass of the peer tells it to.

The command line, which no peer can change, names server and attempt, and the target's own order has written down which
files of them come and how large they may be; nothing else is written. With `base <sha256>` it writes that base image
to its peer instead, and leaves. What an earlier conversation has left there is kept, so only one receiver at a time may
write: a newer one ends the older, which has lost its source. It imports little, because it starts while an operator
waits.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import stat
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whimbrel.agent.directories import HostDirectories, free_bytes, read_manifest, write_durably, write_manifest
from whimbrel.agent.disks.frames import (
    BLOCK,
    CACHE,
    DATA,
    LENGTH,
    MEMORY,
    MESSAGE,
    NOT_HERE,
    PACKED,
    PROBE,
    RECEIVED,
    SHA256,
    VERSION,
    ZERO,
    content_of,
    message,
)
from whimbrel.agent.disks.holder import become_only, lock
from whimbrel.agent.disks.incoming import Incoming
from whimbrel.agent.disks.inlet import Gone, Inlet
from whimbrel.agent.disks.landing import Landing
from whimbrel.agent.disks.table import Table
from whimbrel.domain.errors import StepError

IDLE_WITHIN = 900.0
"""Seconds to wait for the next frame of a copy: between the rounds and the rest the guest takes its time to stop."""

ACKNOWLEDGE_EVERY = 8 << 20

TABLE_PART = 1000
"""Digests in one answer."""


class Receiver:
    """The conversation with one source."""

    def __init__(self, host: str, root: Path, of: tuple[str, str], inlet: Inlet, outlet: int) -> None:
        self._host, self._root = host, root
        self._server, self._attempt = of
        self._receives: dict[str, int] = {}
        self._directories = HostDirectories(root)
        self._inlet, self._outlet = inlet, outlet
        self._written = self._acknowledged = 0
        self._files: dict[str, Incoming] = {}
        self._landing = Landing()
        self._current: Incoming | None = None

    def run(self) -> None:
        """Talk until the copy is whole or the source is gone; a fault is answered in one sentence."""
        try:
            self._converse()
        except Gone:
            return
        except StepError as error:
            self._answer({"error": f"{self._host}: {error}"})
        except OSError as error:
            self._answer({"error": self._fault(error)})

    def _converse(self) -> None:
        hello = self._expect("hello")
        if hello["hello"] != VERSION:
            raise StepError(f"speaks copy version {VERSION}, the source {hello['hello']}; upgrade the older host.")
        server, attempt = self._server, self._attempt
        if hello.get("memory"):
            self._relay(server, attempt)
            return
        incoming = self._directories.arriving(server, attempt)
        prepared = read_manifest(incoming) is not None
        self._answer(
            {
                "host": self._host,
                "free": free_bytes(self._root),
                "prepared": prepared,
                "probe": self._look(server, attempt) if hello.get("probe") else None,
            }
        )
        self._expect("begin")
        self._inlet.idle = IDLE_WITHIN
        if read_manifest(incoming) is None:
            raise StepError(f"{incoming} was not prepared for attempt {attempt}.")
        directory = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        become_only(directory)
        # Only now that nobody else may write: it may have been shut while this one waited.
        self._receives = (read_manifest(incoming) or {}).get("receives", {})
        (incoming / RECEIVED).unlink(missing_ok=True)
        self._answer({"begun": True, "receives": sorted(self._receives), "unpacks": True})
        try:
            while self._step(directory):
                pass
            for file in self._files.values():
                self._check(file)
            os.fsync(directory)
            files = {name: file.proof() for name, file in self._files.items()}
        finally:
            for file in self._files.values():
                file.close()
        incoming = self._directories.arriving(server, attempt)  # the target may have given it its live name meanwhile
        write_durably(incoming / RECEIVED, json.dumps({"server": server, "attempt": attempt, "files": files}))
        self._answer({"received": {name: file["size"] for name, file in files.items()}})

    def _relay(self, server: str, attempt: str) -> None:
        """Hand a guest's memory to the process that waits for it; the pipe is used once."""
        if not self._directories.is_live(server, attempt):
            raise StepError(f"Attempt {attempt} of server {server} awaits no memory here.")
        pipe = self._directories.live(server) / MEMORY
        try:
            outlet = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StepError(f"Attempt {attempt} of server {server} awaits no memory here any more.") from error
        try:
            if not stat.S_ISFIFO(os.fstat(outlet).st_mode):
                raise StepError(f"{pipe} is no pipe.")
            pipe.unlink()
            self._answer({"host": self._host, "awaited": True})
            self._inlet.idle = IDLE_WITHIN
            while self._pass_on(outlet):
                pass
        finally:
            os.close(outlet)
        self._answer({"received": self._written})

    def _pass_on(self, outlet: int) -> bool:
        """Hand on one frame of memory; return whether more is to come."""
        kind, _, payload = self._inlet.next()
        if kind == MESSAGE:
            if "end" in (content_of(payload) or {}):
                return False
            raise StepError("a message came in the middle of a guest's memory; is the source of another release?")
        if kind != DATA:
            raise StepError("a guest's memory comes as plain data only; is the source of another release?")
        room = select.poll()
        room.register(outlet, select.POLLOUT)
        self._written += len(payload)
        while payload:
            if not room.poll(IDLE_WITHIN * 1000):
                raise StepError("the process that waits for the guest's memory does not take it.")
            with contextlib.suppress(BlockingIOError):
                payload = payload[os.write(outlet, payload) :]
        if self._written - self._acknowledged >= ACKNOWLEDGE_EVERY:
            self._acknowledge()
        return True

    def _step(self, directory: int) -> bool:
        """Take one frame; return whether more are expected."""
        kind, offset, payload = self._inlet.next()
        if kind == MESSAGE:
            return self._do(directory, content_of(payload))
        if self._current is None:
            raise StepError("data came before the name of its file.")
        if kind == ZERO:
            self._current.zero(offset, _length_in(payload))
            return True
        if kind == PACKED:
            payload = self._unpacked(payload)
        if self._current.expect(offset, len(payload)):
            self._landing.put(self._current, offset, self._inlet.buffer, len(payload))
            self._inlet.buffer = self._landing.take()
        else:
            self._current.write(offset, payload)
        self._written += len(payload)
        if self._written - self._acknowledged >= ACKNOWLEDGE_EVERY:
            self._acknowledge()
        return True

    def _unpacked(self, payload: memoryview) -> memoryview:
        """Unpack a payload into the buffer that it came in."""
        from whimbrel.agent.disks.packing import unpack  # few copies need it, and the receiver is to start fast

        try:
            plain = unpack(payload, BLOCK)
        except ValueError as error:
            raise StepError(
                f"A packed piece cannot be unpacked ({error}); is the source of another release?"
            ) from error
        self._inlet.buffer[: len(plain)] = plain
        return self._inlet.buffer[: len(plain)]

    def _do(self, directory: int, content: dict[str, Any] | None) -> bool:
        match content:
            case {"end": _}:
                self._acknowledge()
                return False
            case {"check": _}:
                self._acknowledge()
                self._answer({"checked": {name: self._check(file).digest() for name, file in self._files.items()}})
            case {"table": name}:
                self._tell_table(self._check(self._file(directory, name)))
            case {"file": name, "size": size}:
                self._current = self._file(directory, name)
                self._current.resize(size)
            case _:
                raise StepError("a message came that is no message; is the source of another release?")
        return True

    def _file(self, directory: int, name: object) -> Incoming:
        if name not in self._files:
            if name not in self._receives:
                raise StepError(f"{name!r:.80} was not declared for attempt {self._attempt} of {self._server}.")
            self._files[str(name)] = Incoming(directory, str(name), self._receives[str(name)])
        return self._files[str(name)]

    def _check(self, file: Incoming) -> Table:
        """Read a file back, and say now and then that the reading goes on."""
        read = told = 0

        def step(length: int) -> None:
            nonlocal read, told
            read += length
            if read - told >= ACKNOWLEDGE_EVERY:
                told = read
                self._answer({"read": read})

        return file.check(step)

    def _tell_table(self, table: Table) -> None:
        first = 0
        while True:
            digests = table.digests(first, TABLE_PART)
            first += TABLE_PART
            self._answer({"digests": digests.hex(), "more": first < len(table)})
            if first >= len(table):
                return

    def _acknowledge(self) -> None:
        self._acknowledged = self._written
        self._answer({"written": self._written})

    def _look(self, server: str, attempt: str) -> str | None:
        """Return the content of the source's probe file, None when it is not here: the storage is not shared."""
        for home in (self._directories.sealed(server, attempt), self._directories.live(server)):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(home / PROBE, os.O_RDONLY | os.O_NOFOLLOW)
                with os.fdopen(descriptor, "rb") as file:
                    return file.read(256).decode("ascii", "replace")
        return None

    def _expect(self, word: str) -> dict[str, Any]:
        kind, _, payload = self._inlet.next()
        content = content_of(payload) if kind == MESSAGE else None
        if content is None or word not in content:
            raise StepError(f"expected {word!r}; is the source of another release?")
        return content

    def _answer(self, content: dict[str, Any]) -> None:
        frame = message(content)
        while frame:
            frame = frame[os.write(self._outlet, frame) :]

    def _fault(self, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = free_bytes(self._root) >> 20
            return f"No space left on host {self._host}: {free} MiB free in {self._root}."
        return f"Host {self._host} cannot write in {self._root}: {error.strerror or error}."


def _length_in(payload: memoryview) -> int:
    if len(payload) != LENGTH.size:
        raise StepError("The channel carries something that is not a copy; is the source of another release?")
    length: int = LENGTH.unpack(payload)[0]
    return length


@contextmanager
def shut(incoming: Path) -> Iterator[None]:
    """Let nobody write into an attempt's directory meanwhile, whoever is connected; nor ever again if all goes well.

    After an exception another copy may be tried. StepError if somebody does not end.
    """
    directory = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        lock(directory)
        yield
        manifest = read_manifest(incoming)
        if manifest and manifest.get("receives"):
            write_manifest(incoming, {**manifest, "receives": {}})
    finally:
        os.close(directory)


def write_base(root: Path, sha256: str) -> None:
    """Write a base image of this host to standard output, for a host that is to take over one of its servers."""
    path = root / CACHE / sha256
    if not path.is_file():
        sys.exit(NOT_HERE)
    with path.open("rb") as file:
        while os.sendfile(1, file.fileno(), None, BLOCK):  # None: from where the file stands
            pass


def main() -> None:
    """Receive one copy on standard input and output, or write a base image if the client asked for one."""
    parser = argparse.ArgumentParser(prog="whimbrel-receive", description="Receive the disks of one attempt.")
    parser.add_argument("--config", type=Path, help="the agent's settings file")
    parser.add_argument("--host", help="this host's name, when there is no settings file")
    parser.add_argument("--instances", type=Path, help="the directory of servers, when there is no settings file")
    parser.add_argument("what", nargs=2, help="server and attempt, or `base` and the sha256 of a base image")
    given = parser.parse_args()
    host, root, rate = given.host, given.instances, None
    if given.config:
        agent = tomllib.loads(given.config.read_text(encoding="utf-8"))["agent"]
        host, root = agent["host"], Path(agent.get("instances_dir", "/var/lib/whimbrel/instances"))
        rate = agent.get("receive_rate")
    if not host or not root:
        parser.error("give --config, or --host and --instances")
    first, second = given.what
    try:
        if first != "base":
            Receiver(host, root, (first, second), Inlet(0, rate), 1).run()
        elif SHA256.fullmatch(second):
            write_base(root, second)
        else:
            parser.error("no sha256 is named")
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
