"""What every bus must do, the one in memory and RabbitMQ alike; then what only RabbitMQ can do to us."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import aio_pika
import pytest
import structlog
from aiormq.base import FutureStore
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.orders import order
from whimbrel.bus import queues
from whimbrel.bus.amqp import AmqpBus
from whimbrel.bus.codec import DecodeError, registry
from whimbrel.bus.link import bounded
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.bus.port import Bus, Timing
from whimbrel.bus.signing import Signer, Verifier
from whimbrel.bus.trust import AgentTrust, ControllerTrust, Trust
from whimbrel.domain.errors import BusError, Invalid
from whimbrel.domain.migration import Answer, Verb
from whimbrel.lab.broker import Broker
from whimbrel.migration.messages import MESSAGES, Ask, Changed, Console, Progress, ReadConsole, StepReport, Wake

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("broker")]

SOON = 30.0
QUICK = Timing(start=60, confirm=20, heartbeat=10, retry_pause=0.01)


@dataclass(frozen=True)
class Note:
    number: int
    text: str = ""


@dataclass(frozen=True)
class Stranger:
    number: int


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    parts: tuple[Inner, ...]
    by_name: dict[str, Inner]
    by_number: dict[int, float]
    maybe: Inner | None
    free: dict[str, Any]


CODEC = registry(Note)


def report(host: str) -> StepReport:
    """What a host says of an order."""
    return StepReport(host, "s", 7, 0, "7-1", "prepare", Verb.DO, 3, Answer.DONE)


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, message: object) -> None:
        self.all.append(message)
        self._arrived.put_nowait(message)

    async def take(self, number: int = 1) -> list[Any]:
        async with asyncio.timeout(SOON):
            return [await self._arrived.get() for _ in range(number)]


class World:
    """Makes the buses of one test, all to the same broker, and looks at the broker from outside."""

    serial = count()

    def __init__(self, stack: AsyncExitStack, broker: Broker | None) -> None:
        self.broker = broker
        self.memory = LocalBroker()
        self._stack = stack
        self.queue = queues.agent(f"h{os.getpid()}-{next(self.serial)}")

    async def bus(self, *types: type, timing: Timing = QUICK, trust: Trust | None = None) -> Bus:
        codec = registry(*types) if types else CODEC
        bus: Bus
        if self.broker is None:
            bus = LocalBus(self.memory, codec, timing=timing, trust=trust)
        else:
            host = trust.host if trust is not None else None
            url = self.broker.url if host is None else self.broker.url_of(host)
            bus = AmqpBus(url, codec, name="test", timing=timing, trust=trust)
        await bus.start()
        self._stack.push_async_callback(bus.close)
        return bus

    async def dead_letters(self, number: int) -> list[tuple[str, str]]:
        """Wait for as many dead letters; return the queue and the reason of each."""
        async with asyncio.timeout(SOON):
            if self.broker is None:
                await _until(lambda: len(self.memory.dead_letters) >= number)
                return [(letter.queue, letter.reason) for letter in self.memory.dead_letters]
            async with await aio_pika.connect(self.broker.url) as connection:
                queue = await (await connection.channel()).get_queue(queues.DEAD_LETTERS)
                found: list[tuple[str, str]] = []
                while len(found) < number:
                    letter = await queue.get(no_ack=True, fail=False)
                    if letter is None:
                        await asyncio.sleep(0.01)
                    else:
                        found.append((str(letter.headers["queue"]), str(letter.headers["reason"])))
                return found

    async def delete(self, *names: str) -> None:
        assert self.broker is not None
        async with await aio_pika.connect(self.broker.url) as connection:
            channel = await connection.channel()
            for name in names:
                await channel.queue_delete(name)


SIGNER = Signer(Ed25519PrivateKey.generate())
OTHER_SIGNER = Signer(Ed25519PrivateKey.generate())
CONTROLLER = ControllerTrust(SIGNER)


def of_host(host: str) -> AgentTrust:
    """The trust of an agent that obeys two controllers' keys, as while a key is being changed."""
    return AgentTrust(host, Verifier([Signer(Ed25519PrivateKey.generate()).public_key, SIGNER.public_key]))


