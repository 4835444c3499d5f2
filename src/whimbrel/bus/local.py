"""The bus inside one process, for tests and simulation: as honest as RabbitMQ, and as unreliable as asked.

A `LocalBroker` holds what a broker holds. Each process of the simulated world has a `LocalBus` of its own to
it; when one is closed, what it had not acknowledged comes to the next. Messages cross as bytes, through the
same codec, with the name of their sender and a controller's signature as RabbitMQ carries them. `Faults` decides how
often and when each of them arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from whimbrel.bus import queues
from whimbrel.bus.codec import Codec, current_context
from whimbrel.bus.delivery import Failed, Handled, Hopeless, Receiver, deliver, open_answer
from whimbrel.bus.port import PREFETCH, Handler, Timing
from whimbrel.bus.trust import Disbelieved, Origin, Trust
from whimbrel.domain.errors import BusError

log = structlog.get_logger(__name__)

CLOSE_GRACE = 2.0
LONGEST_PAUSE = 5.0
CONTROLLER = "controller"
"""The user that every process has which is no host's agent."""


class Faults(Protocol):
    """What the transport does to messages; a simulation gives its own."""

    def fate(self, destination: str, data: bytes) -> Sequence[float]:
        """Return the delay of each copy, in seconds: `(0,)` is well, `()` loses, `(0, 0.5)` doubles.

        `destination` is a queue, a topic or `answer`. A BusError raised here is the sender's.
        """


class NoFaults:
    """Everything arrives once and at once."""

    def fate(self, destination: str, data: bytes) -> Sequence[float]:
        """Return one copy without delay."""
        return (0.0,)


@dataclass(frozen=True)
class DeadLetter:
    """A message that no handler could take."""

    queue: str
    data: bytes
    reason: str


Asker = Callable[[bytes, str], None]
"""Takes an answer and the user who gave it."""


@dataclass
class _Letter:
    data: bytes
    origin: Origin
    asker: Asker | None = None
    deliveries: int = 0


@dataclass
class _Events:
    """One subscription: the oldest events go first when it is full."""

    letters: asyncio.Queue[_Letter] = field(default_factory=lambda: asyncio.Queue(queues.EVENTS_LENGTH))

    def put(self, letter: _Letter) -> None:
        if self.letters.full():
            self.letters.get_nowait()
        self.letters.put_nowait(letter)


