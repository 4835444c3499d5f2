"""Two processes that want the same thing at the same time: one gets it, the other is told, nothing is done twice."""

from __future__ import annotations

from threading import Event

import pytest
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from tests.store.rows import SERVER, WHO, add_server, at_once, enrol, heartbeat, slowly
from tests.unit.orders import order
from whimbrel.conductor import hosts as host_books
from whimbrel.conductor import timers
from whimbrel.conductor.drive import Driver
from whimbrel.domain.claim import Resources
from whimbrel.domain.errors import Conflict, StepError
from whimbrel.domain.migration import Kind, Mark, Verb, Verdict
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.ops import clock, settings
from whimbrel.store import claims, debts, hosts_view, journal, migrations, networks, servers_core
from whimbrel.store.engine import Store
from whimbrel.store.tables import debts as debts_table
from whimbrel.store.tables import hosts, ports
from whimbrel.store.tables import migrations as migrations_table

TOGETHER = 8


def test_the_last_room_is_taken_once(store: Store) -> None:
    enrol(store, "h1")  # 4 vcpus
    need = Resources(3, 100, 1)
    got = at_once(
        *(lambda n=n: store.write_now(slowly(claims.take), "h1", f"s{n}", "1-1", need) for n in range(TOGETHER))
    )
    assert sum(isinstance(each, Resources) for each in got) == 1, got
    assert sum(isinstance(each, StepError) for each in got) == TOGETHER - 1, got
    assert store.read_now(claims.claimed)["h1"] == need


def test_a_server_has_one_open_migration(store: Store) -> None:
    enrol(store, "h1")
    add_server(store)
    begin = lambda: store.write_now(slowly(migrations.begin), SERVER, Kind.MIGRATION, protocols.COLD, **WHO)  # noqa: E731
    got = at_once(*[begin] * TOGETHER)
    assert sum(isinstance(each, migrations.Begun) for each in got) == 1, got
    assert sum(isinstance(each, Conflict) for each in got) == TOGETHER - 1, got

    def second(tx: Connection) -> None:
        row = tx.execute(select(migrations_table)).one()._asdict()
        tx.execute(insert(migrations_table).values({**row, "id": row["id"] + 1, "uuid": "another"}))

    with pytest.raises((IntegrityError, Exception), match=r"(?i)unique"):  # the database itself stands behind it
        store.write_now(second)


