"""Bytes and messages from the bus: they are refused, or taken, and either way everything still stands."""

from __future__ import annotations

import json
import re
import sqlite3
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from tests.fuzz.crowd import Crowd, crowded
from tests.unit.orders import SERVER, order
from whimbrel.agent.control import StepControl
from whimbrel.agent.executor import look, perform
from whimbrel.agent.ledger import Ledger
from whimbrel.agent.service import world
from whimbrel.bus.codec import DecodeError, registry
from whimbrel.conductor import hosts, reports, timers
from whimbrel.conductor.drive import Driver
from whimbrel.domain.migration import Answer
from whimbrel.migration.messages import MESSAGES, Order, StepReport, Targets
from whimbrel.migration.ports import World
from whimbrel.migration.presence import Heartbeat
from whimbrel.migration.protocols import PROTOCOLS
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent, Conductor
from whimbrel.scheduler import table
from whimbrel.store import journal, migrations, servers_core
from whimbrel.store.tables import servers

CODEC = registry(*MESSAGES)
NUMBERS = st.sampled_from((0, 1, -1, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400)) | st.integers(-9, 99)
MEASURES = st.sampled_from((0.0, -1.0, 0.5, 1.0, 1e300, -1e300, 1e-300)) | st.floats(allow_nan=False)
TEXTS = st.sampled_from(
    (
        "",
        "h1",
        "h2",
        "../../etc/passwd",
        "a/b",
        "a\x00b",
        "é",
        "x" * 300,
        "\r\n",
        "running",
        "done",
        "cold",
        "7-1",
        "-1-1",
    )
) | st.text(max_size=12)
FACTS = st.recursive(
    st.none() | st.booleans() | NUMBERS | MEASURES | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
JSON = st.recursive(
    FACTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


VERBS = st.sampled_from(("do", "undo"))
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Draw what has this type, however absurd."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.fixed_dictionaries({each.name: of_type(hints[each.name]) for each in fields(hint)})
    if origin in (typing.Union, UnionType):
        return st.one_of(*(of_type(each) for each in inner))
    if origin is tuple:
        return st.lists(of_type(inner[0]), max_size=3) if inner[-1] is Ellipsis else st.tuples(*map(of_type, inner))
    if origin is dict:
        return st.dictionaries(TEXTS, FACTS if inner[1] is Any else of_type(inner[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from([each.value for each in hint])
    known = {int: NUMBERS, float: MEASURES, str: TEXTS, bool: st.booleans(), NoneType: st.none(), Any: FACTS}
    return known[hint]


BODIES = {kind: of_type(kind) for kind in MESSAGES}


def decoded(kind: type, body: Any) -> Any:
    """Return the message, None when it is refused as none; anything but a DecodeError is a failure."""
    data = json.dumps({"type": kind.__name__, "body": body, "context": {"request_id": "req-1"}}).encode()
    try:
        return CODEC.decode(data)[0]
    except DecodeError:
        return None


@given(st.binary(max_size=200))
def test_bytes_are_a_message_or_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        CODEC.decode(data)


@given(kind=st.sampled_from(MESSAGES), body=JSON, data=st.data())
def test_json_is_a_message_or_refused(kind: type, body: Any, data: st.DataObject) -> None:
    near = data.draw(BODIES[kind])
    decoded(kind, body)
    decoded(kind, near)
    if near:
        decoded(kind, near | {data.draw(st.sampled_from(sorted(near))): body})
        decoded(kind, near | {data.draw(TEXTS): body})


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b"[" * 900 + b"]" * 900, b'{"a":' * 50_000, b"9" * 5000, b"1e999", b"NaN", b"-Infinity",
        b'"\\ud800"', b'"\xed\xa0\x80"', b'{"migration":1,"migration":2}', b'{"migration":' + b"9" * 4000 + b"}",
    ],
)  # fmt: skip
def test_what_would_exhaust_a_decoder_is_refused(body: bytes) -> None:
    for envelope in (b'{"type":"Wake","body":' + body + b"}", b'{"type":"StepReport","body":' + body + b"}", body):
        try:
            message, _ = CODEC.decode(envelope)
        except DecodeError:
            continue
        assert message.migration == 2, "the last of two equal keys counts, as everywhere in JSON"


# --- what the conductor does with them ------------------------------------------------------------


@dataclass
class Office:
    """The conductor's functions over a crowded database in which orders are out."""

    crowd: Crowd
    driver: Driver
    conf: Conductor
    awaited: list[dict[str, Any]]

    def do(self, function: Any, *args: Any) -> None:
        """Run one transaction."""
        self.crowd.cloud.services.store.write_now(function, *args)

    def check(self) -> None:
        """Fail if something is written down that cannot be kept, shown or scheduled with."""
        assert self.crowd.misfits() == []
        token = [(b"x-auth-token", str(self.crowd.tokens["admin"]).encode())]
        for path in SHOWN:
            answer = self.crowd.ask("GET", path, token)
            assert answer.status == 200, (path, answer.body)
        self.crowd.cloud.services.store.read_now(table.read, clock.now(), 60.0)


SHOWN = (
    "/compute/v2.1/servers/detail?all_tenants=1", "/compute/v2.1/os-hypervisors/detail", "/whimbrel/v1/hosts",
    "/compute/v2.1/os-hypervisors/statistics", "/compute/v2.1/os-migrations", "/whimbrel/v1/migrations?limit=1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with crowded(tmp_path_factory.mktemp("office")) as crowd:
        conf = Conductor()
        driver = Driver(conf, lambda image: "")
        store = crowd.cloud.services.store

        def place(tx: Connection) -> None:
            for number in migrations.open_ids(tx):
                driver.advance(tx, number)
                timers.keep_targets(tx, driver, number, Targets(("h2", "h3"), (1.0, 1.0), ()))

        store.write_now(place)
        crowd.pristine = sqlite3.connect(":memory:")
        crowd.live.backup(crowd.pristine)
        awaited = store.read_now(_awaited)
        assert len(awaited) > 3
        yield Office(crowd, driver, conf, awaited)


def _awaited(tx: Connection) -> list[dict[str, Any]]:
    orders = [journal.order_of(row) for row in journal.awaited(tx) if row.outstanding is not None]
    return [
        {name: getattr(order, name) for name in ("host", "server", "migration", "segment", "attempt", "step", "number")}
        | {"verb": order.verb.value}
        for order in orders
    ]


TOLD = {
    "power_state": st.sampled_from(("running", "stopped", "paused")) | FACTS, "released": FACTS, "unheard": FACTS,
    "epoch": FACTS, "number": FACTS, "guest_down": FACTS, "rewrites": FACTS, "definition": FACTS, "disks": FACTS,
}  # fmt: skip


@given(data=st.data())
def test_a_report_of_anything_leaves_the_books_in_order(office: Office, data: st.DataObject) -> None:
    known = data.draw(st.sampled_from(office.awaited))
    strange = data.draw(BODIES[StepReport])
    wrong = data.draw(st.sets(st.sampled_from(sorted(strange)), max_size=2))
    facts = data.draw(st.fixed_dictionaries({}, optional=TOLD))
    answer = data.draw(st.sampled_from([each.value for each in Answer]))
    body = strange | known | {"facts": facts, "answer": answer, "elapsed": 1.0} | {key: strange[key] for key in wrong}
    try:
        message = decoded(StepReport, body)
        if message is not None:
            office.do(reports.take, office.driver, message)
        office.check()
    finally:
        office.crowd.put_back()


@given(data=st.data())
def test_a_heartbeat_of_anything_leaves_the_books_in_order(office: Office, data: st.DataObject) -> None:
    sane = {"host": "h2", "protocols": {"cold": 1}, "architecture": "x86_64", "hypervisor": "fake", "root_disk": "raw"}
    sane |= dict.fromkeys(("vcpus", "ram_mb", "disk_gb", "free_disk_gb", "hypervisor_version"), 4)
    sane |= dict.fromkeys(("reserved_vcpus", "reserved_ram_mb", "reserved_disk_gb"), 0)
    sane |= dict.fromkeys(("cpu_ratio", "ram_ratio", "disk_ratio"), 1.0)
    sane |= dict.fromkeys(("boot", "ledger", "address", "uptime", "admission"), "b") | {"lease_asked": None}
    strange = data.draw(BODIES[Heartbeat])
    wrong = data.draw(st.sets(st.sampled_from(sorted(strange)), max_size=2))
    guests = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "server": st.sampled_from(office.crowd.names["servers"]) | TEXTS,
                    "power_state": st.sampled_from(("running", "stopped", "unknown", "bananas")),
                    "epoch": NUMBERS, "number": NUMBERS, "interrupted": st.booleans(),
                }
            ),
            max_size=3,
        )
    )  # fmt: skip
    body = strange | sane | {"guests": guests} | {key: strange[key] for key in wrong}
    try:
        message = decoded(Heartbeat, body)
        if message is not None:
            office.do(hosts.hear, message, office.conf)
        office.check()
    finally:
        office.crowd.put_back()


