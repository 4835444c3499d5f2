"""Migrate, resize, confirm, revert and power through the compute API: what is accepted, refused, and told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from tests.unit.cloud import Cloud
from tests.unit.compute_cloud import (
    active,
    add_host,
    at,
    claim,
    close,
    create,
    furnish,
    open_window,
    progress,
    servers_url,
)
from tests.unit.orders import order
from whimbrel.domain.migration import Mark, Refusal
from whimbrel.domain.server import Flavor, Manner
from whimbrel.migration.messages import Console, Foresee, Foresight, ReadConsole, SelectTargets, Steering, Targets, Way
from whimbrel.ops import clock
from whimbrel.store import flavors
from whimbrel.store import migrations as store_migrations
from whimbrel.store.tables import hosts, journal, migrations, servers

pytestmark = pytest.mark.anyio


async def act(cloud: Cloud, server_id: str, body: Any, who: str = "admin", version: str = "2.1") -> httpx2.Response:
    return await cloud.http.post(servers_url(f"/{server_id}/action"), json=body, headers=at(cloud, who, version))


async def state(cloud: Cloud, server_id: str) -> tuple[str, str | None]:
    answer = await cloud.http.get(servers_url(f"/{server_id}"), headers=cloud.token("alice"))
    server = answer.json()["server"]
    return server["status"], server["OS-EXT-STS:task_state"]


def message(answer: httpx2.Response) -> str:
    return str(next(iter(answer.json().values()))["message"])


async def listed(cloud: Cloud, query: str = "", who: str = "admin", version: str = "2.80") -> list[dict[str, Any]]:
    answer = await cloud.http.get(f"/compute/v2.1/os-migrations{query}", headers=at(cloud, who, version))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["migrations"]
    return found


@pytest.mark.parametrize(("body", "version"), [({"migrate": None}, "2.1"), ({"migrate": {}}, "2.56"),
                                              ({"migrate": {"host": "h2"}}, "2.100")])  # fmt: skip
async def test_a_migration_is_told_from_its_beginning_to_its_confirm(
    cloud: Cloud, body: dict[str, Any], version: str
) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    begun = await act(cloud, server_id, body, version=version)
    assert (begun.status_code, begun.content) == (202, b"")
    assert await state(cloud, server_id) == ("RESIZE", "resize_prep")
    steps = [("claim", Mark.DONE), ("prepare", Mark.DONE), ("stop_guest", Mark.DONE)]
    progress(cloud, server_id, *steps, target="h2", targets=[{"host": "h2", "weight": 1.0}])
    assert await state(cloud, server_id) == ("RESIZE", "resize_migrating")
    assert (await act(cloud, server_id, {"confirmResize": None})).status_code == 409
    open_window(cloud, server_id)
    assert await state(cloud, server_id) == ("VERIFY_RESIZE", None)
    assert (await listed(cloud))[0]["status"] == "finished"
    for _ in range(2):
        assert (await act(cloud, server_id, {"confirmResize": None}, "alice")).status_code == 204
    assert (await act(cloud, server_id, {"revertResize": None})).status_code == 409
    close(cloud, server_id, "confirmed", power_state="running")
    assert await state(cloud, server_id) == ("ACTIVE", None)
    move = (await listed(cloud))[0]
    assert (move["status"], move["source_compute"], move["dest_compute"]) == ("confirmed", "h1", "h2")
    assert (move["dest_host"], move["migration_type"], move["old_instance_type_id"]) == ("10.0.0.2", "migration", 1)
    request = begun.headers["x-openstack-request-id"]
    whole = await cloud.http.get(
        servers_url(f"/{server_id}/os-instance-actions/{request}"), headers=at(cloud, "admin", "2.84")
    )
    events = [(event["event"], event["result"], event["host"]) for event in whole.json()["instanceAction"]["events"]]
    assert events == [
        ("cold_migrate", "Success", ""), ("conductor_claim", "Success", ""), ("compute_prepare", "Success", "h2"),
        ("compute_stop_guest", "Success", "h1"),
    ]  # fmt: skip


async def test_a_revert_that_found_the_source_away_reopens_the_window_and_says_so(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    await act(cloud, server_id, {"migrate": None})
    open_window(cloud, server_id)
    answer = await act(cloud, server_id, {"revertResize": {}}, "alice")
    assert answer.status_code == 202
    assert await state(cloud, server_id) == ("REVERT_RESIZE", "resize_reverting")
    progress(cloud, server_id, segment=1, window_open=False)
    progress(cloud, server_id, ("check_source", Mark.FAILED), window_open=True, verdict=None)
    assert await state(cloud, server_id) == ("VERIFY_RESIZE", None)
    told = await cloud.http.get(servers_url(f"/{server_id}/os-instance-actions"), headers=at(cloud, "alice"))
    assert [(each["action"], each["message"]) for each in told.json()["instanceActions"]] == [
        ("revertResize", "Error"), ("migrate", None), ("create", None),
    ]  # fmt: skip
    assert (await act(cloud, server_id, {"revertResize": None}, "alice")).status_code == 202


async def test_a_migration_without_a_host_leaves_the_server_and_gives_the_reasons(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    begun = await act(cloud, server_id, {"migrate": None})
    progress(
        cloud, server_id, targets=[], refusals=[{"host": "h2", "filter": "ram", "reason": "512 MiB needed, 0 free"}]
    )
    close(cloud, server_id, "error", power_state="running")
    assert await state(cloud, server_id) == ("ACTIVE", None)
    assert (await listed(cloud, "?status=error"))[0]["instance_uuid"] == server_id
    path = servers_url(f"/{server_id}/os-instance-actions/{begun.headers['x-openstack-request-id']}")
    action = (await cloud.http.get(path, headers=at(cloud, "admin", "2.84"))).json()["instanceAction"]
    assert action["message"] == "Error"
    assert "h2: 512 MiB needed, 0 free" in action["events"][0]["details"]


@pytest.mark.parametrize(
    ("body", "who", "version", "status", "words"),
    [
        ({"migrate": {"host": "h9"}}, "admin", "2.56", 400, "Compute host h9 could not be found."),
        ({"migrate": {"host": "h1"}}, "admin", "2.56", 400, "Cannot migrate to the host where the server exists."),
        ({"migrate": {"node": "h2"}}, "admin", "2.56", 400, "node"),
        ({"migrate": None}, "alice", "2.56", 403, "os_compute_api:os-migrate-server:migrate"),
        ({"resize": {"flavorRef": "1"}}, "alice", "2.1", 400, "When resizing, instances must change flavor!"),
        ({"resize": {"flavorRef": "9"}}, "alice", "2.1", 400, "Flavor 9 could not be found."),
        ({"resize": {"flavorRef": ""}}, "alice", "2.1", 400, "flavorRef"),
        ({"resize": {"flavorRef": "diskless"}}, "alice", "2.1", 400, "Resize to zero disk flavor is not allowed"),
        ({"resize": {"flavorRef": "greedy"}}, "alice", "2.1", 403, "Quota exceeded for ram"),
        ({"confirmResize": None}, "alice", "2.1", 409,
         "Cannot 'confirmResize' instance {id} while it is in vm_state active"),
        ({"os-start": None}, "alice", "2.1", 409, "Cannot 'start' instance {id} while it is in vm_state active"),
        ({"reboot": {"type": "GENTLE"}}, "alice", "2.1", 400, "type"),
        ({"os-resetState": {"state": "fine"}}, "admin", "2.1", 400, "state"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_an_action_is_refused(
    cloud: Cloud, body: dict[str, Any], who: str, version: str, status: int, words: str
) -> None:
    furnish(cloud)
    cloud.services.store.write_now(_odd_flavors)
    server_id = await active(cloud)
    answer = await act(cloud, server_id, body, who, version)
    assert answer.status_code == status, answer.text
    assert words.format(id=server_id) in message(answer)
    assert await state(cloud, server_id) == ("ACTIVE", None)


def _odd_flavors(tx: Any) -> None:
    flavors.insert(tx, Flavor("diskless", "diskless", 1, 128, 0))
    flavors.insert(tx, Flavor("greedy", "greedy", 1, 2**31 - 1, 1))


async def test_a_disk_never_shrinks(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud, flavorRef="2")
    answer = await act(cloud, server_id, {"resize": {"flavorRef": "1"}}, "alice")
    assert answer.status_code == 400 and "disks cannot shrink" in message(answer)


async def test_a_resize_keeps_both_flavors_with_their_numbers(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    body = {"resize": {"flavorRef": 2, "OS-DCF:diskConfig": "AUTO"}}
    assert (await act(cloud, server_id, body, "alice")).status_code == 202
    move = (await listed(cloud))[0]
    assert (move["migration_type"], move["old_instance_type_id"], move["new_instance_type_id"]) == ("resize", 1, 2)
    with cloud.services.store._engine.connect() as tx:
        row = tx.execute(select(migrations).where(migrations.c.kind == "resize")).one()
    assert (row.segments[0]["protocol"], row.new_flavor["ram_mb"], row.old_flavor["ram_mb"]) == ("resize", 256, 128)


async def test_nothing_begins_while_the_source_is_down_but_a_confirm_does(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    resting = await active(cloud, name="resting")
    await act(cloud, server_id, {"migrate": None})
    open_window(cloud, server_id)
    silent = update(hosts).where(hosts.c.name == "h1").values(heard_at=clock.now() - 61)
    cloud.services.store.write_now(lambda tx: tx.execute(silent))
    for body in ({"migrate": None}, {"resize": {"flavorRef": "2"}}, {"os-stop": None}):
        answer = await act(cloud, resting, body)
        assert (answer.status_code, message(answer)) == (409, "Service is unavailable at this time.")
    assert (await act(cloud, server_id, {"confirmResize": None})).status_code == 204


async def test_a_second_move_waits_for_the_first(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    assert (await act(cloud, server_id, {"migrate": None})).status_code == 202
    answer = await act(cloud, server_id, {"migrate": None})
    assert message(answer) == f"Cannot 'migrate' instance {server_id} while it is in task_state resize_prep"
    building = await create(cloud, name="young")
    answer = await act(cloud, building, {"migrate": None})
    assert message(answer) == f"Cannot 'migrate' instance {building} while it is in vm_state building"
    assert (await act(cloud, "bbbbbbbb-0000-4000-8000-000000000002", {"migrate": None})).status_code == 404


async def test_managers_see_their_own_projects_moves_without_hosts(cloud: Cloud) -> None:
    furnish(cloud)
    for who in ("alice", "bob"):
        await act(cloud, await active(cloud, who), {"migrate": None})
    assert len(await listed(cloud)) == 2
    mine = await listed(cloud, who="bob")
    assert [move["project_id"] for move in mine] == [cloud.caller("bob").project_id]
    assert mine[0]["source_compute"] is mine[0]["dest_host"] is None
    refused = await cloud.http.get("/compute/v2.1/os-migrations?project_id=other", headers=at(cloud, "bob", "2.80"))
    assert refused.status_code == 403
    assert (await cloud.http.get("/compute/v2.1/os-migrations", headers=at(cloud, "alice"))).status_code == 403
    page = await cloud.http.get("/compute/v2.1/os-migrations?limit=1", headers=at(cloud, "admin", "2.59"))
    newest, behind = page.json()["migrations"][0], page.json()["migrations_links"][0]["href"]
    assert behind.endswith(f"limit=1&marker={newest['uuid']}")
    assert len(await listed(cloud, f"?marker={newest['uuid']}")) == 1
    for query, status in (("?host=h1", 2), ("?host=h9", 0), ("?migration_type=resize", 0), ("?source_compute=h1", 2)):
        assert len(await listed(cloud, query)) == status


@pytest.mark.parametrize(
    ("body", "way", "manner"),
    [
        ({"migrate": {"whimbrel:move": "warm"}}, Way.WARM, "warm"),
        ({"migrate": {"whimbrel:move": "suspended"}}, Way.SUSPENDED, "suspended"),
        ({"migrate": None}, Way.COLD, "cold"),  # from the server's metadata
        ({"resize": {"flavorRef": "2"}}, Way.COLD, "cold"),
        (
            {"os-migrateLive": {"host": "h2", "block_migration": "auto"}},
            Way.NONE,
            "cold",
        ),  # which is for whoever is not moved live
    ],
)
async def test_a_plan_says_what_would_happen_and_begins_nothing(
    cloud: Cloud, body: dict[str, Any], way: Way, manner: str
) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    with_cold = {"metadata": {"whimbrel:move": "cold"}}
    await cloud.http.post(servers_url(f"/{server_id}/metadata"), json=with_cold, headers=at(cloud, "alice"))
    asked: list[Any] = []

    async def agent(message: object) -> object:
        asked.append(message)
        assert isinstance(message, Foresee)
        good = way in (Way.WARM, Way.SUSPENDED)
        return Foresight(message.way if good else way, "" if good else "Because h1 says so.", 5 << 20)

    async def scheduler(message: object) -> object:
        asked.append(message)
        return Targets(("h2",), (1.5,), (Refusal("h1", "NotSource", "h1 is the source."),))

    bus = cloud.services.bus
    await bus.start()
    await bus.consume("agent.h1", agent)
    await bus.consume("scheduler", scheduler)
    before = await listed(cloud)
    answer = await cloud.http.post(f"/whimbrel/v1/servers/{server_id}/plan", json=body, headers=at(cloud, "admin"))
    assert answer.status_code == 200, answer.text
    plan = answer.json()["plan"]
    assert (plan["way"], plan["possible"], plan["allocated_bytes"]) == (way, way is not Way.NONE, 5 << 20)
    assert [target["host"] for target in plan["targets"]] == ["h2"] and plan["refusals"][0]["filter"] == "NotSource"
    assert "precopy" in [step["step"] for step in plan["steps"]]
    (question,) = [message for message in asked if isinstance(message, Foresee)]
    live = "os-migrateLive" in body
    assert question.was_running and question.moves_memory == (live or manner == "suspended")
    assert question.protocol == plan["protocol"]
    assert question.manner is Manner(manner)
    (choice,) = [message for message in asked if isinstance(message, SelectTargets)]
    assert (choice.source, choice.forced_host) == ("h1", "h2" if live else None)
    assert await listed(cloud) == before and await state(cloud, server_id) == ("ACTIVE", None)
    await bus.close()


async def test_a_plan_is_refused_where_the_request_would_be(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    url = f"/whimbrel/v1/servers/{server_id}/plan"
    for body, status, words in (
        ({"migrate": {"host": "h1"}}, 400, "host where the server exists"),
        ({"migrate": {"whimbrel:move": "wram"}}, 400, "wram"),
        ({"resize": {"flavorRef": "2", "whimbrel:move": "suspended"}}, 400, "suspended"),
        ({"confirmResize": None}, 400, "no such action"),
    ):
        answer = await cloud.http.post(url, json=body, headers=at(cloud, "admin"))
        assert answer.status_code == status and words in message(answer), answer.text
    assert (await cloud.http.post(url, json={"migrate": None}, headers=at(cloud, "bob"))).status_code == 404
    assert (await cloud.http.post(url, json={"migrate": None}, headers=at(cloud, "rita"))).status_code == 403
    wrong = {"metadata": {"whimbrel:move": "wram"}}
    await cloud.http.post(servers_url(f"/{server_id}/metadata"), json=wrong, headers=at(cloud, "alice"))
    answer = await act(cloud, server_id, {"migrate": None})
    assert answer.status_code == 400 and "one of auto, cold, warm" in message(answer)
    assert (await act(cloud, server_id, {"migrate": {"whimbrel:move": "cold"}}, version="2.56")).status_code == 202


@pytest.mark.parametrize(("action", "table"), [("migrate", "suspended"), ("resize", "resize"), ("os-stop", "cold")])
async def test_only_a_guest_that_runs_on_as_it_is_moves_suspended(cloud: Cloud, action: str, table: str) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    wish = {"metadata": {"whimbrel:move": "suspended"}}
    await cloud.http.post(servers_url(f"/{server_id}/metadata"), json=wish, headers=at(cloud, "alice"))
    body: dict[str, Any] = {"resize": {"flavorRef": "2"}} if action == "resize" else {"migrate": None}
    if action == "os-stop":
        await act(cloud, server_id, {"os-stop": None})
        close(cloud, server_id, "completed", power_state="stopped")
    assert (await act(cloud, server_id, body)).status_code == 202
    answer = await cloud.http.get(f"/whimbrel/v1/migrations?server={server_id}", headers=at(cloud, "admin"))
    assert answer.json()["migrations"][0]["segments"][0]["protocol"] == table


async def test_power_and_console(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    assert (await act(cloud, server_id, {"os-stop": {}}, "alice")).status_code == 202
    assert await state(cloud, server_id) == ("ACTIVE", "powering-off")
    close(cloud, server_id, "completed", power_state="stopped")
    assert await state(cloud, server_id) == ("SHUTOFF", None)
    assert (await act(cloud, server_id, {"os-start": None}, "alice")).status_code == 202
    assert await state(cloud, server_id) == ("SHUTOFF", "powering-on")
    close(cloud, server_id, "completed", power_state="running")
    assert (await act(cloud, server_id, {"reboot": {"type": "HARD"}}, "alice")).status_code == 202
    assert await state(cloud, server_id) == ("HARD_REBOOT", "rebooting_hard")

    async def agent(message: object) -> object:
        assert isinstance(message, ReadConsole)
        return Console(f"the last {message.lines} lines")

    bus = cloud.services.bus
    await bus.start()
    await bus.consume("agent.h1", agent)
    answer = await act(cloud, server_id, {"os-getConsoleOutput": {"length": 3}}, "alice")
    assert answer.json() == {"output": "the last 3 lines"}
    await bus.close()


async def test_a_declared_error_lasts_until_it_is_taken_back(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    assert (await act(cloud, server_id, {"os-resetState": {"state": "error"}}, "alice")).status_code == 403
    assert (await act(cloud, server_id, {"os-resetState": {"state": "error"}})).status_code == 202
    assert await state(cloud, server_id) == ("ERROR", None)
    assert (await act(cloud, server_id, {"os-resetState": {"state": "active"}})).status_code == 202
    assert await state(cloud, server_id) == ("ACTIVE", None)


async def test_services_are_switched_in_the_old_and_the_new_way(cloud: Cloud) -> None:
    furnish(cloud)
    http, base = cloud.http, "/compute/v2.1/os-services"
    old, new = at(cloud, "admin"), at(cloud, "admin", "2.69")
    named = {"host": "h1", "binary": "nova-compute"}
    answer = await http.put(f"{base}/disable-log-reason", json={**named, "disabled_reason": "broken fan"}, headers=old)
    assert answer.json()["service"]["status"] == "disabled"
    service = (await http.get(f"{base}?host=h1&binary=nova-compute", headers=new)).json()["services"][0]
    assert (service["status"], service["state"], service["disabled_reason"]) == ("disabled", "up", "broken fan")
    path = f"{base}/{service['id']}"
    for body, status in (
        ({}, 400), ({"status": "enabled", "disabled_reason": "x"}, 400), ({"status": "odd"}, 400),
        ({"forced_down": True}, 200), ({"status": "enabled"}, 200),
    ):  # fmt: skip
        answer = await http.put(path, json=body, headers=new)
        assert answer.status_code == status, answer.text
    assert (answer.json()["service"]["state"], answer.json()["service"]["status"]) == ("down", "enabled")
    assert (await http.put(f"{base}/1", json={"status": "enabled"}, headers=new)).status_code == 400
    assert (await http.put(f"{base}/explode", json=named, headers=old)).status_code == 404
    assert (await http.put(f"{base}/enable", json={**named, "host": "h9"}, headers=old)).status_code == 404
    server_id = await active(cloud)
    assert (await http.delete(path, headers=new)).status_code == 409
    cloud.services.store.write_now(lambda tx: tx.execute(update(servers).values(deleted_at=1.0)))
    assert (await http.delete(path, headers=new)).status_code == 204
    assert server_id and len((await http.get(base, headers=new)).json()["services"]) == 1
    assert (await http.get(base, headers=cloud.token("alice"))).status_code == 403


async def test_hypervisors_tell_what_is_claimed(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    claim(cloud, "h1", server_id)
    base, http = "/compute/v2.1/os-hypervisors", cloud.http
    first = (await http.get(f"{base}/detail", headers=at(cloud, "admin", "2.53"))).json()["hypervisors"][0]
    assert (first["vcpus_used"], first["memory_mb_used"], first["running_vms"]) == (1, 128 + 512, 1)
    assert (await http.get(f"{base}/h1", headers=at(cloud, "admin", "2.88"))).status_code == 400
    shown = (await http.get(f"{base}/{first['id']}?with_servers=true", headers=at(cloud, "admin", "2.88"))).json()[
        "hypervisor"
    ]
    assert shown["uptime"] == "up 1 day" and shown["servers"] == [{"name": "vm", "uuid": server_id}]
    assert "vcpus" not in shown and shown["service"]["host"] == "h1"
    query = "?hypervisor_hostname_pattern="
    assert (await http.get(f"{base}{query}zz", headers=at(cloud, "admin", "2.88"))).status_code == 404
    assert len((await http.get(f"{base}{query}h2", headers=at(cloud, "admin", "2.88"))).json()["hypervisors"]) == 1
    assert (await http.get(f"{base}{query}h&limit=1", headers=at(cloud, "admin", "2.88"))).status_code == 400
    old = (await http.get(f"{base}/1", headers=at(cloud, "admin"))).json()["hypervisor"]
    assert old["id"] == 1 and isinstance(old["cpu_info"], str)


async def test_a_host_that_is_silent_is_down(cloud: Cloud) -> None:
    furnish(cloud)
    cloud.services.store.write_now(lambda tx: add_host(tx, "h3", heard_at=clock.now() - 3600))
    zones = await cloud.http.get("/compute/v2.1/os-availability-zone/detail", headers=cloud.token("admin"))
    found = zones.json()["availabilityZoneInfo"][0]["hosts"]
    assert {name: each["nova-compute"]["available"] for name, each in found.items()} == {
        "h1": True,
        "h2": True,
        "h3": False,
    }
    own = (await cloud.http.get("/whimbrel/v1/hosts", headers=cloud.token("admin"))).json()["hosts"]
    assert [(host["name"], host["state"]) for host in own] == [("h1", "up"), ("h2", "up"), ("h3", "down")]


async def test_a_migration_is_cancelled_by_its_number_until_the_server_was_handed_over(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    assert (await act(cloud, server_id, {"migrate": None})).status_code == 202
    (move,) = await listed(cloud)
    url = servers_url(f"/{server_id}/migrations/{move['id']}")

    async def cancel(who: str = "admin", version: str = "2.24", to: str = url) -> httpx2.Response:
        return await cloud.http.delete(to, headers=at(cloud, who, version))

    assert (await cancel(version="2.23")).status_code == 404
    assert (await cancel(who="alice")).status_code == 403
    assert (await cancel(to=servers_url(f"/{server_id}/migrations/999"))).status_code == 404
    assert (await cancel()).status_code == 202
    assert (await cancel()).status_code == 202, "asked twice is asked once"
    progress(cloud, server_id, cancelled=False)
    open_window(cloud, server_id)
    late = await cancel()
    assert late.status_code == 400
    assert "Revert it to go back" in message(late)


def silence(cloud: Cloud, host: str, seconds: float = 61) -> None:
    """Let nothing have been heard of a host for so long."""
    silent = update(hosts).where(hosts.c.name == host).values(heard_at=clock.now() - seconds)
    cloud.services.store.write_now(lambda tx: tx.execute(silent))


async def test_only_a_server_of_a_host_that_is_down_is_evacuated(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    up = await act(cloud, server_id, {"evacuate": {}}, version="2.90")
    assert (up.status_code, message(up)) == (400, "Compute service of h1 is still in use.")
    silence(cloud, "h1")
    for body, status, words in (
        ({"host": "h9"}, 404, "Compute host h9 not found."),
        ({"host": "h1"}, 400, "The target host can't be the same one."),
    ):
        answer = await act(cloud, server_id, {"evacuate": body}, version="2.90")
        assert (answer.status_code, message(answer)) == (status, words)
    assert (await act(cloud, server_id, {"evacuate": {}}, "alice", "2.90")).status_code == 403
    shared = await act(cloud, server_id, {"evacuate": {"onSharedStorage": True}})
    assert (shared.status_code, "share no storage" in message(shared)) == (400, True)
    answer = await act(cloud, server_id, {"evacuate": {"host": "h2"}}, version="2.90")
    assert (answer.status_code, answer.content) == (200, b"")
    assert await state(cloud, server_id) == ("REBUILD", "rebuilding")
    (move,) = await listed(cloud)
    assert (move["migration_type"], move["status"], move["source_compute"]) == ("evacuation", "accepted", "h1")
    again = await act(cloud, server_id, {"evacuate": {}}, version="2.90")
    assert again.status_code == 409


async def test_a_forced_down_host_is_proved_to_be_off_only_if_it_is_silent(cloud: Cloud) -> None:
    furnish(cloud)

    async def shown(name: str) -> dict[str, Any]:
        answer = await cloud.http.get("/whimbrel/v1/hosts", headers=cloud.token("admin"))
        found: dict[str, Any] = next(row for row in answer.json()["hosts"] if row["name"] == name)
        return found

    async def declare(down: bool) -> None:
        body = {"host": "h1", "binary": "nova-compute", "forced_down": down}
        url = "/compute/v2.1/os-services/force-down"
        answer = await cloud.http.put(url, json=body, headers=at(cloud, "admin", "2.11"))
        assert answer.status_code == 200, answer.text

    await declare(True)
    assert (await shown("h1"))["fenced"] is None, "it speaks, so it is not off, whatever is declared"
    silence(cloud, "h1")
    await declare(True)
    assert (await shown("h1"))["fenced"]["by"] == "administrator"
    await declare(False)
    assert (await shown("h1"))["fenced"] is None

    async def prove(boot: str, who: str = "admin") -> httpx2.Response:
        return await cloud.http.post("/whimbrel/v1/hosts/h1/fence", json={"boot": boot}, headers=cloud.token(who))

    assert (await prove("boot", "bob")).status_code == 403
    other = await prove("another boot")
    assert (other.status_code, "has booted since" in message(other)) == (409, True)
    assert (await prove((await shown("h1"))["boot"])).status_code == 200
    assert (await shown("h1"))["fenced"]["by"] == "administrator"


async def test_a_move_is_hurried_and_bounded_while_something_is_left_to_be_copied(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    await act(cloud, server_id, {"migrate": None})
    number = (await listed(cloud))[0]["id"]
    progress(cloud, server_id, ("precopy", Mark.DOING))
    asked, limit = servers_url(f"/{server_id}/migrations/{number}/action"), f"/whimbrel/v1/migrations/{number}/limit"
    admin = at(cloud, "admin", "2.22")

    async def steering() -> dict[str, Any]:
        found = (await cloud.http.get(f"/whimbrel/v1/migrations/{number}", headers=admin)).json()["migration"]
        return {"rate": found["rate_limit"], "hurry": found["hurried"]}

    assert await steering() == {"rate": None, "hurry": False}
    for rate, status in ((1 << 20, 204), (1, 400), (0, 400), (-5, 400), ("1M", 400), (None, 204), (1 << 21, 204)):
        answer = await cloud.http.put(limit, json={"bytes_per_second": rate}, headers=admin)
        assert answer.status_code == status, answer.text
    for body, version, status in (
        ({"force_complete": None}, "2.21", 404),
        ({"force_complete": 1}, "2.22", 400),
        ({"force_complete": None}, "2.22", 202),
        ({"force_complete": None}, "2.100", 202),
    ):
        answer = await cloud.http.post(asked, json=body, headers=at(cloud, "admin", version))
        assert answer.status_code == status, answer.text
    assert await steering() == {"rate": 1 << 21, "hurry": True}
    written = replace(order("precopy", 1), migration=number)
    (fresh,) = await cloud.services.store.read(store_migrations.steered, [written])
    assert fresh.work.steering == Steering(rate=1 << 21, hurry=True)
    for who, path, body in (("alice", asked, {"force_complete": None}), ("bob", asked, {"force_complete": None})):
        answer = await cloud.http.post(path, json=body, headers=at(cloud, who, "2.22"))
        assert answer.status_code == (403 if who == "alice" else 404), answer.text
    assert (await cloud.http.put(limit, json={"bytes_per_second": None}, headers=at(cloud, "bob"))).status_code == 403
    gone = await cloud.http.post(servers_url(f"/{server_id}/migrations/999/action"), json={"force_complete": None},
                                 headers=admin)  # fmt: skip
    assert gone.status_code == 404
    open_window(cloud, server_id)
    answer = await cloud.http.post(asked, json={"force_complete": None}, headers=admin)
    assert answer.status_code == 400 and "Nothing of migration" in message(answer)
    close(cloud, server_id, "confirmed")
    answer = await cloud.http.put(limit, json={"bytes_per_second": None}, headers=admin)
    assert answer.status_code == 400 and "has ended" in message(answer)


async def test_who_is_steered_is_asked_at_the_next_occasion(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    await act(cloud, server_id, {"migrate": None})
    number = (await listed(cloud))[0]["id"]
    progress(cloud, server_id, ("prepare", Mark.DONE), ("precopy", Mark.DOING))

    def asked_at(tx: Any) -> dict[str, float | None]:
        return dict(
            tx.execute(select(journal.c.step, journal.c.asked_at).where(journal.c.migration_id == number)).all()
        )

    cloud.services.store.write_now(lambda tx: tx.execute(update(journal).values(asked_at=clock.now())))
    await cloud.http.put(f"/whimbrel/v1/migrations/{number}/limit", json={"bytes_per_second": 1 << 20},
                         headers=at(cloud, "admin"))  # fmt: skip
    found = cloud.services.store.read_now(asked_at)
    assert found["precopy"] == 0.0 and found["prepare"]
