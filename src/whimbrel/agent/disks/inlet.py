"""Frames as they come to the far end of a channel, each awaited for a bounded time.

This module imports little, because the receiver of a copy starts with it.
"""

from __future__ import annotations

import os
import select
from threading import Event

from whimbrel.agent.disks.frames import BLOCK, DATA, HEADER, LENGTH, MESSAGE, MESSAGE_LIMIT, PACKED, ZERO
from whimbrel.agent.disks.pace import Limit
from whimbrel.agent.disks.pipes import GATHER, pages, widen
from whimbrel.domain.errors import StepError

IDLE_BEFORE = 2 * 3600.0
"""Seconds to wait for the copy to begin: the guest may wait for a copy slot and then take its time to stop."""

MOST = {MESSAGE: MESSAGE_LIMIT, DATA: BLOCK, ZERO: LENGTH.size, PACKED: BLOCK}
"""The most bytes in a frame of each kind."""

SHORT = 64 << 10
"""Bytes that are taken as they come; of what is longer, more is let come before it is taken."""


class Gone(Exception):
    """The source closed the channel or fell silent; there is nobody to tell."""


class Inlet:
    """Frames from the source, each awaited for a bounded time, and taken at no more than `rate` bytes per second.

    What is not taken waits in the channel, so its sender waits too.
    """

    def __init__(self, descriptor: int, rate: int | None) -> None:
        self._descriptor, self._rate = descriptor, rate
        self._limit = Limit()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._gather = Event()
        self._header = bytearray(HEADER.size)
        (self.buffer,) = pages(BLOCK)
        """Where the next payload goes; whoever keeps one puts another buffer here."""
        self.idle = IDLE_BEFORE
        widen(descriptor)

    def next(self) -> tuple[int, int, memoryview]:
        """Return (kind, offset, payload) of the next frame; the payload is valid until the next call. Raise Gone."""
        self._fill(memoryview(self._header))
        kind, length, offset = HEADER.unpack(self._header)
        if length > MOST.get(kind, -1):
            raise StepError("The channel carries something that is not a copy; is the source of another release?")
        payload = self.buffer[:length]
        self._fill(payload)
        if (delay := self._limit.delay(HEADER.size + length, self._rate)) > 0:
            Event().wait(delay)
        return kind, offset, payload

    def _fill(self, view: memoryview) -> None:
        while view:
            try:
                got = os.readv(self._descriptor, [view])
            except BlockingIOError:
                if not self._poll.poll(self.idle * 1000):
                    raise Gone from None
                if len(view) > SHORT:
                    self._gather.wait(GATHER)
                continue
            if got == 0:
                raise Gone
            view = view[got:]
