"""What a process may ask of the bus, whichever transport is beneath.

The bus promises little, on purpose: a cast that was confirmed is delivered at least once; it may come twice,
late or out of order. Durability is the outbox's job at the sender and the ledger's at the receiver.

Handlers of one consumer start in the order of arrival, up to `prefetch` at a time, so only `prefetch=1` keeps
the order of their effects. A message is acknowledged after its handler returned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

Handler = Callable[[object], Awaitable[object | None]]

PREFETCH = 16


@dataclass(frozen=True)
class Timing:
    """How long the bus waits, in seconds.

    `start` bounds the first connection, `confirm` each operation that the broker must confirm. A broker that
    was silent for about three heartbeats is taken for lost. `retry_pause` comes before the first redelivery of
    a message whose handler failed; before each further one it is four times as long.
    """

    start: float = 30.0
    confirm: float = 10.0
    heartbeat: int = 10
    retry_pause: float = 0.2


class Bus(Protocol):
    """Durable casts, calls with one answer, and events that may be lost."""

    async def start(self) -> None:
        """Connect; BusError, naming the address and the remedy, if that does not succeed in time."""

    async def close(self) -> None:
        """Stop consuming, give running handlers a moment to end, and disconnect."""

    async def cast(self, queue: str, message: object) -> None:
        """Return once the broker holds the message durably; BusError if it did not say so in time."""

    async def call(self, queue: str, message: object, *, timeout: float) -> object:
        """Return the handler's answer; BusError after `timeout` seconds, or if the handler refused."""

    async def emit(self, topic: str, message: object) -> None:
        """Tell whoever listens now; lost without a word if nobody does or the broker is away."""

    async def consume(self, queue: str, handler: Handler, *, prefetch: int = PREFETCH) -> None:
        """Give each message of the queue to `handler`; what it returns answers a call.

        A handler that raises gets the message again, as often as the queue's row allows; then it becomes a
        dead letter. A call is not repeated: its asker is told the reason.
        """

    async def subscribe(self, topic: str, handler: Handler) -> None:
        """Give each event of the topic to `handler` from now on; the oldest are dropped if it is too slow."""

    async def waiting(self, queue: str) -> int:
        """Return how many messages wait in the queue; BusError if the broker does not say so in time."""

    def healthy(self) -> bool:
        """Say whether the bus is connected and every consumer is in place."""

    async def probe(self) -> None:
        """Ask the broker whether it sees our consumers; BusError means that this process should restart."""