@given(data=st.data())
def test_any_list_of_targets_leaves_the_books_in_order(office: Office, data: st.DataObject) -> None:
    unplaced = data.draw(st.sampled_from(office.awaited))["migration"]
    message = decoded(Targets, data.draw(BODIES[Targets]) | {"hosts": ["h77", "h2"], "weights": [1.0, 2.0]})
    try:
        office.do(lambda tx: tx.execute(migrations.migrations.update().values(targets=None, target=None)))
        if message is not None:
            office.do(timers.keep_targets, office.driver, unplaced, message)
        office.check()
    finally:
        office.crowd.put_back()


def test_the_greatest_numbers_that_are_believed_can_be_counted_on_from(office: Office) -> None:
    """An epoch at the bound is adopted, and the next order still has a number that the database can hold."""
    server = office.crowd.names["servers"][0]

    def jump(tx: Connection) -> Any:
        most = servers_core.NUMBERS_MAX
        assert not servers_core.adopt_numbers(tx, server, most, most), "no backup is so old"
        near = {"epoch": most - servers_core.LEAD_MAX, "order_number": most - servers_core.LEAD_MAX}
        servers_core.set_values(tx, server, **near)
        assert servers_core.adopt_numbers(tx, server, most, most)
        return servers_core.next_number(tx, server, "h1", raise_epoch=True)

    try:
        row = office.crowd.cloud.services.store.write_now(jump)
        assert (row.epoch, row.order_number) == (servers_core.NUMBERS_MAX + 1, servers_core.NUMBERS_MAX + 1)
        assert row.epoch < 2**31
        assert (
            office.crowd.cloud.services.store.read_now(
                lambda tx: tx.execute(select(servers.c.epoch).where(servers.c.id == server)).scalar_one()
            )
            == row.epoch
        )
    finally:
        office.crowd.put_back()


