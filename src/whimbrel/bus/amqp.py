"""The bus over RabbitMQ: casts with confirms, calls, events, and consumers that outlive every connection.

One loop keeps a `Link`: when it is lost, with everything on it, the next one is made and all consumers are put
back, for ever, with a bounded pause. Nothing else repairs anything.
"""

from __future__ import annotations

import asyncio
import zlib

import structlog
from aio_pika import DeliveryMode
from aio_pika.abc import AbstractIncomingMessage

from whimbrel.bus import queues
from whimbrel.bus.codec import Codec, current_context
from whimbrel.bus.delivery import Failed, Handled, Hopeless, Receiver, deliver, open_answer
from whimbrel.bus.link import CLOSE_GRACE, Consumer, Link, bounded, complete, origin_of
from whimbrel.bus.port import PREFETCH, Handler, Timing
from whimbrel.bus.queues import Queue
from whimbrel.bus.trust import Trust
from whimbrel.domain.errors import BusError

log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
EVENT_DEADLINE = 1.0
EVENTS_PREFETCH = 64


class AmqpBus:
    """The port `Bus` over RabbitMQ; `name` is shown in the broker's list of connections."""

    def __init__(
        self, url: str, codec: Codec, *, name: str, timing: Timing | None = None, trust: Trust | None = None,
        ca_file: str | None = None,
    ) -> None:  # fmt: skip
        self._timing = timing or Timing()
        self._address = complete(url, name, self._timing.heartbeat, ca_file)
        self.address, self.user = self._address.shown, self._address.user
        self._codec = codec
        self._trust = trust or Trust()
        self._receiver = Receiver(codec, self._trust)
        # Thousands of agents lose a broker in the same instant; each comes back at a moment of its own.
        self._spread = 0.75 + zlib.crc32(name.encode()) % 1000 / 2000
        self._consumers: list[Consumer] = []
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._last_error: BusError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect; BusError, naming the address and the remedy, if that does not succeed in time."""
        self._keeper = asyncio.create_task(self._keep_linked(), name="bus link")
        try:
            await asyncio.wait_for(self._linked.wait(), self._timing.start)
        except TimeoutError:
            await self.close()
            raise BusError(
                f"RabbitMQ at {self.address} could not be used within {self._timing.start:g} s "
                f"({self._last_error}); start it, or correct [broker] url in the settings."
            ) from self._last_error

    async def close(self) -> None:
        """Stop consuming, give running handlers 2 s, and disconnect; what was not handled comes again."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        link = self._link
        self._drop_link()
        if link is not None:
            await link.stop_consuming()
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_GRACE)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if link is not None:
            await link.close()

    async def cast(self, queue: str, message: object) -> None:
        """Return once the broker holds the message durably; BusError if it did not say so in time."""
        data = self._codec.encode(message, current_context())
        row = queues.writable(queue, self._trust.host)
        signature = self._trust.sign(queue, data)
        async with bounded(f"A message to {queue} by {self.address}", self._timing.confirm):
            link = await self._current_link()
            message = link.message(data, signature=signature, delivery_mode=DeliveryMode.PERSISTENT)
            await link.publish(row, message)

    async def call(self, queue: str, message: object, *, timeout: float) -> object:
        """Return the handler's answer; BusError after `timeout` seconds, or if the handler refused."""
        data = self._codec.encode(message, current_context())
        row = queues.writable(queue, self._trust.host)
        async with bounded(f"A call to {queue} by {self.address}", timeout):
            link = await self._current_link()
            answer = await link.call(row, data, timeout)
        return open_answer(self._codec, answer, queue)

    async def emit(self, topic: str, message: object) -> None:
        """Tell whoever listens now; lost without a word if nobody does or the broker is away."""
        data = self._codec.encode(message, current_context())
        queues.exchange_of(topic, self._trust.host)
        link = self._link
        if link is None:
            return
        try:
            async with bounded(f"An event {topic}", EVENT_DEADLINE):
                await link.emit(topic, data)
        except BusError as error:
            log.debug("an event was lost", topic=topic, reason=str(error))

    async def consume(self, queue: str, handler: Handler, *, prefetch: int = PREFETCH) -> None:
        """Give each message of the queue to `handler`, now and on every later connection."""
        await self._add(Consumer(handler, prefetch, queue=queues.readable(queue, self._trust.host)))

    async def subscribe(self, topic: str, handler: Handler) -> None:
        """Give each event of the topic to `handler`, now and on every later connection."""
        if self._trust.host is not None:
            raise BusError(f"The agent of {self._trust.host} may not listen to {topic}.")
        await self._add(Consumer(handler, EVENTS_PREFETCH, topic=topic))

    async def waiting(self, queue: str) -> int:
        """Return how many messages wait in the queue; BusError if the broker does not say so in time."""
        row = queues.find(queue)
        async with bounded(f"The length of {queue} at {self.address}", self._timing.confirm):
            return await (await self._current_link()).message_count(row)

    def healthy(self) -> bool:
        """Say whether there is a connection with every consumer in place."""
        return self._link is not None and not self._link.lost.is_set()

    async def probe(self) -> None:
        """Raise BusError if the broker is there but does not see our consumers: only a restart is left.

        A broker that is away, or does not answer, is no reason to restart: the link is made anew instead.
        """
        if self._keeper is not None and self._keeper.done():
            raise BusError("The bus does not connect any more; this process must be restarted.")
        link = self._link
        if link is None or link.lost.is_set():
            return
        for row in [consumer.queue for consumer in self._consumers if consumer.queue is not None]:
            try:
                async with bounded(f"The count of consumers of {row.name}", self._timing.confirm):
                    seen = await link.consumer_count(row.name)
            except BusError as error:
                link.fail(str(error))
                return
            if seen < 1 and not link.lost.is_set():
                raise BusError(f"RabbitMQ sees no consumer of {row.name}; this process must be restarted.")

    async def _add(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)
        if self._keeper is None:
            return  # `start` attaches it
        async with bounded(f"Consuming {consumer} from {self.address}", self._timing.confirm):
            link = await self._current_link()
            try:
                await link.attach(consumer, self._on_message)
            except BaseException:
                link.fail("a consumer could not be attached")  # the next link tries again
                raise

    async def _current_link(self) -> Link:
        while self._link is None or self._link.lost.is_set():
            if self._keeper is None:
                raise BusError("The bus is closed, or was not started.")
            self._drop_link()
            await self._linked.wait()
        return self._link

    def _drop_link(self) -> None:
        self._link = None
        self._linked.clear()

    async def _keep_linked(self) -> None:
        """Make a link whenever there is none, for ever; only `close` ends this."""
        pause = FIRST_PAUSE
        while True:
            try:
                link = await self._make_link()
            except BusError as error:
                self._last_error = error
                log.warning("no connection to RabbitMQ", reason=str(error), retry_after=pause)
                await asyncio.sleep(pause * self._spread)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            log.info("connected to RabbitMQ", address=self.address, consumers=len(self._consumers))
            await link.lost.wait()
            self._drop_link()
            log.warning("the connection to RabbitMQ broke", address=self.address, reason=link.reason)
            await link.close()
            pause = FIRST_PAUSE
            await asyncio.sleep(pause * self._spread)

    async def _make_link(self) -> Link:
        async with bounded(f"The connection to {self.address}", self._timing.confirm):
            link = await Link.open(self._address, self._trust)
        try:
            # A consumer that is added meanwhile is met by this loop too: there is no await after it.
            for consumer in self._consumers:
                async with bounded(f"Consuming {consumer} from {self.address}", self._timing.confirm):
                    await link.attach(consumer, self._on_message)
        except BaseException:
            await link.close()
            raise
        self._link = link
        self._linked.set()
        return link

    def _on_message(self, link: Link, consumer: Consumer, incoming: AbstractIncomingMessage) -> None:
        """Start the handler in a task that outlives the channel; `prefetch` bounds how many there are."""
        task = asyncio.create_task(self._handle(link, consumer, incoming))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, link: Link, consumer: Consumer, incoming: AbstractIncomingMessage) -> None:
        asker, row = incoming.reply_to, consumer.queue
        origin = origin_of(incoming, row.name if row is not None else consumer.topic)
        outcome = await deliver(self._receiver, consumer.handler, incoming.body, origin, asked=asker is not None)
        try:
            async with bounded(f"The acknowledgement to {self.address}", self._timing.confirm):
                match outcome:
                    case Handled(answer):
                        if asker is not None and answer is not None:
                            await link.answer(asker, incoming.correlation_id, answer)
                        await incoming.ack()
                    case Hopeless(reason) if row is not None:
                        await self._give_up(link, row, incoming, reason)
                    case Failed(reason) if row is not None:
                        await self._return(link, row, incoming, reason)
                    case Hopeless(reason) | Failed(reason):
                        log.warning("an event was not handled", topic=consumer.topic, reason=reason)
                        await incoming.ack()
        except BusError as error:
            log.info("the broker will deliver a message again", reason=str(error))

    async def _return(self, link: Link, row: Queue, incoming: AbstractIncomingMessage, reason: str) -> None:
        """Put a message back after a pause, as often as its queue allows."""
        # Quorum queues count the deliveries, and compare with their limit; classic ones only know "again".
        deliveries = _count(incoming.headers.get("x-delivery-count"))
        if deliveries >= row.redeliveries or (not row.quorum and incoming.redelivered):
            await self._give_up(link, row, incoming, reason)
            return
        await asyncio.sleep(min(self._timing.retry_pause * 4**deliveries, LONGEST_PAUSE))
        await incoming.reject(requeue=True)

    async def _give_up(self, link: Link, row: Queue, incoming: AbstractIncomingMessage, reason: str) -> None:
        """Move a message to the dead letters; only when the broker holds it there does it leave its queue."""
        log.error("a message became a dead letter", queue=row.name, reason=reason)
        await link.bury(row, incoming.body, reason)
        await incoming.ack()


def _count(header: object) -> int:
    return header if isinstance(header, int) else 0
