"""What the store does when writers meet: bounded waits, bounded retries, each counted; readers see one moment."""

from __future__ import annotations

from threading import Event

import pytest
from sqlalchemy import Connection, select, text, update

from tests.databases import server as postgresql
from tests.store.rows import at_once, enrol
from whimbrel.domain.errors import Invalid, Unavailable
from whimbrel.ops.metrics import store_lock_wait, store_retries
from whimbrel.store import identity
from whimbrel.store.engine import Store
from whimbrel.store.retries import TRIES, LostRace
from whimbrel.store.tables import hosts

only_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


def counted(reason: str) -> float:
    return store_retries.labels(reason)._value.get()


def test_a_lost_race_is_run_again_and_counted(store: Store) -> None:
    before, runs = counted("lost_race"), []

    def function(tx: Connection) -> str:
        runs.append(1)
        if len(runs) < 3:
            raise LostRace("another one was first")
        return "done"

    assert store.write_now(function) == "done"
    assert counted("lost_race") - before == 2


def test_a_race_that_is_always_lost_ends(store: Store) -> None:
    runs = []

    def function(tx: Connection) -> None:
        runs.append(1)
        raise LostRace("another one was first")

    with pytest.raises(Unavailable, match="Try again"):
        store.write_now(function)
    assert len(runs) == TRIES


def test_what_fails_leaves_nothing(store: Store) -> None:
    def function(tx: Connection) -> None:
        identity.create_project(tx, "p")
        raise ValueError

    with pytest.raises(ValueError):
        store.write_now(function)
    assert store.read_now(identity.list_projects) == []


@pytest.mark.anyio
async def test_the_wait_for_the_writer_is_measured(store: Store) -> None:
    before = store_lock_wait.labels("turn")._sum.get()
    await store.write(lambda tx: None)
    assert store_lock_wait.labels("turn")._sum.get() > before


@only_postgresql
def test_a_deadlock_is_run_again_and_counted(store: Store) -> None:
    enrol(store, "h1", "h2")
    before = counted("deadlock")
    first = {"h1": Event(), "h2": Event()}

    def touch(tx: Connection, one: str, other: str) -> None:
        for name in (one, other):
            tx.execute(update(hosts).where(hosts.c.name == name).values(uptime=one))
            first[name].set()
            first[other].wait(2)

    got = at_once(
        lambda: store.write_now(touch, "h1", "h2"),
        lambda: store.write_now(touch, "h2", "h1"),
    )
    assert got == [None, None]
    assert counted("deadlock") - before >= 1


@only_postgresql
def test_a_wait_for_a_lock_is_bounded(store: Store, engine: str) -> None:
    enrol(store, "h1")
    before, runs = counted("lock_timeout"), []
    held, free = Event(), Event()

    def hold(tx: Connection) -> None:
        tx.execute(update(hosts).values(uptime="held"))
        held.set()
        free.wait(20)

    def want(tx: Connection) -> None:
        runs.append(1)
        tx.execute(text("SET LOCAL lock_timeout = '50ms'"))
        tx.execute(update(hosts).values(uptime="wanted"))

    def waiting() -> None:
        held.wait(5)
        try:
            store.write_now(want)
        finally:
            free.set()

    got = at_once(lambda: store.write_now(hold), waiting)
    assert isinstance(got[1], Unavailable), got
    assert len(runs) == TRIES == counted("lock_timeout") - before
    shown = store.read_now(lambda tx: [tx.execute(text(f"SHOW {name}")).scalar() for name in BOUNDS])
    assert shown == list(BOUNDS.values()), "each session has its bounds"


BOUNDS = {"lock_timeout": "3s", "statement_timeout": "15s", "idle_in_transaction_session_timeout": "15s"}


@only_postgresql
def test_a_connection_that_broke_is_made_anew(store: Store) -> None:
    before, runs = counted("disconnected"), []

    def function(tx: Connection) -> str:
        runs.append(1)
        if len(runs) == 1:
            tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return "done"

    assert store.write_now(function) == "done"
    assert counted("disconnected") - before == 1


@only_postgresql
def test_a_reader_sees_one_moment_and_writes_nothing(store: Store) -> None:
    enrol(store, "h1")

    def read(tx: Connection) -> tuple[str, str]:
        query = select(hosts.c.uptime)
        one = tx.execute(query).scalar_one()
        store.write_now(lambda other: other.execute(update(hosts).values(uptime="changed")))
        return one, tx.execute(query).scalar_one()

    assert len(set(store.read_now(read))) == 1
    with pytest.raises(Exception, match="read-only"):
        store.read_now(lambda tx: tx.execute(update(hosts).values(uptime="no")))


@only_postgresql
def test_a_value_that_the_database_cannot_hold_is_the_callers_fault(store: Store) -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(Invalid, match="cannot hold"):
            store.write_now(identity.create_project, name)


@only_postgresql
def test_a_database_that_is_away_is_said_to_be_away(store: Store) -> None:
    away = Store(store.url.replace(f":{postgresql().port}/", ":1/"))
    with pytest.raises(Unavailable, match="does not answer"):
        away.read_now(identity.list_projects)
    away.close()