# --- what an agent does with them -------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Ledger, World]]:
    folder = tmp_path_factory.mktemp("host")
    agent = Agent(
        host="h1",
        address="h1",
        hypervisor="fake",
        instances_dir=str(folder / "instances"),
        state_dir=str(folder / "state"),
    )
    (folder / "instances").mkdir()
    ledger = Ledger(agent.state_dir, "boot")
    yield folder, ledger, world(agent, ledger, lambda: True)
    ledger.close()


SANE = msgspec.to_builtins(order("prepare", 1))


@given(data=st.data())
def test_an_order_of_anything_is_answered_and_touches_nothing_else(
    host: tuple[Path, Ledger, World], data: st.DataObject
) -> None:
    folder, ledger, here = host
    strange = data.draw(BODIES[Order])
    wrong = data.draw(st.sets(st.sampled_from(sorted(strange)), max_size=2))
    step = data.draw(st.sampled_from([(table.name, row.name) for table in PROTOCOLS.values() for row in table.steps]))
    body = SANE | {"protocol": step[0], "step": step[1], "number": data.draw(NUMBERS), "verb": data.draw(VERBS)}
    message = decoded(Order, body | {key: strange[key] for key in wrong})
    if message is None:
        return
    ledger.accept(message)
    ledger.find(message)
    answer, _, reason = perform(here, message, StepControl(min(message.limit, 0.3)))
    assert answer in Answer and "internal error" not in reason, (message, reason)
    answer, _, reason = look(here, message, StepControl(0.3))
    assert "internal error" not in reason, (message, reason)
    assert {path.name for path in folder.iterdir()} <= {"instances", "state", "fake-wire"}
    strangers = [path for path in (folder / "instances").iterdir() if not path.name.startswith((SERVER, ".", "_"))]
    assert all(UUID.match(path.name) for path in strangers), strangers
