"""A repair is done with authority, in one transaction, and only while the server is as it was when it was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, select, update

from tests.audit.drifting import row
from tests.unit.compute_cloud import add_host
from whimbrel.audit import repair
from whimbrel.audit.findings import Mend, Repair
from whimbrel.domain.migration import Verb
from whimbrel.domain.server import Flavor
from whimbrel.migration.messages import Order
from whimbrel.store.engine import Store
from whimbrel.store.tables import claims, debts, metadata, migrations, outbox, servers

SERVER = "11111111-2222-4333-8444-555555555555"
FLAVOR = {"number": 1, **msgspec.to_builtins(Flavor("small", "small", 1, 128, 1))}
ROOM = {"vcpus": 1, "ram_mb": 128, "disk_gb": 1}

STOP = Repair(Mend.STOP_STRAY, "h2", SERVER, 3, 9)
DISCARD = Repair(Mend.DISCARD_INCOMING, "h2", SERVER, 3, 9, "7-1")
RETIRE = Repair(Mend.RETIRE_SEALED, "h2", SERVER, 3, 9, "7-1")
REMOVE = Repair(Mend.REMOVE_DELETED, "h2", SERVER, 3, 9)
GIVE_BACK = Repair(Mend.GIVE_CLAIM_BACK, "h2", SERVER, 3, 9, claim=2)
SET = Repair(Mend.SET_CLAIM, "h1", SERVER, 3, 9, claim=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A database with one server on h1, a closed move of it, its claim and one too many."""
    store = Store(f"sqlite:///{tmp_path}/books.db")
    store.write_now(metadata.create_all)

    def rows(tx: Connection) -> None:
        for name in ("h1", "h2"):
            add_host(tx, name)
        row(
            tx, servers, id=SERVER, name="vm", project_id="p", user_id="u", reservation_id="r", flavor=FLAVOR,
            image=None, host="h1", root_disk="qcow2", epoch=3, order_number=9, power_state="running",
            created_at=0.0, updated_at=0.0,
        )  # fmt: skip
        row(tx, migrations, id=7, **_migration(open=False))
        for number, host in ((1, "h1"), (2, "h2")):
            row(tx, claims, id=number, host=host, server_id=SERVER, attempt=f"{number}-1", **ROOM)

    store.write_now(rows)
    yield store
    store.close()


def _migration(**more: Any) -> dict[str, Any]:
    return {
        "uuid": f"uuid-{more}", "server_id": SERVER, "kind": "migration", "project_id": "p", "user_id": "u",
        "request_id": "r", "segments": [], "old_flavor": FLAVOR, "new_flavor": FLAVOR, "was_running": True,
        "created_at": 0.0, "updated_at": 0.0, **more,
    }  # fmt: skip


def do(store: Store, *wanted: Repair) -> list[Mend]:
    return [one.mend for one in store.write_now(repair.apply, wanted[0].server, wanted)[0]]


def change(store: Store, **values: Any) -> None:
    store.write_now(lambda tx: tx.execute(update(servers).values(**values)))


def owed(store: Store) -> list[tuple[str, str, str, str]]:
    found = store.read_now(lambda tx: tx.execute(select(debts)).all())
    return [(one.host, one.step, one.verb, one.attempt) for one in found]


def orders(store: Store) -> list[Order]:
    found = store.read_now(lambda tx: tx.execute(select(outbox)).all())
    assert all(one.queue == f"agent.{one.body['host']}" for one in found)
    return [msgspec.convert(one.body, Order) for one in found]


def claimed(store: Store) -> list[tuple[int, str, int]]:
    found = store.read_now(lambda tx: tx.execute(select(claims).order_by(claims.c.id)).all())
    return [(one.id, one.host, one.ram_mb) for one in found]


def test_files_of_an_attempt_that_is_over_become_a_debt_that_names_it(store: Store) -> None:
    assert do(store, DISCARD) == [Mend.DISCARD_INCOMING]
    assert owed(store) == [("h2", "prepare", Verb.UNDO, "7-1")]
    assert do(store, RETIRE) == [] and len(owed(store)) == 1  # one thing at a time on one host
    assert orders(store) == []


def test_everything_of_a_server_goes_only_when_it_is_deleted(store: Store) -> None:
    assert do(store, REMOVE) == [] and owed(store) == []
    change(store, deleted_at=1.0)
    assert do(store, REMOVE) == [Mend.REMOVE_DELETED]
    assert owed(store) == [("h2", "remove_guest", Verb.DO, "7-1")]
    assert do(store, replace(STOP, host="h1")) == []  # a deleted server has no home that could vouch


def test_a_stray_guest_is_stopped_by_an_order_numbered_now_and_nothing_overtakes_it(store: Store) -> None:
    assert do(store, RETIRE, STOP, GIVE_BACK) == [Mend.STOP_STRAY]
    (order,) = orders(store)
    assert (order.protocol, order.step, order.verb, order.host) == ("revert", "stop_target", Verb.DO, "h2")
    assert (order.epoch, order.number) == (3, 10) and owed(store) == []
    assert do(store, STOP) == []  # a second audit that looked before it finds other numbers now
    assert do(store, replace(STOP, host="h1", number=10)) == []  # never where the server belongs


def test_a_claim_without_owner_is_given_back_and_the_last_one_at_home_never(store: Store) -> None:
    assert do(store, GIVE_BACK) == [Mend.GIVE_CLAIM_BACK]
    assert do(store, replace(GIVE_BACK, host="h1", claim=1)) == []
    assert claimed(store) == [(1, "h1", 128)]


def test_a_claim_is_made_what_the_server_takes(store: Store) -> None:
    store.write_now(lambda tx: tx.execute(update(claims).where(claims.c.id == 1).values(ram_mb=5)))
    assert do(store, SET) == [Mend.SET_CLAIM]
    assert claimed(store) == [(1, "h1", 128), (2, "h2", 128)]
    store.write_now(lambda tx: tx.execute(claims.delete().where(claims.c.id == 1)))
    missing = replace(SET, claim=None)
    assert do(store, missing) == do(store, missing) == [Mend.SET_CLAIM]  # twice is once
    assert [(host, ram) for _, host, ram in claimed(store)] == [("h2", 128), ("h1", 128)]


@pytest.mark.parametrize("wanted", [STOP, DISCARD, RETIRE, GIVE_BACK, SET, REMOVE], ids=lambda one: one.mend)
def test_nothing_is_done_once_the_server_has_changed(store: Store, wanted: Repair) -> None:
    if wanted is REMOVE:
        change(store, deleted_at=1.0)
    before = claimed(store)
    for stale in (replace(wanted, number=8), replace(wanted, epoch=2)):
        assert do(store, stale) == []
    store.write_now(row, migrations, id=8, **_migration(open=True))
    assert do(store, wanted) == []
    store.write_now(lambda tx: tx.execute(update(migrations).values(open=False)))
    debt = {"host": wanted.host, "server_id": SERVER, "migration_id": 7, "attempt": "7-1", "step": "x", "verb": "do"}
    store.write_now(row, debts, **debt, order={}, created_at=0.0)
    assert do(store, wanted) == []
    assert (claimed(store), orders(store), len(owed(store))) == (before, [], 1)
    store.write_now(lambda tx: tx.execute(update(debts).values(paid_at=1.0)))
    assert do(store, wanted) == [wanted.mend]
