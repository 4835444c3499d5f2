"""The target's end of a channel: sshd runs this program (`whimbrel-receive`) as the one command of a host's key.

It writes disks of one prepared attempt into that attempt's incoming directory, and nothing else. Each file is made
anew, so an older receiver that still lives writes into a file that has no name any more. It imports little, because
it starts while an operator waits.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import select
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

from whimbrel.agent.directories import HostDirectories, free_bytes, read_manifest, write_durably
from whimbrel.agent.disks.frames import (
    BLOCK,
    CACHE,
    COMMAND,
    CONFIG_DRIVE,
    DATA,
    HEADER,
    MESSAGE,
    MESSAGE_LIMIT,
    NOT_HERE,
    PROBE,
    RECEIVED,
    SHA256,
    VERSION,
    add_range,
    content_of,
    message,
)
from whimbrel.domain.errors import StepError

IDLE_BEFORE = 2 * 3600.0
"""Seconds to wait for the copy to begin: the guest may wait for a copy slot and then take its time to stop."""

IDLE_WITHIN = 120.0
"""Seconds to wait for the next frame of a copy."""

ACKNOWLEDGE_EVERY = 8 << 20
SYNC_EVERY = 32 << 20
UNSYNCED_LIMIT = 128 << 20
"""A slow disk holds the source back here, so that the last sync never takes longer than the stall limit."""

LARGEST_FILE = 1 << 60
"""Bytes; what a file system can hold is less."""

_FILE = re.compile(r"disk-[0-9]{1,3}|" + re.escape(CONFIG_DRIVE))


class Gone(Exception):
    """The source closed the channel or fell silent; there is nobody to tell."""


class Inlet:
    """Frames from the source, each awaited for a bounded time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._header = bytearray(HEADER.size)
        self._payload = bytearray(BLOCK)
        self.idle = IDLE_BEFORE

    def next(self) -> tuple[int, int, memoryview]:
        """Return (kind, offset, payload) of the next frame; the payload is valid until the next call. Raise Gone."""
        self._fill(memoryview(self._header))
        kind, length, offset = HEADER.unpack(self._header)
        if kind not in (MESSAGE, DATA) or length > (BLOCK if kind == DATA else MESSAGE_LIMIT):
            raise StepError("The channel carries something that is not a copy; is the source of another release?")
        payload = memoryview(self._payload)[:length]
        self._fill(payload)
        return kind, offset, payload

    def _fill(self, view: memoryview) -> None:
        while view:
            if not self._poll.poll(self.idle * 1000):
                raise Gone
            got = os.readv(self._descriptor, [view])
            if got == 0:
                raise Gone
            view = view[got:]


class Incoming:
    """One file that is being received. Synced in the background, so that the last sync has little left to do."""

    def __init__(self, directory: int, name: str, size: int) -> None:
        if not _FILE.fullmatch(name):
            raise StepError(f"{name!r} is no name of a server's disk.")
        self.name, self.size = name, size
        self.ranges: list[list[int]] = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self._descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        os.ftruncate(self._descriptor, size)
        self._unsynced = 0
        self._syncing: threading.Thread | None = None
        self._failure: OSError | None = None

    def write(self, offset: int, data: memoryview) -> None:
        """Write one block at its place."""
        if offset + len(data) > self.size:
            raise StepError(f"{self.name} was said to have {self.size} bytes, and more came.")
        add_range(self.ranges, offset, len(data))
        self._unsynced += len(data)
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]
        if self._unsynced >= UNSYNCED_LIMIT and self._syncing:
            self._syncing.join()
        if self._unsynced >= SYNC_EVERY and not (self._syncing and self._syncing.is_alive()):
            self._unsynced = 0
            self._syncing = threading.Thread(target=self._sync)
            self._syncing.start()

    def finish(self) -> dict[str, Any]:
        """Wait until everything is on the disk; return what the file is made of."""
        if self._syncing:
            self._syncing.join()
        self._sync()
        os.close(self._descriptor)
        if self._failure:
            raise self._failure
        return {"size": self.size, "ranges": self.ranges}

    def _sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failure = error  # a failed sync is reported once by the kernel, so it is kept


class Receiver:
    """The conversation with one source."""

    def __init__(self, host: str, root: Path, inlet: Inlet, outlet: int) -> None:
        self._host, self._root = host, root
        self._directories = HostDirectories(root)
        self._inlet, self._outlet = inlet, outlet
        self._written = self._acknowledged = 0
        self._files: dict[str, dict[str, Any]] = {}
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
        server, attempt = str(hello.get("server")), str(hello.get("attempt"))
        incoming = self._directories.incoming(server, attempt)
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
        (incoming / RECEIVED).unlink(missing_ok=True)
        self._answer({"begun": True})
        while self._step(directory):
            pass
        record = {"server": server, "attempt": attempt, "files": self._files}
        write_durably(incoming / RECEIVED, json.dumps(record))
        self._answer({"received": {name: file["size"] for name, file in self._files.items()}})

    def _step(self, directory: int) -> bool:
        """Take one frame; return whether more are expected."""
        kind, offset, payload = self._inlet.next()
        if kind == DATA:
            if self._current is None:
                raise StepError("data came before the name of its file.")
            self._current.write(offset, payload)
            self._written += len(payload)
            if self._written - self._acknowledged >= ACKNOWLEDGE_EVERY:
                self._acknowledged = self._written
                self._answer({"written": self._written})
            return True
        self._finish_current()
        content = content_of(payload)
        if content is None:
            raise StepError("a message came that is no message; is the source of another release?")
        if content.get("end"):
            return False
        size = content.get("size")
        if not isinstance(size, int) or not 0 <= size <= LARGEST_FILE:
            raise StepError(f"{content.get('file')!r:.80} cannot have {size!r:.80} bytes.")
        self._current = Incoming(directory, str(content.get("file")), size)
        return True

    def _finish_current(self) -> None:
        if self._current is not None:
            self._files[self._current.name] = self._current.finish()
            self._current = None
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
    given = parser.parse_args()
    host, root = given.host, given.instances
    if given.config:
        agent = tomllib.loads(given.config.read_text(encoding="utf-8"))["agent"]
        host, root = agent["host"], Path(agent.get("instances_dir", "/var/lib/whimbrel/instances"))
    if not host or not root:
        parser.error("give --config, or --host and --instances")
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "").removeprefix(f"{COMMAND} base ")
    try:
        if SHA256.fullmatch(asked):
            write_base(root, asked)
        else:
            Receiver(host, root, Inlet(0), 1).run()
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