def test_the_verdict_is_given_once(store: Store) -> None:
    enrol(store, "h1")
    add_server(store)
    store.write_now(migrations.begin, SERVER, Kind.MIGRATION, protocols.COLD, **WHO)
    store.write_now(lambda tx: tx.execute(update(migrations_table).values(window_open=True)))
    give = lambda verdict: store.write_now(slowly(migrations.give_verdict), SERVER, verdict, request_id="r")  # noqa: E731
    got = at_once(*[lambda: give(Verdict.CONFIRM), lambda: give(Verdict.REVERT)] * (TOGETHER // 2))
    row = store.read_now(lambda tx: tx.execute(select(migrations_table)).one())
    assert len(row.segments) == 2, "one segment was added, not two"
    assert row.segments[1]["protocol"] == row.verdict
    assert sum(isinstance(each, migrations.Begun) for each in got) == TOGETHER // 2, got
    assert sum(isinstance(each, Conflict) for each in got) == TOGETHER // 2, got


def test_an_address_is_given_once(store: Store) -> None:
    network = store.write_now(networks.create_network, "n", "10.9.0.0/24", "p")
    allocate = lambda n: store.write_now(slowly(networks.allocate_port), network.id, f"s{n}")  # noqa: E731
    at_once(*(lambda n=n: allocate(n) for n in range(TOGETHER)))
    given = store.read_now(lambda tx: list(tx.execute(select(ports.c.address)).scalars()))
    assert len(given) == len(set(given)) == TOGETHER


def test_a_number_is_drawn_once_and_never_goes_back(store: Store) -> None:
    enrol(store, "h1")
    add_server(store)

    def draw() -> int:
        return int(store.write_now(servers_core.next_number, SERVER, "h1", raise_epoch=False).order_number)

    def adopt() -> bool:
        return store.write_now(servers_core.adopt_numbers, SERVER, 1, 5)

    got = at_once(*[draw, adopt] * TOGETHER)
    drawn = [each for each in got if not isinstance(each, bool)]
    assert len(set(drawn)) == TOGETHER, drawn
    assert store.read_now(servers_core.load, SERVER).order_number >= max(*drawn, 5)


def test_a_host_that_several_conductors_hear_first_is_enrolled_once(store: Store) -> None:
    beat = heartbeat("h1")
    hear = lambda: store.write_now(slowly(host_books.hear), beat, settings.Conductor())  # noqa: E731
    got = at_once(*[hear] * TOGETHER)
    assert not [each for each in got if isinstance(each, Exception)], got
    assert store.read_now(lambda tx: tx.execute(select(func.count()).select_from(hosts)).scalar()) == 1


def test_a_host_is_not_removed_under_a_claim(store: Store) -> None:
    enrol(store, "h1")
    add_server(store, "elsewhere")
    row = store.read_now(hosts_view.find, "h1")
    assert row is not None
    claimed = Event()

    def claim(tx: Connection) -> None:
        begun = migrations.begin(tx, SERVER, Kind.MIGRATION, protocols.COLD, **WHO)
        tx.execute(update(migrations_table).where(migrations_table.c.id == begun.migration_id).values(target="h1"))
        claims.take(tx, "h1", SERVER, "1-1", Resources(1, 1, 1))
        claimed.set()
        Event().wait(0.3)  # not committed yet, so the other sees what was before

    def remove() -> None:
        claimed.wait(5)
        store.write_now(hosts_view.remove, row)

    got = at_once(lambda: store.write_now(claim), remove)
    assert isinstance(got[1], Conflict), got
    assert store.read_now(hosts_view.find, "h1") is not None, "there is a claim on it"


def test_two_conductors_collect_what_a_host_owes_for_a_server_one_by_one(store: Store) -> None:
    enrol(store, "h1")
    add_server(store)
    for step in ("define_guest", "prepare"):
        store.write_now(debts.owe, order(step, 0, server=SERVER), step, Verb.UNDO)
    got = at_once(*[lambda: store.write_now(slowly(debts.due), clock.now(), 0.0)] * TOGETHER)
    assert sorted(len(each) for each in got) == [0] * (TOGETHER - 1) + [1], got
    numbers = store.read_now(lambda tx: list(tx.execute(select(debts_table.c.number)).scalars()))
    assert sorted(numbers)[-1:] == [each.number for orders in got for each in orders]


def test_a_host_that_reports_in_the_moment_it_is_called_silent_is_not_lost(store: Store) -> None:
    """The conductor that calls it silent had looked before the report was written down."""
    enrol(store, "h1")
    add_server(store)
    begun = store.write_now(migrations.begin, SERVER, Kind.POWER, protocols.POWER, action=PowerAction.STOP, **WHO)
    driver = Driver(settings.Conductor(), lambda image: "")
    store.write_now(driver.advance, begun.migration_id)
    key = (begun.migration_id, 0, 1, "set_power")
    store.write_now(lambda tx: journal.write(tx, key, {"heard_at": 0.0}))
    assert store.read_now(timers.look, settings.Conductor()).silent == [key]

    written = Event()

    def report(tx: Connection) -> None:
        migrations.load(tx, begun.migration_id)
        journal.write(tx, key, {"mark": Mark.DONE, "heard_at": clock.now()})
        written.set()
        Event().wait(0.3)  # not committed yet, so the other sees what was before

    def call_silent() -> None:
        written.wait(5)
        store.write_now(timers.call_silent, driver, key)

    assert at_once(lambda: store.write_now(report), call_silent) == [None, None]
    row = store.read_now(journal.row_for, key)
    assert row is not None and row.mark == Mark.DONE
