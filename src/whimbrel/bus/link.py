"""One connection to RabbitMQ and all that is on it; this file owns the client library's traps.

- A publish to a missing queue raises only if the channel was opened with `on_return_raises`.
- A lost connection ends waiting calls with CancelledError, as if this process had cancelled them, or, where the
  library knows no cause, with an Exception of no type of its own; `bounded` tells these from all others.
- Heartbeat and connection name go into the URL; as arguments they are not taken everywhere.
- The library's own reconnection is not used: it repairs part by part. Here whatever breaks one part (the
  connection, a channel, a queue that is deleted under its consumer) ends the whole link, and the bus makes
  the next one.
- The library cancels its callbacks with their channel, so they only hand each message over.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPChannelError, ChannelNotFoundEntity, DeliveryError

from whimbrel.bus import queues
from whimbrel.bus.port import Handler
from whimbrel.bus.trust import Disbelieved, Origin, Trust
from whimbrel.domain.errors import BusError, SettingsError
from whimbrel.ops import ids

log = structlog.get_logger(__name__)

CLOSE_GRACE = 2.0
SIGNATURE = "signature"
"""The header with a controller's signature; beside the body, so that the body is the bytes that were signed."""


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


@dataclass(frozen=True)
class Address:
    """Where the broker is, as whom to log in there (`user`), and how to know it; `shown` alone may be shown."""

    url: str
    user: str
    shown: str
    tls: ssl.SSLContext | None


@dataclass(frozen=True)
class _Question:
    queue: str
    answer: asyncio.Future[bytes]


