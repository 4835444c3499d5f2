"""One connection to RabbitMQ and all that is on it; this file owns the client library's traps.

- A publish to a missing queue raises only if the channel was opened with `on_return_raises`.
- A lost connection ends waiting calls with CancelledError, as if this process had cancelled them; `bounded`
  tells the two apart.
- Heartbeat and connection name go into the URL; as arguments they are not taken everywhere.
- The library's own reconnection is not used: it repairs part by part. Here whatever breaks one part (the
  connection, a channel, a queue that is deleted under its consumer) ends the whole link, and the bus makes
  the next one.
- The library cancels its callbacks with their channel, so they only hand each message over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPChannelError, DeliveryError

from whimbrel.bus import queues
from whimbrel.bus.port import Handler
from whimbrel.domain.errors import BusError, SettingsError

CLOSE_GRACE = 2.0
REPLY_QUEUE = "amq.rabbitmq.reply-to"


@dataclass(frozen=True, eq=False)
class Consumer:
    """A wish that outlives every link: to read a queue or, if `queue` is None, the events of a topic."""

    handler: Handler
    prefetch: int
    queue: queues.Queue | None = None
    topic: str = ""

    def __str__(self) -> str:
        return self.queue.name if self.queue is not None else f"topic {self.topic}"


OnMessage = Callable[["Link", Consumer, AbstractIncomingMessage], None]


class Link:
    """One connection and all that lives and dies with it; `lost` is set when any part of it broke."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.lost = asyncio.Event()
        self.reason = ""
        self._connection = connection
        self._publisher: AbstractChannel
        self._emitter: AbstractChannel
        self._declared: set[str] = set()
        self._attached: dict[Consumer, tuple[AbstractQueue, str]] = {}
        self._questions = count()
        self._asked: dict[str, asyncio.Future[bytes]] = {}

    @classmethod
    async def open(cls, url: str) -> Link:
        """Connect and open the channels that everybody shares."""
        connection = await aio_pika.connect(url)
        link = cls(connection)
        connection.close_callbacks.add(lambda _, error: link.fail(f"connection closed: {error!r}"))
        try:
            link._publisher = await link._channel(publisher_confirms=True, on_return_raises=True)
            link._emitter = await link._channel(publisher_confirms=False)
            await link._emitter.declare_exchange(queues.TOPICS_EXCHANGE, aio_pika.ExchangeType.DIRECT, durable=True)
            await link._declare(queues.find(queues.DEAD_LETTERS))
            replies = await link._publisher.get_queue(REPLY_QUEUE, ensure=False)
            await replies.consume(link._on_answer, no_ack=True)
        except BaseException:
            await link.close()
            raise
        return link

    def fail(self, reason: str) -> None:
        """End the link; whoever waits for an answer is told."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(BusError(f"The connection broke before the answer came ({reason})."))

    async def publish(self, row: queues.Queue, message: aio_pika.Message) -> None:
        """Publish to the queue and wait for the broker's confirmation; a queue that is gone raises."""
        try:
            await self._declare(row)
            await self._publisher.default_exchange.publish(message, row.name, mandatory=True)
        except DeliveryError:
            self._declared.discard(row.name)  # deleted or full; the next publish declares it again
            raise
        except AMQPChannelError:
            raise  # the queue exists with other arguments; the link is sound
        except CONNECTION_EXCEPTIONS as error:
            # Publishing on a dead connection fails without an await. Unless the link ends here, a sender that
            # tries again at once would never let the event loop learn of it.
            self.fail(f"a publish failed: {error!r}")
            raise

    async def bury(self, row: queues.Queue, data: bytes, reason: str) -> None:
        """Publish a dead letter; its headers tell which queue it comes from and why."""
        headers: dict[str, Any] = {"queue": row.name, "reason": reason[:1000]}
        letter = aio_pika.Message(data, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.publish(queues.find(queues.DEAD_LETTERS), letter)

    async def call(self, row: queues.Queue, data: bytes, timeout: float) -> bytes:
        """Publish a question that expires with its asker's patience, and wait for the answer."""
        number = str(next(self._questions))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            question = aio_pika.Message(data, correlation_id=number, reply_to=REPLY_QUEUE, expiration=timeout)
            await self.publish(row, question)
            return await answer
        finally:
            del self._asked[number]

    async def answer(self, asker: str, number: str | None, data: bytes) -> None:
        """Send an answer; if the asker has gone it is lost."""
        await self._emitter.default_exchange.publish(
            aio_pika.Message(data, correlation_id=number), asker, mandatory=False
        )

    async def emit(self, topic: str, data: bytes) -> None:
        """Publish an event without waiting for anything but room in the socket."""
        exchange = await self._emitter.get_exchange(queues.TOPICS_EXCHANGE, ensure=False)
        await exchange.publish(aio_pika.Message(data), topic, mandatory=False)

    async def attach(self, consumer: Consumer, on_message: OnMessage) -> None:
        """Start consuming on a channel of the consumer's own, unless this link does already."""
        if consumer in self._attached:
            return
        channel = await self._channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=consumer.prefetch)
        if consumer.queue is not None:
            await self._declare(consumer.queue)
            queue = await channel.get_queue(consumer.queue.name, ensure=False)
        else:
            queue = await channel.declare_queue(
                exclusive=True, auto_delete=True, arguments=dict(queues.EVENTS_ARGUMENTS)
            )
            await queue.bind(queues.TOPICS_EXCHANGE, consumer.topic)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: self.fail(f"queue {queue.name} was deleted"))

        async def receive(incoming: AbstractIncomingMessage) -> None:
            on_message(self, consumer, incoming)

        self._attached[consumer] = (queue, await queue.consume(receive))

    async def stop_consuming(self) -> None:
        """Ask the broker for no more messages; those that run can still be acknowledged."""
        with contextlib.suppress(BusError):
            async with bounded("Ending the consumers", CLOSE_GRACE):
                for queue, tag in self._attached.values():
                    await queue.cancel(tag)

    async def consumer_count(self, name: str) -> int:
        """Return how many consumers the broker sees at the queue."""
        async with self._connection.channel(publisher_confirms=False) as channel:
            queue = await channel.declare_queue(name, passive=True)
            return queue.declaration_result.consumer_count or 0

    async def message_count(self, row: queues.Queue) -> int:
        """Return how many messages wait in the queue."""
        await self._declare(row)
        async with self._connection.channel(publisher_confirms=False) as channel:
            queue = await channel.declare_queue(row.name, passive=True)
            return queue.declaration_result.message_count or 0

    async def close(self) -> None:
        """Disconnect, within 2 s even if the broker does not answer."""
        self.fail("closed here")
        with contextlib.suppress(BusError):
            async with bounded("Disconnecting", CLOSE_GRACE):
                await self._connection.close()

    async def _channel(self, **options: Any) -> AbstractChannel:
        channel = self._connection.channel(**options)
        await channel.initialize()
        channel.close_callbacks.add(lambda _, error: self.fail(f"channel closed: {error!r}"))
        return channel

    async def _declare(self, row: queues.Queue) -> None:
        """Declare a queue once per link, on a passing channel: a refusal closes the channel it is made on."""
        if row.name in self._declared:
            return
        async with self._connection.channel(publisher_confirms=False) as channel:
            await channel.declare_queue(row.name, durable=True, arguments=dict(row.arguments))
        self._declared.add(row.name)

    async def _on_answer(self, incoming: AbstractIncomingMessage) -> None:
        future = self._asked.get(incoming.correlation_id or "")
        if future is not None and not future.done():
            future.set_result(incoming.body)


@contextlib.asynccontextmanager
async def bounded(what: str, seconds: float) -> AsyncIterator[None]:
    """Bound what is inside by a deadline, and turn every way in which the client can fail into BusError."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BusError(f"{what} was not completed within {seconds:g} s; is RabbitMQ there?") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BusError(f"{what} failed: the connection was lost.") from error
    except CONNECTION_EXCEPTIONS as error:
        raise BusError(f"{what} failed: {str(error) or repr(error)}") from error


def complete(url: str, name: str, heartbeat: int) -> tuple[str, str]:
    """Return the URL with our connection's options, and the address in it, which alone may be shown."""
    parts = urlsplit(url)
    if parts.scheme not in ("amqp", "amqps") or parts.hostname is None:
        raise SettingsError("[broker] url must look like amqp://user:password@host:port/.")
    options = dict(parse_qsl(parts.query)) | {"heartbeat": str(heartbeat), "name": name}
    port = parts.port or (5672 if parts.scheme == "amqp" else 5671)
    return parts._replace(query=urlencode(options)).geturl(), f"{parts.hostname}:{port}"
