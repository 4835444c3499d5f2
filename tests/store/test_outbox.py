"""What a transaction wants sent is sent, by whoever is there, and by one sweep at a time."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select, update

from whimbrel.domain.errors import BusError
from whimbrel.migration.messages import Wake
from whimbrel.ops import clock
from whimbrel.store import outbox
from whimbrel.store.engine import Store
from whimbrel.store.outbox import Relay
from whimbrel.store.tables import outbox as rows

pytestmark = pytest.mark.anyio
MANY = 60


class Post:
    """A bus that remembers, and is slow enough for sweeps to meet."""

    def __init__(self, *, broken: bool = False) -> None:
        self.sent: list[int] = []
        self.broken = broken

    async def cast(self, queue: str, message: object) -> None:
        await asyncio.sleep(0.001)
        if self.broken:
            raise BusError("the broker is away")
        assert isinstance(message, Wake)
        self.sent.append(message.migration)


def left(store: Store) -> int:
    return int(store.read_now(lambda tx: tx.execute(select(func.count()).select_from(rows)).scalar_one()))


def make_due(store: Store) -> None:
    store.write_now(lambda tx: tx.execute(update(rows).values(due_at=0.0)))


@pytest.fixture
def written(store: Store) -> Store:
    for number in range(MANY):
        store.write_now(outbox.put, "conductor", Wake(number))
    return store


async def test_sweeps_of_several_processes_send_each_row_once(written: Store) -> None:
    make_due(written)
    post = Post()
    relays = [Relay(written, post.cast) for _ in range(4)]
    await asyncio.gather(*(relay._sweep() for relay in relays))
    assert sorted(post.sent) == list(range(MANY))
    for relay in relays:
        await relay.close()
    assert left(written) == 0


async def test_what_its_writer_has_just_written_is_left_to_it(written: Store) -> None:
    fresh = clock.now() + outbox.SWEEP_AGE  # writing so many has taken its time
    written.write_now(lambda tx: tx.execute(update(rows).values(due_at=fresh)))
    post = Post()
    await Relay(written, post.cast)._sweep()
    assert post.sent == []


async def test_what_a_sweep_could_not_send_is_sent_by_the_next(written: Store) -> None:
    make_due(written)
    await Relay(written, Post(broken=True).cast)._sweep()
    assert left(written) == MANY
    post = Post()
    await Relay(written, post.cast)._sweep()
    assert post.sent == [], "the lease of the first one still runs"
    make_due(written)  # it has run out
    await Relay(written, post.cast)._sweep()
    assert sorted(post.sent) == list(range(MANY))