class LocalBroker:
    """The queues, subscriptions and dead letters that all buses of one simulated world share."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults: Faults = faults or NoFaults()
        self.dead_letters: deque[DeadLetter] = deque(maxlen=queues.find(queues.DEAD_LETTERS).max_length)
        self.topics: dict[str, list[_Events]] = {}
        self._queues: dict[str, asyncio.Queue[_Letter]] = {}

    def queue(self, row: queues.Queue) -> asyncio.Queue[_Letter]:
        """Return the queue of that row; it exists from the first use on."""
        return self._queues.setdefault(row.name, asyncio.Queue(row.max_length))

    def send(self, row: queues.Queue, data: bytes, origin: Origin, asker: Asker | None = None) -> None:
        """Put as many copies as the faults want into the queue; BusError if it is full."""
        queue = self.queue(row)
        if queue.full():
            raise BusError(f"{row.name} is full with {row.max_length} messages.")
        for delay in self.faults.fate(row.name, data):
            self._after(delay, queue, _Letter(data, origin, asker))

    def tell(self, topic: str, data: bytes, user: str) -> None:
        """Give an event to every subscription of the topic."""
        origin = Origin(topic, user)
        for delay in self.faults.fate(topic, data):
            for events in self.topics.get(topic, ()):
                if delay > 0:
                    asyncio.get_running_loop().call_later(delay, events.put, _Letter(data, origin))
                else:
                    events.put(_Letter(data, origin))

    def reply(self, asker: Asker, data: bytes, user: str) -> None:
        """Answer a call, unless the faults lose it or the asker has gone."""
        for delay in self.faults.fate("answer", data)[:1]:
            asyncio.get_running_loop().call_later(delay, asker, data, user)

    def bury(self, row: queues.Queue, letter: _Letter, reason: str) -> None:
        """Keep a letter that nobody could take."""
        log.error("a message became a dead letter", queue=row.name, reason=reason)
        self.dead_letters.append(DeadLetter(row.name, letter.data, reason))

    def _after(self, delay: float, queue: asyncio.Queue[_Letter], letter: _Letter) -> None:
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, _put, queue, letter)
        else:
            _put(queue, letter)


class LocalBus:
    """The port `Bus` to a `LocalBroker`."""

    def __init__(
        self, broker: LocalBroker, codec: Codec, *, timing: Timing | None = None, trust: Trust | None = None
    ) -> None:
        self._broker = broker
        self._codec = codec
        self._trust = trust or Trust()
        self._user = CONTROLLER if self._trust.host is None else queues.agent(self._trust.host)
        self._receiver = Receiver(codec, self._trust)
        self._timing = timing or Timing()
        self._started = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._subscriptions: list[tuple[str, _Events]] = []

    async def start(self) -> None:
        """Begin; nothing can go wrong here."""
        self._started.set()

    async def close(self) -> None:
        """Stop consuming and give running handlers 2 s to end; what was not handled stays in its queue."""
        self._started.clear()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_GRACE)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for topic, events in self._subscriptions:
            self._broker.topics[topic].remove(events)

    async def cast(self, queue: str, message: object) -> None:
        """Put the message into the queue; BusError if there is no such queue or it is full."""
        data = self._codec.encode(message, current_context())
        self._broker.send(self._sendable(queue), data, self._origin(queue, data))
        await asyncio.sleep(0)

    async def call(self, queue: str, message: object, *, timeout: float) -> object:
        """Return the handler's answer; BusError after `timeout` seconds, or if the handler refused."""
        data = self._codec.encode(message, current_context())
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def take(data: bytes, user: str) -> None:
            try:
                self._trust.check_answer(queue, Origin("answers", user))
            except Disbelieved as error:
                log.warning("an answer is not believed", reason=str(error))
                return
            if not answer.done():
                answer.set_result(data)

        self._broker.send(self._sendable(queue), data, self._origin(queue, data), take)
        try:
            answered = await asyncio.wait_for(answer, timeout)
        except TimeoutError as error:
            raise BusError(f"A call to {queue} was not answered within {timeout:g} s.") from error
        return open_answer(self._codec, answered, queue)

    async def emit(self, topic: str, message: object) -> None:
        """Tell whoever listens now; lost without a word if nobody does."""
        queues.exchange_of(topic, self._trust.host)
        self._broker.tell(topic, self._codec.encode(message, current_context()), self._user)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int = PREFETCH) -> None:
        """Give each message of the queue to `handler`."""
        row = queues.readable(queue, self._trust.host)
        letters = self._broker.queue(row)
        self._pumps.append(asyncio.create_task(self._pump(letters, handler, prefetch, row)))

    async def subscribe(self, topic: str, handler: Handler) -> None:
        """Give each event of the topic to `handler` from now on."""
        if self._trust.host is not None:
            raise BusError(f"The agent of {self._trust.host} may not listen to {topic}.")
        events = _Events()
        self._broker.topics.setdefault(topic, []).append(events)
        self._subscriptions.append((topic, events))
        self._pumps.append(asyncio.create_task(self._pump(events.letters, handler, PREFETCH, None)))

    async def waiting(self, queue: str) -> int:
        """Return how many messages wait in the queue."""
        row = self._sendable(queue)
        return len(self._broker.dead_letters) if row.name == queues.DEAD_LETTERS else self._broker.queue(row).qsize()

    def healthy(self) -> bool:
        """Say whether the bus is started and every consumer runs."""
        return self._started.is_set() and not any(pump.done() for pump in self._pumps)

    async def probe(self) -> None:
        """BusError if a consumer has ended."""
        if self._started.is_set() and not self.healthy():
            raise BusError("A consumer of the local bus has ended; this process must be restarted.")

    def _sendable(self, queue: str) -> queues.Queue:
        if not self._started.is_set():
            raise BusError("The bus is closed, or was not started.")
        return queues.writable(queue, self._trust.host)

    def _origin(self, queue: str, data: bytes) -> Origin:
        return Origin(queue, self._user, self._trust.sign(queue, data))

    async def _pump(
        self, letters: asyncio.Queue[_Letter], handler: Handler, prefetch: int, row: queues.Queue | None
    ) -> None:
        """Start a handler for each letter, at most `prefetch` at once."""
        room = asyncio.Semaphore(prefetch)
        await self._started.wait()
        while True:
            await room.acquire()
            letter = await letters.get()
            task = asyncio.create_task(self._handle(letters, letter, handler, row))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            task.add_done_callback(lambda _: room.release())

    async def _handle(
        self, letters: asyncio.Queue[_Letter], letter: _Letter, handler: Handler, row: queues.Queue | None
    ) -> None:
        try:
            asked = letter.asker is not None
            outcome = await deliver(self._receiver, handler, letter.data, letter.origin, asked=asked)
            match outcome:
                case Handled(answer):
                    if answer is not None and letter.asker is not None:
                        self._broker.reply(letter.asker, answer, self._user)
                case Hopeless(reason) if row is not None:
                    self._broker.bury(row, letter, reason)
                case Failed(reason) if row is not None:
                    if letter.deliveries >= row.redeliveries:
                        self._broker.bury(row, letter, reason)
                    else:
                        await asyncio.sleep(min(self._timing.retry_pause * 4**letter.deliveries, LONGEST_PAUSE))
                        letter.deliveries += 1
                        _put(letters, letter)
                case Hopeless(reason) | Failed(reason):
                    log.warning("an event was not handled", topic=letter.origin.place, reason=reason)
        except asyncio.CancelledError:
            letter.deliveries += 1
            _put(letters, letter)
            raise


def _put(queue: asyncio.Queue[_Letter], letter: _Letter) -> None:
    """Add a letter that the broker has accepted; a bound is kept when it is accepted, and only then."""
    try:
        queue.put_nowait(letter)
    except asyncio.QueueFull:
        log.error("a full queue lost a message that came late or again")