class Link:
    """One connection and all that lives and dies with it; `lost` is set when any part of it broke."""

    def __init__(self, connection: AbstractConnection, user: str, trust: Trust) -> None:
        self.lost = asyncio.Event()
        self.reason = ""
        self._connection = connection
        self._user = user
        self._trust = trust
        self._publisher: AbstractChannel
        self._emitter: AbstractChannel
        self._declared: set[str] = set()
        self._declaring = asyncio.Lock()
        self._attached: dict[Consumer, tuple[AbstractQueue, str]] = {}
        self._answers = queues.answers(ids.new_hex())
        self._questions = count()
        self._asked: dict[str, _Question] = {}

    @classmethod
    async def open(cls, address: Address, trust: Trust) -> Link:
        """Connect and open the channels that everybody shares; a controller also declares what hosts may not."""
        connection = await aio_pika.connect(address.url, ssl_context=address.tls)
        link = cls(connection, address.user, trust)
        connection.close_callbacks.add(lambda _, error: link.fail(f"connection closed: {error!r}"))
        try:
            link._publisher = await link._channel(publisher_confirms=True, on_return_raises=True)
            link._emitter = await link._channel(publisher_confirms=False)
            if trust.host is None:
                for name in (queues.TOPICS_EXCHANGE, queues.REPORTS_EXCHANGE):
                    await link._emitter.declare_exchange(name, aio_pika.ExchangeType.DIRECT, durable=True)
                await link._declare(queues.find(queues.DEAD_LETTERS))
                await link._await_answers()
            else:
                await link._find_controllers()
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
        for question in self._asked.values():
            if not question.answer.done():
                question.answer.set_exception(BusError(f"The connection broke before the answer came ({reason})."))

    def message(self, data: bytes, *, signature: str | None = None, **options: Any) -> aio_pika.Message:
        """Return a message in this process's name, which the broker checks, with the controller's signature if any."""
        headers: dict[str, Any] = {**options.pop("headers", {}), **({SIGNATURE: signature} if signature else {})}
        return aio_pika.Message(data, headers=headers, user_id=self._user, **options)

    async def publish(self, row: queues.Queue, message: aio_pika.Message) -> None:
        """Publish to the queue and wait for the broker's confirmation; a queue that is gone raises."""
        try:
            await self._declare(row)
            exchange = await self._publisher.get_exchange(row.exchange, ensure=False)
            await exchange.publish(message, row.name, mandatory=True)
        except DeliveryError:
            self._declared.discard(row.name)  # deleted or full; the next publish declares it again
            raise
        except AMQPChannelError:
            raise  # the queue exists with other arguments; the link is sound
        except Exception as error:
            if not _is_loss(error):
                raise
            # Publishing on a dead connection fails without an await. Unless the link ends here, a sender that
            # tries again at once would never let the event loop learn of it.
            self.fail(f"a publish failed: {error!r}")
            raise

    async def bury(self, row: queues.Queue, data: bytes, reason: str) -> None:
        """Publish a dead letter; its headers tell which queue it comes from and why."""
        headers = {"queue": row.name, "reason": reason[:1000]}
        letter = self.message(data, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.publish(queues.find(queues.DEAD_LETTERS), letter)

    async def call(self, row: queues.Queue, data: bytes, timeout: float) -> bytes:
        """Publish a question that expires with its asker's patience, and wait for the answer of who was asked."""
        number = str(next(self._questions))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = _Question(row.name, answer)
        try:
            signature = self._trust.sign(row.name, data)
            options = {"correlation_id": number, "reply_to": self._answers, "expiration": timeout}
            await self.publish(row, self.message(data, signature=signature, **options))
            return await answer
        finally:
            del self._asked[number]

    async def answer(self, asker: str, number: str | None, data: bytes) -> None:
        """Send an answer; if the asker has gone, or names a place where no answers are awaited, it is lost."""
        if queues.is_answers(asker):
            exchange = await self._emitter.get_exchange(queues.REPORTS_EXCHANGE, ensure=False)
            await exchange.publish(self.message(data, correlation_id=number), asker, mandatory=False)

    async def emit(self, topic: str, data: bytes) -> None:
        """Publish an event without waiting for anything but room in the socket."""
        exchange = await self._emitter.get_exchange(queues.exchange_of(topic), ensure=False)
        await exchange.publish(self.message(data), topic, mandatory=False)

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
            await queue.bind(queues.exchange_of(consumer.topic), consumer.topic)
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
        """Declare a queue once per link, on a passing channel: a refusal closes the channel it is made on.

        An agent declares its own only; the others, and the way to them, are the controllers' to make.
        """
        host = self._trust.host
        if row.name in self._declared or (host is not None and row.name != queues.agent(host)):
            return
        async with self._declaring:  # a crowd of senders makes one channel, not one each
            if row.name in self._declared:
                return
            async with self._connection.channel(publisher_confirms=False) as channel:
                queue = await channel.declare_queue(row.name, durable=True, arguments=dict(row.arguments))
                if row.exchange != queues.DEFAULT_EXCHANGE:
                    await queue.bind(row.exchange, row.name)
            self._declared.add(row.name)

    async def _find_controllers(self) -> None:
        """Raise BusError while no controller has ever made the exchange that agents write to."""
        try:
            await self._emitter.get_exchange(queues.REPORTS_EXCHANGE, ensure=True)
        except ChannelNotFoundEntity as error:
            raise BusError(f"The exchange {queues.REPORTS_EXCHANGE} is not there yet: start a controller") from error

    async def _await_answers(self) -> None:
        """Make the queue where this link's answers arrive; it goes with the connection."""
        queue = await self._emitter.declare_queue(
            self._answers, exclusive=True, auto_delete=True, arguments=dict(queues.EVENTS_ARGUMENTS)
        )
        await queue.bind(queues.REPORTS_EXCHANGE, self._answers)
        await queue.consume(self._on_answer, no_ack=True)

    async def _on_answer(self, incoming: AbstractIncomingMessage) -> None:
        question = self._asked.get(incoming.correlation_id or "")
        if question is None or question.answer.done():
            return
        try:
            self._trust.check_answer(question.queue, origin_of(incoming, self._answers))
        except Disbelieved as error:
            log.warning("an answer is not believed", reason=str(error))
            return
        question.answer.set_result(incoming.body)


def origin_of(incoming: AbstractIncomingMessage, place: str) -> Origin:
    """Return what is known of a message that was taken from `place` (a queue or a topic).

    A dead letter still bears the name of who sent it first, but whose queue it died in chose where it went then.
    """
    signature = incoming.headers.get(SIGNATURE)
    user = None if "x-death" in incoming.headers else incoming.user_id
    return Origin(place, user, signature if isinstance(signature, str) else None)


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
    except Exception as error:
        if not _is_loss(error):
            raise
        reason = "the connection was lost." if type(error) is Exception else str(error) or repr(error)
        raise BusError(f"{what} failed: {reason}") from error


def _is_loss(error: Exception) -> bool:
    """Say whether the client failed, and not our own code: it alone raises an Exception of no type of its own."""
    return isinstance(error, CONNECTION_EXCEPTIONS) or type(error) is Exception


def complete(url: str, name: str, heartbeat: int, ca_file: str | None) -> Address:
    """Return the address with our connection's options; SettingsError if the URL or the CA file is not one.

    A broker at an amqps URL must show a certificate for its name there, of an authority in `ca_file` or (None) of
    one that this machine trusts.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("amqp", "amqps") or parts.hostname is None:
        raise SettingsError("[broker] url must look like amqp://user:password@host:port/.")
    try:
        tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "amqps" else None
    except OSError as error:
        raise SettingsError(f"Cannot use the CA file {ca_file} of [broker] ca_file: {error}.") from error
    options = dict(parse_qsl(parts.query)) | {"heartbeat": str(heartbeat), "name": name}
    port = parts.port or (5672 if parts.scheme == "amqp" else 5671)
    user = unquote(parts.username) if parts.username else "guest"
    return Address(parts._replace(query=urlencode(options)).geturl(), user, f"{parts.hostname}:{port}", tls)
