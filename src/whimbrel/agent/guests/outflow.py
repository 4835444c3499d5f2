"""The memory of a guest on its way from its QEMU, through a socket of this agent, to the channel."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

from whimbrel.agent.directories import in_words
from whimbrel.agent.disks.frames import BLOCK
from whimbrel.agent.disks.pace import Pace
from whimbrel.agent.disks.session import TURN, Session
from whimbrel.agent.guests.libvirt import qemu_processes
from whimbrel.domain.errors import StepError, TimedOut
from whimbrel.migration.ports import Control
from whimbrel.ops import clock

STRANGERS = 20
"""Connections that are sent away before a move is given up."""

COMES_WITHIN = 10.0
"""Seconds in which QEMU connects."""

SILENT = 30.0
"""Seconds without a byte after which the way is dead; turns that a limit of speed gives are not counted."""

_PEER = struct.Struct("=iII")
"""Process, user and group at the other end of a socket."""


class Outflow:
    """What one guest sends: its QEMU connects to `path`, and a thread hands the bytes on."""

    def __init__(self, server: str, session: Session, path: Path) -> None:
        self._server, self._session, self._path = server, session, path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread: threading.Thread | None = None
        self._failure: StepError | None = None
        self._moved: float | None = clock.monotonic()
        """When something moved last; None while the next piece waits for its turn."""
        self.bytes = 0
        self.held_at: float | None = None
        """When the guest was held so that its memory stays as it is while it crosses, seconds since the epoch."""

    def begin(self, pace: Pace, control: Control) -> None:
        """Listen, and hand on what comes."""
        self._path.unlink(missing_ok=True)
        with in_words("listen at", self._path):
            self._listener.bind(str(self._path))
            self._path.chmod(0o666)  # the hypervisor may run as another user; who it is, is looked at
            self._listener.listen(1)
            self._listener.settimeout(COMES_WITHIN)
        self._thread = threading.Thread(target=self._pump, args=(pace, control), daemon=True)
        self._thread.start()

    def check(self, *, moving: bool) -> None:
        """Raise StepError if it failed, or if QEMU says that it is sending and nothing moves any more."""
        if self._failure is not None:
            raise self._failure
        if moving and self._moved is not None and clock.monotonic() - self._moved > SILENT:
            raise TimedOut(
                f"Nothing of the memory of server {self._server} has moved for {SILENT:g} s; the other host or the way "
                f"to it is silent."
            )

    def end(self, control: Control) -> None:
        """Wait until all of it was handed on, and the target has said so; QEMU has closed its end."""
        assert self._thread is not None
        while self._thread.is_alive():
            self._thread.join(TURN)
            control.check()
        if self._failure is not None:
            raise self._failure
        self._session.tell({"end": True}, control)
        received = self._session.hear("received", control)["received"]
        if received != self.bytes:
            raise StepError(f"{self.bytes} bytes of memory were sent, and {received} came.")

    def close(self) -> None:
        """Hand on no more."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        self._session.end()
        if self._thread is not None:
            self._thread.join(5.0)

    def _pump(self, pace: Pace, control: Control) -> None:
        """Bring what QEMU sends to the channel, until its end; where the channel is slow, QEMU waits."""
        buffer = bytearray(BLOCK)
        try:
            with self._accept() as stream:
                while got := stream.recv_into(buffer):
                    self._moved = None
                    pace.keep(got, control)
                    self._moved = clock.monotonic()
                    self._session.send(0, memoryview(buffer)[:got], control)
                    self.bytes += got
                    self._moved = clock.monotonic()
        except StepError as error:
            self._failure = error
        except OSError as error:
            self._failure = StepError(f"QEMU's memory did not come: {error}.")

    def _accept(self) -> socket.socket:
        """Wait for the guest's own QEMU; whoever else comes is sent away."""
        for _ in range(STRANGERS):
            stream, _ = self._listener.accept()
            pid = _PEER.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
            if pid in qemu_processes(self._server):
                stream.settimeout(None)
                return stream
            stream.close()
        raise StepError(
            f"Others than QEMU connect to where server {self._server} is to send its memory; look who that is."
        )
