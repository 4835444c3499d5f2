"""What was found by fuzzing, each as the request, message or file that showed it."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.unit import compute_cloud as fill
from tests.unit.cloud import Cloud
from tests.unit.orders import SERVER
from whimbrel.bus.codec import DecodeError, registry
from whimbrel.cli import bootstrap, login
from whimbrel.conductor import reports, timers
from whimbrel.conductor.drive import Driver
from whimbrel.domain.errors import SettingsError
from whimbrel.domain.migration import Answer, Verb
from whimbrel.identity import policy
from whimbrel.migration.messages import MESSAGES, StepReport, Targets, Wake
from whimbrel.migration.presence import GuestReport
from whimbrel.ops import clock, settings
from whimbrel.store import journal, migrations
from whimbrel.store.outbox import Relay
from whimbrel.store.tables import outbox, servers

NEW = {"name": "vm", "imageRef": fill.IMAGE, "flavorRef": "1"}
SPLIT = base64.b64encode(b"#cloud-config").decode()
CREATED = {
    "a name that cannot be numbered": NEW | {"name": "x" * 255, "max_count": 2},
    "user data that no host can decode": NEW | {"user_data": SPLIT[:4] + "\u2003" + SPLIT[4:]},
    "a NUL in metadata": NEW | {"metadata": {"a": "b\0c"}},
    "a flavor of five thousand digits": NEW | {"flavorRef": "9" * 5000},
}
ASKED = {
    "a NUL in the query": "/compute/v2.1/servers?name=%00",
    "a quote in a property's name": "/image/v2/images?a%22b=1",
    "a key to sort by twice": "/image/v2/images?sort=" + ",".join(["name:asc"] * 2000),
    "more values than a query holds": "/image/v2/images?name=in:" + "a," * 20_000,
    "a marker that is not there": "/network/v2.0/networks?limit=1&marker=nothing",
    "a limit that is no number": "/identity/v3/users?limit=x",
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", CREATED)
async def test_a_server_cannot_be_created_with(cloud: Cloud, what: str) -> None:
    fill.furnish(cloud)
    answer = await cloud.http.post(fill.servers_url(), json={"server": CREATED[what]}, headers=cloud.token("alice"))
    assert answer.status_code == 400, answer.text
    assert cloud.services.store.read_now(lambda tx: tx.execute(select(servers.c.id)).all()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("what", ASKED)
async def test_a_list_cannot_be_asked_for_with(cloud: Cloud, what: str) -> None:
    answer = await cloud.http.get(ASKED[what], headers=cloud.token("admin"))
    assert answer.status_code == 400, (answer.status_code, answer.text[:300])


@pytest.mark.anyio
@pytest.mark.parametrize("length", [2**63, 10**400])
async def test_a_console_has_a_bounded_number_of_lines(cloud: Cloud, length: int) -> None:
    fill.furnish(cloud)
    server = await fill.active(cloud)
    body = json.dumps({"os-getConsoleOutput": {"length": length}}).encode()
    answer = await cloud.http.post(fill.servers_url(f"/{server}/action"), content=body, headers=cloud.token("alice"))
    assert answer.status_code == 400, answer.text


# --- messages --------------------------------------------------------------------------------------

CODEC = registry(*MESSAGES)
GUEST: dict[str, Any] = {"server": SERVER, "power_state": "running", "epoch": 1, "number": 1}
REPORT: dict[str, Any] = {
    "host": "h1", "server": SERVER, "migration": 7, "segment": 0, "attempt": "7-1", "step": "prepare", "verb": "do",
    "number": 1, "answer": "stale", "facts": {"epoch": 1, "number": 1},
}  # fmt: skip
ABSURD = [
    (GuestReport, GUEST | {"power_state": "bananas"}), (GuestReport, GUEST | {"epoch": 2**62}),
    (GuestReport, GUEST | {"number": -1}), (GuestReport, GUEST | {"server": "../../etc"}),
    (StepReport, REPORT | {"facts": {"epoch": 2**31}}), (StepReport, REPORT | {"facts": {"epoch": "x"}}),
    (StepReport, REPORT | {"reason": "a\0b"}), (StepReport, REPORT | {"host": "h1/../h2"}),
    (StepReport, REPORT | {"facts": {"power_state": "bananas"}}), (StepReport, REPORT | {"elapsed": -1.0}),
    (Targets, {"hosts": ["h1"], "weights": [], "refusals": []}),
    (Targets, {"hosts": [], "weights": [], "refusals": [{"host": "h", "filter": "f", "reason": "a\0b"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), ABSURD)
def test_an_absurd_message_is_no_message(kind: type, body: dict[str, Any]) -> None:
    codec = registry(*MESSAGES, GuestReport)
    with pytest.raises(DecodeError):
        codec.decode(json.dumps({"type": kind.__name__, "body": body, "context": {}}).encode())


@pytest.mark.anyio
@pytest.mark.parametrize("forged", ["server", "attempt"])
async def test_a_report_counts_only_for_the_server_and_the_attempt_of_its_order(cloud: Cloud, forged: str) -> None:
    fill.furnish(cloud)
    victim = await fill.active(cloud, name="victim")
    await fill.create(cloud, name="mine")
    store = cloud.services.store
    driver = Driver(settings.Conductor(), lambda image: "")

    def place(tx: Any) -> Any:
        for number in migrations.open_ids(tx):
            timers.keep_targets(tx, driver, number, Targets(("h1",), (1.0,), ()))
        (row,) = journal.awaited(tx)
        return journal.order_of(row)

    order = store.write_now(place)
    fields = {name: getattr(order, name) for name in ("host", "server", "migration", "segment", "attempt", "step")}
    fields |= {"server": victim} if forged == "server" else {"attempt": "99-9"}
    said = StepReport(**fields, verb=Verb.DO, number=order.number, answer=Answer.DONE, facts={"power_state": "paused"})
    store.write_now(reports.take, driver, said)
    states = store.read_now(lambda tx: set(tx.execute(select(servers.c.power_state)).scalars()))
    assert "paused" not in states
    assert len(store.read_now(journal.awaited)) == 1, "the order is still out"


@pytest.mark.anyio
async def test_a_row_of_the_outbox_that_nobody_understands_holds_nobody_up(cloud: Cloud) -> None:
    sent: list[object] = []
    heard = asyncio.Event()

    async def cast(queue: str, message: object) -> None:
        sent.append(message)
        heard.set()

    def rows(tx: Any) -> None:
        for kind, body in (("Telepathy", {}), ("Wake", {"migration": -1}), ("Wake", {"migration": 7})):
            tx.execute(outbox.insert().values(queue="conductor", type=kind, body=body, due_at=clock.now() - 60.0))

    cloud.services.store.write_now(rows)
    relay = Relay(cloud.services.store, cast)
    running = asyncio.create_task(relay.run())
    await asyncio.wait_for(heard.wait(), 10)
    assert not running.done()
    running.cancel()
    await relay.close()
    left = cloud.services.store.read_now(lambda tx: tx.execute(select(outbox.c.type)).scalars().all())
    assert sent == [Wake(7)] and left == ["Telepathy", "Wake"]


# --- files -----------------------------------------------------------------------------------------

BROKEN = {
    "no UTF-8": b"\xff\xfe", "nested too deeply": b"[" * 20_000, "a date that is none": b"a: 2026-99-99",
    "a TOML date that is none": b"a = 2026-99-99", "a number that is none": b"a: 0b_", "a NUL": b"\x00",
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(BROKEN[what])
    environment = {"OS_CLIENT_CONFIG_FILE": str(path)}
    readers = (settings.load, policy.load, bootstrap.read, lambda _: login.find(None, environment))
    for reader in readers:
        with pytest.raises(SettingsError, match=str(path)):
            reader(path)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("api = {port = 0}", "port"), ("api = {port = 99999}", "port"), ("conductor = {ask_after = nan}", "ask_after"),
        ("conductor = {service_down_after = 0}", "service_down_after"),
        ("scheduler = {ram_weight = inf}", "ram_weight"),
        ("agent = {host = 'a/b', address = 'x'}", "host"), ("agent = {host = 'a', address = 'x', mtu = 5}", "mtu"),
        ("agent = {host = 'a', address = 'x', cpu_ratio = -1.0}", "cpu_ratio"),
        ("agent = {host = 'a', address = 'x', heartbeat_interval = 0}", "heartbeat_interval"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, line: str, key: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(line)
    with pytest.raises(SettingsError, match=rf"{path}.*\.{key}"):
        settings.load(path)


@pytest.mark.parametrize(
    ("cloud_text", "key"),
    [
        ("{auth: [x]}", "auth"), ("{auth: {auth_url: {}}}", "auth_url"), ("{verify: no.pem}", "verify"),
        ("{auth: {}, region_name: [a]}", "region_name"),
    ],
)  # fmt: skip
def test_a_cloud_of_the_wrong_shape_is_named(tmp_path: Path, cloud_text: str, key: str) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_text(f"clouds: {{1: {cloud_text}}}")
    with pytest.raises(SettingsError, match=f"{key}.*cloud 1 of {path}"):
        login.find(None, {"OS_CLIENT_CONFIG_FILE": str(path)})