@pytest.fixture(params=["local", pytest.param("amqp", marks=pytest.mark.broker)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    node: Broker | None = request.getfixturevalue("broker") if request.param == "amqp" else None
    async with AsyncExitStack() as stack:
        made = World(stack, node)
        if node is not None:
            await made.delete(queues.CONDUCTOR, queues.SCHEDULER, queues.DEAD_LETTERS)
        yield made


@pytest.fixture
async def rabbit(broker: Broker) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(stack, broker)


async def test_a_cast_reaches_its_consumer_with_the_context_of_its_sender(world: World) -> None:
    seen: asyncio.Queue[tuple[object, dict[str, Any]]] = asyncio.Queue()

    async def handler(message: object) -> None:
        seen.put_nowait((message, structlog.contextvars.get_contextvars()))

    sender, receiver = await world.bus(), await world.bus()
    await receiver.consume(world.queue, handler)
    with structlog.contextvars.bound_contextvars(request_id="req-1", migration=17, secret="stays here"):
        await sender.cast(world.queue, Note(1, "ü"))
    async with asyncio.timeout(SOON):
        assert await seen.get() == (Note(1, "ü"), {"request_id": "req-1", "migration": 17})


async def test_what_was_cast_before_anybody_listened_is_delivered_in_order(world: World) -> None:
    sender, inbox = await world.bus(), Inbox()
    for number in range(50):
        await sender.cast(world.queue, Note(number))
    receiver = await world.bus()
    await receiver.consume(world.queue, inbox)
    for number in range(50, 100):
        await sender.cast(world.queue, Note(number))
    assert await inbox.take(100) == [Note(number) for number in range(100)]


async def test_two_consumers_share_one_queue(world: World) -> None:
    sender, one, two = await world.bus(), Inbox(), Inbox()
    await (await world.bus()).consume(world.queue, one, prefetch=1)
    await (await world.bus()).consume(world.queue, two, prefetch=1)
    await asyncio.gather(*(sender.cast(world.queue, Note(number)) for number in range(100)))
    await _until(lambda: len(one.all) + len(two.all) >= 100)
    assert sorted(note.number for note in one.all + two.all) == list(range(100))
    assert one.all and two.all


async def test_no_more_than_prefetch_handlers_run_at_once(world: World) -> None:
    bus, gate, running, most, ended = await world.bus(), asyncio.Event(), 0, 0, Inbox()

    async def handler(message: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        await ended(message)

    await bus.consume(world.queue, handler, prefetch=3)
    for number in range(9):
        await bus.cast(world.queue, Note(number))
    await asyncio.sleep(0.2)
    assert running == 3
    gate.set()
    await ended.take(9)
    assert most == 3


async def test_each_of_many_calls_gets_its_own_answer(world: World) -> None:
    async def double(message: object) -> object:
        assert isinstance(message, Note)
        await asyncio.sleep(0.001 * (message.number % 7))
        return replace(message, number=2 * message.number)

    asker, answerer = await world.bus(), await world.bus()
    await answerer.consume(queues.SCHEDULER, double, prefetch=50)
    calls = [asker.call(queues.SCHEDULER, Note(number), timeout=SOON) for number in range(300)]
    assert await asyncio.gather(*calls) == [Note(2 * number) for number in range(300)]


async def test_a_call_that_nobody_answers_ends_at_its_timeout(world: World) -> None:
    bus = await world.bus()
    with pytest.raises(BusError, match="scheduler"):
        async with asyncio.timeout(2):
            await bus.call(queues.SCHEDULER, Note(1), timeout=0.2)


async def test_a_refused_call_tells_the_asker_why_and_is_not_repeated(world: World) -> None:
    calls = 0

    async def refuse(message: object) -> object:
        nonlocal calls
        calls += 1
        raise Invalid("no room on any host")

    bus = await world.bus()
    await bus.consume(queues.SCHEDULER, refuse)
    with pytest.raises(BusError, match="scheduler refused: no room on any host"):
        await bus.call(queues.SCHEDULER, Note(1), timeout=SOON)
    await asyncio.sleep(0.1)
    assert calls == 1


async def test_a_call_to_a_handler_that_answers_nothing_is_refused(world: World) -> None:
    bus = await world.bus()
    await bus.consume(world.queue, Inbox())
    with pytest.raises(BusError, match="not a question"):
        await bus.call(world.queue, Note(1), timeout=SOON)


async def test_a_call_of_an_unknown_type_is_refused(world: World) -> None:
    asker, answerer = await world.bus(Stranger), await world.bus()
    await answerer.consume(queues.SCHEDULER, Inbox())
    with pytest.raises(BusError, match="'Stranger' is unknown"):
        await asker.call(queues.SCHEDULER, Stranger(1), timeout=SOON)


@pytest.mark.parametrize("queue", ["nobody", "agent.", ""])
async def test_a_queue_that_is_not_in_the_table_is_an_error(world: World, queue: str) -> None:
    bus = await world.bus()
    with pytest.raises(BusError, match="no queue"):
        await bus.cast(queue, Note(1))
    with pytest.raises(BusError, match="no queue"):
        await bus.consume(queue, Inbox())


async def test_an_unregistered_message_is_the_senders_error(world: World) -> None:
    bus = await world.bus()
    with pytest.raises(BusError, match="Stranger is not a registered message"):
        await bus.cast(world.queue, Stranger(1))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_poisonous_message_is_repeated_then_buried_and_the_consumer_lives(world: World, kind: str) -> None:
    queue = world.queue if kind == "classic" else queues.CONDUCTOR
    tries: list[int] = []
    healthy = Inbox()

    async def handler(message: object) -> None:
        assert isinstance(message, Note)
        tries.append(message.number)
        if message.number == 13:
            raise ZeroDivisionError("poison")
        await healthy(message)

    bus = await world.bus()
    await bus.consume(queue, handler)
    await bus.cast(queue, Note(13))
    await bus.cast(queue, Note(14))
    assert await healthy.take() == [Note(14)]
    before = await _grown(bus, queues.DEAD_LETTERS)
    assert await bus.waiting(queue) == 0 and before >= 1
    assert await world.dead_letters(1) == [(queue, "ZeroDivisionError: poison")]
    assert tries.count(13) == 1 + queues.find(queue).redeliveries
    await bus.cast(queue, Note(15))
    assert await healthy.take() == [Note(15)]


async def test_a_handler_that_fails_once_gets_the_message_again(world: World) -> None:
    bus, inbox, failed = await world.bus(), Inbox(), False

    async def handler(message: object) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise ConnectionResetError("the database was away")
        await inbox(message)

    await bus.consume(world.queue, handler)
    await bus.cast(world.queue, Note(1))
    assert await inbox.take() == [Note(1)]


async def test_what_cannot_be_decoded_is_buried_at_once_with_the_reason(world: World) -> None:
    wider = type("Note", (), {"__annotations__": {"number": int, "extra": int}})
    other = type("Note", (), {"__annotations__": {"number": str}})
    bus, inbox = await world.bus(), Inbox()
    await bus.consume(world.queue, inbox)
    for made, arguments in ((Stranger, (1,)), (dataclass(wider), (1, 2)), (dataclass(other), ("one",))):
        await (await world.bus(made)).cast(world.queue, made(*arguments))
    reasons = " ".join(reason for _, reason in await world.dead_letters(3))
    assert "'Stranger' is unknown" in reasons
    assert "unknown field $.extra" in reasons
    assert "Expected `int`, got `str`" in reasons
    await bus.cast(world.queue, Note(1))
    assert await inbox.take() == [Note(1)]
    assert inbox.all == [Note(1)]


async def test_an_event_reaches_every_subscriber_and_needs_none(world: World) -> None:
    sender, one, two = await world.bus(), Inbox(), Inbox()
    await sender.emit("progress", Note(0))
    await (await world.bus()).subscribe("progress", one)
    await (await world.bus()).subscribe("progress", two)
    await sender.emit("other", Note(1))
    await sender.emit("progress", Note(2))
    assert [await one.take(), await two.take()] == [[Note(2)], [Note(2)]]


async def test_a_subscriber_that_fails_gets_the_next_event(world: World) -> None:
    bus, inbox = await world.bus(), Inbox()

    async def handler(message: object) -> None:
        if message == Note(1):
            raise ZeroDivisionError
        await inbox(message)

    await bus.subscribe("progress", handler)
    await bus.emit("progress", Note(1))
    await bus.emit("progress", Note(2))
    assert await inbox.take() == [Note(2)]


async def test_a_slow_subscriber_loses_the_oldest_events_not_the_newest(world: World) -> None:
    sender, slow, gate, inbox = await world.bus(), await world.bus(), asyncio.Event(), Inbox()
    number = queues.EVENTS_LENGTH + 500

    async def handler(message: object) -> None:
        await gate.wait()
        await inbox(message)

    await slow.subscribe("progress", handler)
    for event in range(number):
        await sender.emit("progress", Note(event))
    await sender.cast(world.queue, Note(0))  # the events are with the broker when this one is
    await asyncio.sleep(0.3)
    gate.set()
    async with asyncio.timeout(SOON):
        while Note(number - 1) not in inbox.all:
            await inbox.take()
    assert len(inbox.all) < number


async def test_a_full_queue_refuses_the_sender(world: World) -> None:
    bus = await world.bus()
    limit = queues.find(queues.SCHEDULER).max_length
    results = await asyncio.gather(
        *(bus.cast(queues.SCHEDULER, Note(number)) for number in range(2 * limit)), return_exceptions=True
    )
    assert any(isinstance(result, BusError) for result in results)
    assert sum(result is None for result in results) >= limit


async def test_what_a_closed_bus_had_not_handled_comes_to_the_next(world: World) -> None:
    sender, first, started, inbox = await world.bus(), await world.bus(), Inbox(), Inbox()

    async def hang(message: object) -> None:
        await started(message)
        await asyncio.Event().wait()

    await first.consume(world.queue, hang, prefetch=2)
    for number in range(4):
        await sender.cast(world.queue, Note(number))
    await started.take(2)
    async with asyncio.timeout(4):
        await first.close()
    await (await world.bus()).consume(world.queue, inbox)
    assert {note.number for note in await inbox.take(4)} == {0, 1, 2, 3}


async def test_a_bus_that_is_idle_closes_at_once_and_then_refuses(world: World) -> None:
    bus = await world.bus()
    await bus.consume(world.queue, Inbox())
    assert bus.healthy()
    await bus.probe()
    async with asyncio.timeout(1):
        await bus.close()
    assert not bus.healthy()
    with pytest.raises(BusError, match="closed"):
        await bus.cast(world.queue, Note(1))


async def test_a_host_is_believed_of_itself_only(world: World) -> None:
    controller, said, events = await world.bus(*MESSAGES, trust=CONTROLLER), Inbox(), Inbox()
    await controller.consume(queues.CONDUCTOR, said)
    await controller.subscribe("heartbeats", events)
    await controller.subscribe("progress", events)
    agent = await world.bus(*MESSAGES, trust=of_host("alpha"))
    mine, others = (Progress(host, "s", 7, "7-1", "copy_disks", 1, 2, 1.0, None) for host in ("alpha", "beta"))
    for forged in (report("beta"), Wake(7), Ask(order("prepare", 1))):
        await agent.cast(queues.CONDUCTOR, forged)
    await agent.cast(queues.CONDUCTOR, report("alpha"))
    assert await said.take() == [report("alpha")]
    reasons = sorted(reason for _, reason in await world.dead_letters(3))
    assert "agent.alpha may not send a StepReport of host beta" in reasons[0]
    assert all("only a controller may" in reason for reason in reasons[1:])
    for forged_event in (others, Changed(7, "s", 1)):
        await agent.emit("progress", forged_event)
    await agent.emit("progress", mine)
    assert await events.take() == [mine]
    assert said.all == [report("alpha")]


async def test_an_agent_obeys_nothing_that_no_controller_signed_for_it(world: World) -> None:
    agent, inbox = await world.bus(*MESSAGES, trust=of_host("alpha")), Inbox()
    await agent.consume(queues.agent("alpha"), inbox)
    for forger in (Trust(), ControllerTrust(OTHER_SIGNER)):
        await (await world.bus(*MESSAGES, trust=forger)).cast(queues.agent("alpha"), order("prepare", 1, host="alpha"))
    true = order("prepare", 2, host="alpha")
    await (await world.bus(*MESSAGES, trust=CONTROLLER)).cast(queues.agent("alpha"), true)
    assert await inbox.take() == [true]
    reasons = sorted(reason for _, reason in await world.dead_letters(2))
    assert "bears a signature that none of" in reasons[0] and "bears no signature" in reasons[1]
    assert inbox.all == [true]


async def test_a_call_of_an_agent_is_answered_and_an_unsigned_one_is_not(world: World) -> None:
    async def tell(message: object) -> object:
        assert isinstance(message, ReadConsole)
        return Console(f"console of {message.server}")

    agent = await world.bus(*MESSAGES, trust=of_host("alpha"))
    await agent.consume(queues.agent("alpha"), tell)
    controller = await world.bus(*MESSAGES, trust=CONTROLLER)
    assert await controller.call(queues.agent("alpha"), ReadConsole("s", 1), timeout=SOON) == Console("console of s")
    with pytest.raises(BusError, match="within"):
        await (await world.bus(*MESSAGES)).call(queues.agent("alpha"), ReadConsole("s", 1), timeout=0.5)


async def test_an_agent_can_use_its_own_queue_and_what_leads_to_controllers(world: World) -> None:
    await (await world.bus(*MESSAGES, trust=CONTROLLER)).consume(queues.CONDUCTOR, Inbox())
    agent = await world.bus(*MESSAGES, trust=of_host("alpha"))
    for queue in (queues.agent("beta"), queues.SCHEDULER):
        with pytest.raises(BusError, match="alpha may not write to"):
            await agent.cast(queue, Wake(1))
        with pytest.raises(BusError, match="alpha may not write to"):
            await agent.call(queue, Wake(1), timeout=1)
    for queue in (queues.agent("beta"), queues.CONDUCTOR):
        with pytest.raises(BusError, match="alpha may not read"):
            await agent.consume(queue, Inbox())
    with pytest.raises(BusError, match="alpha may not listen"):
        await agent.subscribe("heartbeats", Inbox())
    with pytest.raises(BusError, match="alpha may not tell"):
        await agent.emit("changed", Wake(1))
    await agent.cast(queues.CONDUCTOR, report("alpha"))
    await agent.probe()


@dataclass
class Scripted:
    """Faults by list: the fate of the first message, of the second, and so on."""

    fates: list[Sequence[float]]
    asked: list[str] = field(default_factory=list)

    def fate(self, destination: str, data: bytes) -> Sequence[float]:
        self.asked.append(destination)
        return self.fates.pop(0) if self.fates else (0.0,)


async def test_the_local_bus_loses_doubles_and_delays_as_it_is_told() -> None:
    faults, inbox = Scripted([(), (0.0, 0.0), (0.1,)]), Inbox()
    bus = LocalBus(LocalBroker(faults), CODEC, timing=QUICK)
    await bus.start()
    await bus.consume("agent.h1", inbox)
    for number in range(4):
        await bus.cast("agent.h1", Note(number))
    assert await inbox.take(4) == [Note(1), Note(1), Note(3), Note(2)]
    assert faults.asked == 4 * ["agent.h1"]
    await bus.close()


@pytest.mark.broker
async def test_nothing_confirmed_is_lost_when_the_broker_is_killed(rabbit: World) -> None:
    """Both kinds of queue, a consumer at one and none at the other, and casts all the time."""
    assert rabbit.broker is not None
    sender, receiver, inbox = await rabbit.bus(), await rabbit.bus(), Inbox()
    await receiver.consume(queues.CONDUCTOR, inbox)
    confirmed: dict[str, list[int]] = {queues.CONDUCTOR: [], rabbit.queue: []}
    ended = asyncio.Event()
    failures = 0

    async def stream(queue: str) -> None:
        nonlocal failures
        for number in count():
            try:
                await sender.cast(queue, Note(number))
            except BusError:
                failures += 1
                assert failures < 10_000, "a cast on a dead connection must not keep the event loop busy"
                continue
            confirmed[queue].append(number)
            if ended.is_set():
                return

    streams = [asyncio.create_task(stream(queue)) for queue in confirmed for _ in range(2)]
    await inbox.take(200)
    await asyncio.sleep(1.5)  # RabbitMQ 3.10 forgets a quorum queue that is younger than half a second
    await asyncio.to_thread(rabbit.broker.kill)
    await asyncio.to_thread(rabbit.broker.start, 120)
    before = {queue: len(numbers) for queue, numbers in confirmed.items()}
    await _until(lambda: all(len(confirmed[queue]) >= before[queue] + 50 for queue in confirmed), 60)
    ended.set()
    await asyncio.gather(*streams)
    assert failures > 0
    await _until(lambda: {note.number for note in inbox.all} >= set(confirmed[queues.CONDUCTOR]), 60)
    late = Inbox()
    await receiver.consume(rabbit.queue, late)
    await _until(lambda: {note.number for note in late.all} >= set(confirmed[rabbit.queue]), 60)


@pytest.mark.broker
async def test_a_frozen_broker_is_an_error_and_never_a_cancellation(rabbit: World) -> None:
    """The client library cancels a waiting publish when heartbeats stay out; that must not end the publisher."""
    assert rabbit.broker is not None
    patient = Timing(start=20, confirm=30, heartbeat=2, retry_pause=0.01)
    bus, inbox = await rabbit.bus(timing=patient), Inbox()
    await bus.consume(rabbit.queue, inbox)
    await bus.cast(rabbit.queue, Note(1))
    await inbox.take()
    pid = rabbit.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        ours = asyncio.create_task(bus.cast(rabbit.queue, Note(2)))
        waiting = asyncio.create_task(bus.cast(rabbit.queue, Note(3)))
        asked = asyncio.create_task(bus.call(rabbit.queue, Note(4), timeout=30))
        await asyncio.sleep(0.5)
        ours.cancel()
        async with asyncio.timeout(20):
            results = await asyncio.gather(ours, waiting, asked, return_exceptions=True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [type(result) for result in results] == [asyncio.CancelledError, BusError, BusError]
    await _persist(lambda: bus.cast(rabbit.queue, Note(5)))
    await _until(lambda: Note(5) in inbox.all)


@pytest.mark.broker
async def test_a_queue_deleted_under_its_consumer_is_made_again(rabbit: World) -> None:
    bus, inbox = await rabbit.bus(), Inbox()
    await bus.consume(rabbit.queue, inbox)
    await rabbit.delete(rabbit.queue)
    await _persist(lambda: bus.cast(rabbit.queue, Note(1)))
    assert await inbox.take() == [Note(1)]
    await bus.probe()


@pytest.mark.broker
async def test_a_queue_deleted_under_its_sender_is_an_error_once(rabbit: World) -> None:
    bus, inbox = await rabbit.bus(), Inbox()
    await bus.cast(rabbit.queue, Note(1))
    await rabbit.delete(rabbit.queue)
    with pytest.raises(BusError):
        await bus.cast(rabbit.queue, Note(2))
    await bus.cast(rabbit.queue, Note(3))
    await bus.consume(rabbit.queue, inbox)
    assert await inbox.take() == [Note(3)]


@pytest.mark.broker
async def test_a_subscription_outlives_the_connection(rabbit: World) -> None:
    sender, receiver, inbox = await rabbit.bus(), await rabbit.bus(), Inbox()
    await receiver.subscribe("progress", inbox)
    await receiver.consume(rabbit.queue, Inbox())
    await rabbit.delete(rabbit.queue)
    await _until(lambda: not receiver.healthy())
    await _until(receiver.healthy)
    await sender.emit("progress", Note(1))
    assert await inbox.take() == [Note(1)]


@pytest.mark.broker
async def test_an_agent_that_comes_before_its_controllers_says_so_and_works_when_they_come(rabbit: World) -> None:
    assert rabbit.broker is not None
    async with await aio_pika.connect(rabbit.broker.url) as connection:
        await (await connection.channel()).exchange_delete(queues.REPORTS_EXCHANGE)
    hasty = replace(QUICK, start=2.0)
    with pytest.raises(BusError, match=r"whimbrel\.reports is not there yet: start a controller"):
        await rabbit.bus(*MESSAGES, timing=hasty, trust=of_host("alpha"))
    early = asyncio.create_task(rabbit.bus(*MESSAGES, trust=of_host("alpha")))
    await asyncio.sleep(0.5)
    said = Inbox()
    await (await rabbit.bus(*MESSAGES, trust=CONTROLLER)).consume(queues.CONDUCTOR, said)
    await (await early).cast(queues.CONDUCTOR, report("alpha"))
    assert await said.take() == [report("alpha")]


@pytest.mark.broker
async def test_a_consumer_that_the_broker_does_not_see_asks_for_a_restart(rabbit: World) -> None:
    bus = await rabbit.bus()
    assert isinstance(bus, AmqpBus)
    await bus.consume(rabbit.queue, Inbox())
    await bus.probe()
    assert bus._link is not None
    await bus._link.stop_consuming()
    with pytest.raises(BusError, match=f"no consumer of {rabbit.queue}"):
        await bus.probe()


async def test_a_connection_that_ends_without_a_cause_is_an_error_of_the_bus() -> None:
    """As when both of its ends find it broken at once; then the client library raises an Exception without a type."""
    waiting = FutureStore(asyncio.get_running_loop())
    answer, late = waiting.create_future(), waiting.create_task(asyncio.sleep(60))
    await waiting.reject_all(None)
    for each in (answer, late, waiting.create_future()):
        with pytest.raises(BusError, match=r"A question failed: the connection was lost\."):
            async with bounded("A question", 10):
                await each
    with pytest.raises(ValueError, match="ours"):
        async with bounded("A question", 10):
            raise ValueError("ours")


async def test_a_broker_that_is_not_there_is_named_at_the_start() -> None:
    bus = AmqpBus("amqp://u:secret@127.0.0.1:1/", CODEC, name="test", timing=replace(QUICK, start=0.3))
    with pytest.raises(BusError, match=r"127\.0\.0\.1:1 .*\[broker\] url") as caught:
        await bus.start()
    assert "secret" not in str(caught.value)


def test_a_decoded_message_is_exactly_what_was_encoded() -> None:
    codec = registry(Outer)
    outer = Outer((Inner("a"),), {"b": Inner("b")}, {1: 0.5}, None, {"x": [{"y": None}], "z": {"k": 1}})
    data = codec.encode(outer, {"request_id": "req-1"})
    assert codec.decode(data) == (outer, {"request_id": "req-1"})
    with pytest.raises(DecodeError, match=r"\$\.parts\[0\]\.more"):
        codec.decode(data.replace(b'{"name":"a"}', b'{"name":"a","more":1}'))
    for broken in (b"", b"\xff\xfe", b"[]", b'{"type":"Outer"}', data[:-1], b"[" * 100_000):
        with pytest.raises(DecodeError):
            codec.decode(broken)


async def _persist(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try as the outbox does: again after each BusError."""
    async with asyncio.timeout(2 * SOON):
        while True:
            try:
                return await attempt()
            except BusError:
                await asyncio.sleep(0.05)


async def _grown(bus: Any, queue: str) -> int:
    """Wait until something waits in the queue; return how much."""
    number = 0
    async with asyncio.timeout(SOON):
        while not number:
            await asyncio.sleep(0.01)
            number = await bus.waiting(queue)
    return number


async def _until(condition: Callable[[], bool], within: float = SOON) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is awaited is the broker's doing, it sets no event here
            await asyncio.sleep(0.005)
