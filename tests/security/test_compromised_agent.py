"""An intruder with all that one host's agent has, and what it gets by it: nothing of any other host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError

from tests.security.conftest import CODEC, Intruder, Scene, until
from tests.unit.orders import order
from whimbrel.bus import queues
from whimbrel.domain.migration import Answer, Verb
from whimbrel.migration.messages import Changed, Console, Order, Progress, SelectTargets, StepReport, Wake
from whimbrel.migration.presence import GuestReport, Heartbeat
from whimbrel.migration.protocols import COLD

pytestmark = [pytest.mark.anyio, pytest.mark.broker, pytest.mark.xdist_group("security")]

Attempt = Callable[[AbstractChannel], Awaitable[Any]]


def heartbeat(host: str, *guests: GuestReport) -> Heartbeat:
    """A heartbeat that says there is much room here."""
    return Heartbeat(
        host, "192.0.2.66", "boot", "ledger", {}, 99, 99, 99, 0, 0, 0, 1.0, 1.0, 1.0, "x", "QEMU", 1, "qcow2", 99, "",
        guests,
    )  # fmt: skip


async def publish(channel: AbstractChannel, exchange: str, key: str) -> None:
    """Publish anything."""
    to = await channel.get_exchange(exchange, ensure=False)
    await to.publish(aio_pika.Message(b"{}", user_id="agent.h3"), key)


async def bind(channel: AbstractChannel, queue: str, key: str, *, undo: bool = False) -> None:
    """Bind a queue to the exchange of reports, or unbind it."""
    bound = await channel.get_queue(queue, ensure=False)
    await (bound.unbind if undo else bound.bind)(queues.REPORTS_EXCHANGE, key)


async def consume(channel: AbstractChannel, queue: str) -> None:
    """Read a queue."""

    async def take(message: object) -> None:
        raise AssertionError(message)

    await (await channel.get_queue(queue, ensure=False)).consume(take)


FORBIDDEN: dict[str, Attempt] = {
    "read another host's queue": lambda c: consume(c, "agent.h1"),
    "read what hosts report": lambda c: consume(c, "conductor"),
    "read the questions to the scheduler": lambda c: consume(c, "scheduler"),
    "write into another host's queue": lambda c: publish(c, "", "agent.h1"),
    "write into the conductor's queue as controllers do": lambda c: publish(c, "", "conductor"),
    "write into its own queue": lambda c: publish(c, "", "agent.h3"),
    "tell what controllers tell": lambda c: publish(c, queues.TOPICS_EXCHANGE, "changed"),
    "write into an exchange of the broker's own": lambda c: publish(c, "amq.topic", "x"),
    "declare a queue": lambda c: c.declare_queue("mine", durable=True),
    "declare a queue without a name": lambda c: c.declare_queue(exclusive=True),
    "declare another host's queue": lambda c: c.declare_queue("agent.h33", durable=True),
    "declare an exchange": lambda c: c.declare_exchange("agent.h3x"),
    "hear the others' heartbeats": lambda c: bind(c, "agent.h3", "heartbeats"),
    "hear the others' reports": lambda c: bind(c, "agent.h3", "conductor"),
    "cut the conductor off": lambda c: bind(c, "conductor", "conductor", undo=True),
    "delete another host's queue": lambda c: c.queue_delete("agent.h1"),
    "delete the exchange of reports": lambda c: c.exchange_delete(queues.REPORTS_EXCHANGE),
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_the_broker_refuses_whatever_is_not_an_agents_own(intruder: Intruder, what: str) -> None:
    async with intruder.channel() as channel:
        with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
            await FORBIDDEN[what](channel)


async def test_the_broker_refuses_a_name_that_is_not_the_senders(intruder: Intruder) -> None:
    for name in ("agent.h1", "bench"):
        with pytest.raises(AMQPError, match="user_id property set to"):
            await intruder.say(queues.CONDUCTOR, Wake(1), user_id=name)


async def test_another_host_is_not_what_an_intruder_says_it_is(scene: Scene, intruder: Intruder) -> None:
    before, h1 = scene.server(), _host(scene, "h1")
    seen = before["epoch"] + 50, before["order_number"] + 50
    lie = GuestReport(scene.victim, "stopped", *seen)
    for user in ("agent.h3", None):
        await intruder.say("heartbeats", heartbeat("h1", lie), user_id=user)
    await intruder.say("heartbeats", heartbeat("h4"))
    await intruder.say("heartbeats", Changed(1, scene.victim, 1))
    await intruder.say("progress", Progress("h1", scene.victim, 1, "1-1", "prepare", 1, 1, 1.0, None))
    # Of itself it is believed: that it is there, and has room. But the victim is not there.
    await intruder.say("heartbeats", heartbeat("h3", lie, GuestReport(scene.own, "stopped", 2 * 10**9, 2 * 10**9)))
    await until("the true part", lambda: _host(scene, "h3")["address"] == "192.0.2.66")
    assert scene.server() == before
    assert _host(scene, "h1") == h1 and not scene.rows("SELECT name FROM hosts WHERE name = 'h4'")
    (own,) = scene.rows("SELECT epoch, order_number FROM servers WHERE id = ?", scene.own)
    assert own["epoch"] < 10**9 and own["order_number"] < 10**9
    await until("a word about it", lambda: scene.said("may not send a Heartbeat of host h1"))


async def test_a_forged_report_moves_no_migration(scene: Scene, intruder: Intruder) -> None:
    with scene.frozen("h2"):
        await asyncio.to_thread(scene.act, scene.victim, "migrate", {"host": "h2"})
        query = "SELECT * FROM journal WHERE host = 'h2' AND mark = 'doing' AND outstanding IS NOT NULL"
        await until("an order to h2", lambda: bool(scene.rows(query)))
        (row,) = scene.rows(query)
        true = msgspec.convert(msgspec.json.decode(row["outstanding"]), Order)
        for host in ("h2", "h3", "h1"):
            for answer in (Answer.DONE, Answer.FAILED, Answer.NOT_DONE, Answer.STALE, Answer.RUNNING):
                facts = {"unheard": True, "epoch": 10**6, "number": 10**6}
                report = StepReport(
                    host, true.server, true.migration, true.segment, true.attempt, true.step, Verb.DO, true.number,
                    answer, facts,
                )  # fmt: skip
                for user in ("agent.h3", None):
                    await intruder.say(queues.CONDUCTOR, report, user_id=user)
        for other in (
            Wake(true.migration),
            true,
            SelectTargets(1, 1, 1, "", (), None, True, "h3", "cold", COLD.version),
        ):
            await intruder.say(queues.CONDUCTOR, other)
        await until("a word about it", lambda: scene.said("may not send a StepReport of host h1"))
        assert scene.rows(query) == [row]
        assert scene.server()["order_number"] == true.number and scene.server()["epoch"] == true.epoch
    await asyncio.to_thread(scene.wait, scene.victim, "VERIFY_RESIZE")
    await asyncio.to_thread(scene.act, scene.victim, "revertResize")
    await asyncio.to_thread(scene.wait, scene.victim, "ACTIVE")


async def test_a_report_on_an_order_of_its_own_is_about_no_other_server(scene: Scene, intruder: Intruder) -> None:
    await asyncio.to_thread(scene.act, scene.own, "reboot", {"type": "HARD"})
    query = "SELECT outstanding FROM journal WHERE host = 'h3' AND mark = 'doing' AND outstanding IS NOT NULL"
    await until("an order to h3", lambda: bool(scene.rows(query)))
    own = msgspec.convert(msgspec.json.decode(scene.rows(query)[0]["outstanding"]), Order)
    before = scene.server()
    true = StepReport(
        "h3", own.server, own.migration, own.segment, own.attempt, own.step, own.verb, own.number, Answer.DONE,
        {"power_state": "paused", "epoch": before["epoch"] + 7, "number": before["order_number"] + 7},
    )  # fmt: skip
    for answer in (Answer.DONE, Answer.STALE, Answer.FAILED):
        await intruder.say(queues.CONDUCTOR, replace(true, server=scene.victim, answer=answer))
    await intruder.say(queues.CONDUCTOR, replace(true, facts={"power_state": "running"}))
    await asyncio.to_thread(scene.wait, scene.own, "ACTIVE")
    assert scene.server() == before


async def test_another_hosts_call_is_not_an_intruders_to_answer(scene: Scene, intruder: Intruder) -> None:
    truth = await asyncio.to_thread(_console, scene, scene.victim)
    async with intruder.channel() as channel:
        await (await channel.declare_queue(queues.agent("h3"), passive=True)).purge()
    asked = asyncio.create_task(asyncio.to_thread(_console, scene, scene.own))
    question = await intruder.take(queues.agent("h3"))
    assert question.reply_to is not None and question.correlation_id is not None
    own = {"correlation_id": question.correlation_id, "user_id": "agent.h3"}
    await intruder.say(question.reply_to, Console("it is mine to say"), **own)
    assert await asked == "it is mine to say"
    with scene.frozen("h1"):
        asked = asyncio.create_task(asyncio.to_thread(_console, scene, scene.victim))
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for number in range(1, 8):
                later = str(int(question.correlation_id) + number)
                for user in ("agent.h3", None):
                    await intruder.say(question.reply_to, Console("forged"), correlation_id=later, user_id=user)
        await until("a word about it", lambda: scene.said("may not answer for agent.h1"))
        assert not asked.done()
    assert await asked == truth and "forged" not in truth


async def test_a_controllers_message_sent_on_through_a_dead_letter_is_nobodys(scene: Scene, intruder: Intruder) -> None:
    """The broker lets an agent make its own queue anew so that what it rejects goes on, under its sender's name."""
    async with intruder.channel() as channel:
        await channel.queue_delete(queues.agent("h3"))
        onward = {"x-dead-letter-exchange": queues.REPORTS_EXCHANGE, "x-dead-letter-routing-key": queues.CONDUCTOR}
        arguments = {**queues.find(queues.agent("h3")).arguments, **onward}
        queue = await channel.declare_queue(queues.agent("h3"), durable=True, arguments=arguments)
        try:
            await asyncio.to_thread(scene.act, scene.victim, "os-stop")
            await asyncio.to_thread(scene.wait, scene.victim, "SHUTOFF")
            signed = CODEC.encode(order("prepare", 1, host="h3"), {})
            owner = Intruder(scene.cloud.broker.url, scene.cloud.broker.user)
            await owner.publish("", queues.agent("h3"), signed)
            message = await queue.get(timeout=30)  # the broker has confirmed that it is there
            assert message is not None
            await message.reject(requeue=False)
            words = "A sender who is not named may not send this Order"
            await until("a word about it", lambda: scene.said(words))
        finally:
            await channel.queue_delete(queues.agent("h3"))
    await asyncio.to_thread(scene.act, scene.victim, "os-start")
    await asyncio.to_thread(scene.wait, scene.victim, "ACTIVE")


def _console(scene: Scene, server: str) -> str:
    return str(scene.act(server, "os-getConsoleOutput", {})["output"])


def _host(scene: Scene, name: str) -> dict[str, Any]:
    (row,) = scene.rows("SELECT address, boot, ledger, vcpus, enabled, hypervisor FROM hosts WHERE name = ?", name)
    return row
