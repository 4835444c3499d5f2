"""HTTP connections with an end to the server's patience: a place is not held by whoever sends a request very slowly.

Uvicorn closes a connection that is idle between requests, but waits for ever for the end of a request's head, and
takes a head of any length. Bodies have their bounds where they are read (`validation`, image uploads).
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
"""From the connection, or from the first byte of a later request, to the end of its head."""

MAX_HEAD_BYTES = 64 * 1024


class PatientProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, with a deadline and a bound for the head of each request."""

    _deadline: asyncio.TimerHandle | None = None
    _heads = 0
    _head_bytes = 0
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        self._begin_to_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._end_to_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a head that is too long, or is not whole in time, ends the connection."""
        heads, was_in_body = self._heads, self._in_body
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not was_in_body and heads == self._heads:
            # All of it is of a head that has not ended yet.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            # A later request, or what is left of a body that was answered early: uvicorn waits no more.
            self._begin_to_wait()

    def on_headers_complete(self) -> None:
        """The head is whole: the application begins."""
        self._end_to_wait()
        self._heads += 1
        self._head_bytes = 0
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole: what comes next is a head."""
        self._in_body = False
        super().on_message_complete()

    def _begin_to_wait(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_to_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
