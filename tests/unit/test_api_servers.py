"""Creating, listing, changing and deleting servers through the compute API."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, select, update

from tests.unit.cloud import URL, Cloud
from tests.unit.compute_cloud import IMAGE, active, at, close, create, furnish, progress, servers_url
from whimbrel.domain.server import Flavor
from whimbrel.ops import clock
from whimbrel.store import flavors, images
from whimbrel.store.tables import migrations, outbox, ports, servers

pytestmark = pytest.mark.anyio
MISSING = "bbbbbbbb-0000-4000-8000-000000000002"


async def show(cloud: Cloud, server_id: str, who: str = "alice", version: str = "2.1") -> dict[str, Any]:
    answer = await cloud.http.get(servers_url(f"/{server_id}"), headers=at(cloud, who, version))
    assert answer.status_code == 200, answer.text
    server: dict[str, Any] = answer.json()["server"]
    return server


async def test_a_create_as_openstackclient_sends_it_writes_server_port_build_and_message(cloud: Cloud) -> None:
    furnish(cloud)
    disk = {"uuid": IMAGE, "boot_index": 0, "source_type": "image", "destination_type": "local",
            "delete_on_termination": True}  # fmt: skip
    body = {"name": "vm1", "imageRef": IMAGE, "flavorRef": "1", "min_count": 1, "max_count": 1, "networks": "auto",
            "block_device_mapping_v2": [disk]}  # fmt: skip
    answer = await cloud.http.post(servers_url(), json={"server": body}, headers=at(cloud, "alice", "2.100"))
    assert answer.status_code == 202
    server_id = answer.json()["server"]["id"]
    assert answer.headers["Location"] == f"{URL}/compute/v2.1/servers/{server_id}"
    assert len(answer.json()["server"]["adminPass"]) == 12

    server = await show(cloud, server_id, version="2.100")
    assert (server["status"], server["OS-EXT-STS:task_state"]) == ("BUILD", "scheduling")
    assert server["addresses"]["private"][0]["addr"] == "10.99.0.2"
    assert server["flavor"]["original_name"] == "small"
    with cloud.services.store._engine.connect() as tx:
        move = tx.execute(select(migrations)).one()
        assert (move.kind, move.open, move.segments[0]["protocol"]) == ("build", True, "build")
        assert tx.execute(select(outbox.c.type)).scalars().all() == ["Wake"]
        assert tx.execute(select(servers.c.image)).scalar_one()["virtual_size_mb"] == 64


async def test_several_servers_are_numbered_and_found_by_their_reservation(cloud: Cloud) -> None:
    furnish(cloud)
    body = {"name": "web", "imageRef": IMAGE, "flavorRef": "1", "min_count": 2, "max_count": 3,
            "return_reservation_id": True}  # fmt: skip
    answer = await cloud.http.post(servers_url(), json={"server": body}, headers=cloud.token("alice"))
    reservation = answer.json()["reservation_id"]
    listed = await cloud.http.get(servers_url(f"?reservation_id={reservation}&sort_key=display_name&sort_dir=asc"),
                                  headers=cloud.token("alice"))  # fmt: skip
    assert [server["name"] for server in listed.json()["servers"]] == ["web-1", "web-2", "web-3"]


GOOD = {"name": "vm", "imageRef": IMAGE, "flavorRef": "1"}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": "x" * 256}, 400, "name"),
        ({"name": " vm"}, 400, "name"),
        ({"name": "vm\n"}, 400, "name"),
        ({"flavorRef": "77"}, 400, "Flavor 77 could not be found"),
        ({"imageRef": MISSING}, 400, "image"),
        ({"imageRef": 7}, 400, "imageRef"),
        ({"imageRef": ""}, 400, "imageRef"),
        ({"networks": [{"uuid": MISSING}]}, 400, "could not be found"),
        ({"networks": [{"uuid": "not-a-uuid"}]}, 400, "uuid"),
        ({"networks": "auto"}, 400, "networks"),
        ({"min_count": 0}, 400, "min_count"),
        ({"min_count": 3, "max_count": 2}, 400, "min_count must be <= max_count"),
        ({"metadata": {"": "x"}}, 400, "metadata"),
        ({"metadata": {"k": "x" * 256}}, 400, "k"),
        ({"metadata": {f"k{n}": "" for n in range(129)}}, 403, "metadata"),
        ({"accessIPv4": "1.1.1.1.1"}, 400, "accessIPv4"),
        ({"accessIPv6": "zz"}, 400, "accessIPv6"),
        ({"key_name": "nokey"}, 400, "key_name"),
        ({"security_groups": [{"name": "nogroup"}]}, 400, "nogroup"),
        ({"user_data": "%%%"}, 400, "user_data"),
        ({"availability_zone": "mars"}, 400, "availability zone"),
        ({"availability_zone": "nova:h1"}, 403, "forced_host"),
        ({"surprise": 1}, 400, "surprise"),
        ({"flavorRef": "tiny"}, 400, "disk is too small"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_create_is_refused(cloud: Cloud, change: dict[str, Any], status: int, words: str) -> None:
    furnish(cloud)
    cloud.services.store.write_now(_big_image_and_tiny_flavor if change == {"flavorRef": "tiny"} else lambda tx: None)
    answer = await cloud.http.post(servers_url(), json={"server": {**GOOD, **change}}, headers=cloud.token("alice"))
    assert answer.status_code == status, answer.text
    assert words in answer.text
    with cloud.services.store._engine.connect() as tx:
        assert tx.execute(select(servers)).all() == tx.execute(select(ports)).all() == []


@pytest.mark.parametrize(
    ("properties", "status"),
    [
        ({"hw_firmware_type": "uefi"}, 202),
        ({"hw_firmware_type": "bios"}, 202),
        ({"hw_firmware_type": "coreboot"}, 400),
        ({"hw_firmware_type": "uefi", "hw_firmware_stateless": "true"}, 400),
        ({"hw_tpm_version": "2.0"}, 202),
        ({"hw_tpm_version": "2.0", "hw_tpm_model": "TPM-TIS"}, 202),
        ({"hw_tpm_version": "1.2"}, 400),
        ({"hw_tpm_model": "tpm-crb"}, 400),
        ({"hw_tpm_version": "2.0", "hw_tpm_model": "tpm-spapr"}, 400),
        ({"hw_tpm_secret_security": "host"}, 400),
        ({"hw_machine_type": "q35"}, 400),
        ({"os_secure_boot": "required"}, 400),
        ({"os_secure_boot": "optional", "hw_disk_bus": "virtio", "hw_mem_encryption": "False"}, 202),
    ],
    ids=str,
)
async def test_an_image_that_needs_hardware_that_no_host_makes_is_refused(
    cloud: Cloud, properties: dict[str, str], status: int
) -> None:
    """It would not boot, or its secrets would not travel with it."""
    furnish(cloud)
    cloud.services.store.write_now(images.change, IMAGE, {"properties": properties})
    answer = await cloud.http.post(servers_url(), json={"server": GOOD}, headers=cloud.token("alice"))
    assert answer.status_code == status, answer.text
    assert status == 202 or (list(properties)[-1] in answer.text and "not supported" in answer.text)


@pytest.mark.parametrize(
    ("specs", "status"),
    [
        ({"hw:tpm_version": "2.0"}, 202),
        ({"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"}, 202),
        ({"hw:tpm_version": "1.2"}, 400),
        ({"hw:tpm_model": "tpm-tis"}, 400),
        ({"hw:tpm_secret_security": "host"}, 400),
        ({"hw:firmware_type": "uefi"}, 400),
        ({"hw:boot_mode": "uefi"}, 400),
        ({"hw:mem_encryption": "true"}, 400),
        ({"os:secure_boot": "required"}, 400),
        ({"hw:cpu_policy": "shared", "os:secure_boot": "disabled", "hw:mem_encryption": "False"}, 202),
    ],
    ids=str,
)
async def test_a_flavor_that_needs_hardware_that_no_host_makes_is_refused(
    cloud: Cloud, specs: dict[str, str], status: int
) -> None:
    """In a create and in a resize alike."""
    furnish(cloud)
    server = await active(cloud)
    cloud.services.store.write_now(lambda tx: flavors.change(tx, "2", extra_specs=specs))
    asked = {"server": {**GOOD, "flavorRef": "2"}}
    created = await cloud.http.post(servers_url(), json=asked, headers=cloud.token("alice"))
    resize = {"resize": {"flavorRef": "2"}}
    resized = await cloud.http.post(servers_url(f"/{server}/action"), json=resize, headers=cloud.token("alice"))
    for answer in (created, resized):
        assert answer.status_code == status, answer.text
        named = [name in answer.text or name.replace(":", "_") in answer.text for name in specs]
        assert status == 202 or (all(named) and "not supported" in answer.text)


@pytest.mark.parametrize(
    ("properties", "old", "new", "status", "words"),
    [
        ({}, {"hw:tpm_version": "2.0"}, {}, 400, "keeps in its own would be lost"),
        ({}, {}, {"hw:tpm_version": "2.0"}, 202, ""),
        ({"hw_tpm_version": "2.0"}, {"hw:tpm_version": "2.0"}, {}, 202, ""),
        ({"hw_tpm_version": "2.0"}, {}, {"hw:tpm_version": "1.2"}, 400, "let only one of them say it"),
        ({"hw_tpm_version": "2.0"}, {}, {"hw:tpm_model": "tpm-tis"}, 202, ""),
    ],
)
async def test_a_resize_never_takes_a_servers_tpm(
    cloud: Cloud, properties: dict[str, str], old: dict[str, str], new: dict[str, str], status: int, words: str
) -> None:
    furnish(cloud)
    write = cloud.services.store.write_now
    write(images.change, IMAGE, {"properties": properties})
    write(lambda tx: flavors.change(tx, "1", extra_specs=old))
    server = await active(cloud)
    write(lambda tx: flavors.change(tx, "2", extra_specs=new))
    asked = {"resize": {"flavorRef": "2"}}
    answer = await cloud.http.post(servers_url(f"/{server}/action"), json=asked, headers=cloud.token("alice"))
    assert answer.status_code == status and words in answer.text, answer.text


def _big_image_and_tiny_flavor(tx: Any) -> None:
    flavors.insert(tx, Flavor("tiny", "tiny", 1, 64, 1))
    images.change(tx, IMAGE, {"virtual_size_bytes": 2 << 30})


async def test_an_administrator_may_force_a_host_in_two_ways(cloud: Cloud) -> None:
    furnish(cloud)
    for version, more in (("2.1", {"availability_zone": "nova:h2"}), ("2.74", {"host": "h2", "networks": "none"})):
        body = {"server": {**GOOD, **more}}
        answer = await cloud.http.post(servers_url(), json=body, headers=at(cloud, "admin", version))
        assert answer.status_code == 202, answer.text
    bad = {"server": {**GOOD, "host": "h9", "networks": "none"}}
    answer = await cloud.http.post(servers_url(), json=bad, headers=at(cloud, "admin", "2.74"))
    assert (answer.status_code, answer.json()["badRequest"]["message"]) == (400, "Compute host h9 could not be found.")
    with cloud.services.store._engine.connect() as tx:
        assert tx.execute(select(migrations.c.forced_host)).scalars().all() == ["h2", "h2"]


async def test_projects_see_only_their_own_servers(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud, "alice")
    other = cloud.token("bob")
    assert (await cloud.http.get(servers_url(f"/{server_id}"), headers=other)).status_code == 404
    assert (await cloud.http.delete(servers_url(f"/{server_id}"), headers=other)).status_code == 404
    assert (await cloud.http.get(servers_url(), headers=other)).json() == {"servers": []}
    assert (await cloud.http.get(servers_url("?all_tenants=1"), headers=other)).status_code == 403
    admin = cloud.token("admin")
    assert (await cloud.http.get(servers_url(), headers=admin)).json() == {"servers": []}
    everywhere = await cloud.http.get(servers_url("/detail?all_tenants=True&host=h1"), headers=admin)
    assert [row["OS-EXT-SRV-ATTR:host"] for row in everywhere.json()["servers"]] == ["h1"]
    assert "OS-EXT-SRV-ATTR:host" not in await show(cloud, server_id)
    read_only = cloud.token("rita")
    assert (await cloud.http.get(servers_url(f"/{server_id}"), headers=read_only)).status_code == 200
    foreign = await active(cloud, "bob")
    assert (await cloud.http.delete(servers_url(f"/{foreign}"), headers=read_only)).status_code == 404
    assert (await cloud.http.delete(servers_url(f"/{server_id}"), headers=read_only)).status_code == 403


async def test_pages_follow_each_other_in_any_order_and_under_derived_filters(cloud: Cloud) -> None:
    furnish(cloud)
    cloud.services.store.write_now(lambda tx: tx.exec_driver_sql("DELETE FROM networks"))
    made = [await active(cloud, name=f"s{number}") for number in range(5)]
    await create(cloud, name="other")
    for query in (
        "?limit=2",
        "?limit=2&sort_key=display_name&sort_dir=asc",
        "/detail?limit=2&status=ACTIVE",
        "?limit=2&name=^s",
    ):
        seen: list[str] = []
        path = servers_url(query)
        for _ in range(5):
            body = (await cloud.http.get(path, headers=cloud.token("alice"))).json()
            assert len(body["servers"]) <= 2
            seen += [row["id"] for row in body["servers"]]
            if "servers_links" not in body:
                break
            path = body["servers_links"][0]["href"].removeprefix(URL)
        assert len(seen) == len(set(seen))
        assert set(made) <= set(seen), query


@pytest.mark.parametrize(
    ("query", "version", "status"),
    [
        ("limit=-1", "2.1", 400), ("limit=x", "2.1", 400), ("marker=nope", "2.1", 400),
        ("changes-since=soon", "2.1", 400),
        ("name=(", "2.1", 400), ("name=(a%2B)%2B", "2.1", 400), ("unknown=1", "2.1", 200), ("unknown=1", "2.75", 400),
        ("deleted=False&all_tenants=False", "2.100", 200), ("limit=2000", "2.1", 200),
        ("name=" + ".*" * 3, "2.1", 400),
    ],
)  # fmt: skip
async def test_query_parameters_are_checked(cloud: Cloud, query: str, version: str, status: int) -> None:
    answer = await cloud.http.get(servers_url(f"/detail?{query}"), headers=at(cloud, "alice", version))
    assert answer.status_code == status, answer.text


async def test_a_server_is_shown_in_the_form_of_each_microversion(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    old, new = await show(cloud, server_id), await show(cloud, server_id, "admin", "2.100")
    assert old["flavor"]["id"] == "1" and "links" in old["flavor"]
    assert new["flavor"] == {
        "vcpus": 1, "ram": 128, "disk": 1, "ephemeral": 0, "swap": 0, "original_name": "small", "extra_specs": {},
    }  # fmt: skip
    assert not {"locked", "description", "tags", "host_status", "OS-EXT-SRV-ATTR:host"} & old.keys()
    assert new["host_status"] == "UP" and new["OS-EXT-SRV-ATTR:host"] == "h1" and new["scheduler_hints"] == {}
    assert (await show(cloud, server_id, "alice", "2.90"))["OS-EXT-SRV-ATTR:hostname"] == "vm"


async def test_an_update_changes_names_and_answers_as_of_old(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    body = {"server": {"name": "new", "accessIPv6": "::0:babe:330.0"}}
    assert (
        await cloud.http.put(servers_url(f"/{server_id}"), json=body, headers=cloud.token("alice"))
    ).status_code == 400
    body = {"server": {"name": "new", "accessIPv6": "2001:db8:0:0:0:0:0:1"}}
    answer = await cloud.http.put(servers_url(f"/{server_id}"), json=body, headers=cloud.token("alice"))
    assert answer.json()["server"]["name"] == "new"
    assert answer.json()["server"]["accessIPv6"] == "2001:db8::1"
    assert "OS-EXT-STS:vm_state" not in answer.json()["server"]
    assert set(answer.json()["server"]["addresses"]["private"][0]) == {"version", "addr"}


async def test_a_delete_cancels_what_runs_and_a_second_one_is_accepted(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    path, headers = servers_url(f"/{server_id}"), cloud.token("alice")
    assert (await cloud.http.post(f"{path}/action", json={"os-stop": None}, headers=headers)).status_code == 202
    for _ in range(2):
        assert (await cloud.http.delete(path, headers=headers)).status_code == 204
    assert (await show(cloud, server_id))["OS-EXT-STS:task_state"] == "deleting"
    close(cloud, server_id, "completed", deleted_at=clock.now())
    assert (await cloud.http.get(path, headers=headers)).status_code == 404
    actions = f"{path}/os-instance-actions"
    assert (await cloud.http.get(actions, headers=headers)).status_code == 404
    told = (await cloud.http.get(actions, headers=at(cloud, "alice", "2.21"))).json()["instanceActions"]
    assert [action["action"] for action in told] == ["delete", "stop", "create"]


async def test_a_build_that_failed_is_an_error_with_its_reason(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await create(cloud)
    fault = {"code": 500, "created": clock.now(), "message": "No valid host was found. h1: too small"}
    refusals = [{"host": "h1", "filter": "ram", "reason": "too small"}]
    progress(cloud, server_id, targets=[], refusals=refusals)
    close(cloud, server_id, "error", fault=fault, launched_at=None)
    server = await show(cloud, server_id)
    assert (server["status"], server["fault"]["message"]) == ("ERROR", fault["message"])
    path = servers_url(f"/{server_id}/os-instance-actions")
    action = (await cloud.http.get(path, headers=cloud.token("alice"))).json()["instanceActions"][0]
    assert action["message"] == "Error"
    whole = await cloud.http.get(f"{path}/{action['request_id']}", headers=at(cloud, "alice", "2.84"))
    event = whole.json()["instanceAction"]["events"][0]
    assert (event["event"], event["result"]) == ("schedule_servers", "Error")
    assert "too small" in event["details"] and "h1" not in event["details"]
    assert (await cloud.http.delete(servers_url(f"/{server_id}"), headers=cloud.token("alice"))).status_code == 204


async def test_metadata_and_tags_are_set_read_and_deleted(cloud: Cloud) -> None:
    furnish(cloud)
    path, headers = servers_url(f"/{await active(cloud)}"), at(cloud, "alice", "2.26")
    http = cloud.http
    assert (
        await http.post(f"{path}/metadata", json={"metadata": {"a": "1", "b": "2"}}, headers=headers)
    ).status_code == 200
    assert (await http.put(f"{path}/metadata/a", json={"meta": {"b": "3"}}, headers=headers)).status_code == 400
    assert (await http.put(f"{path}/metadata/a", json={"meta": {"a": "3"}}, headers=headers)).json() == {
        "meta": {"a": "3"}
    }
    assert (await http.delete(f"{path}/metadata/b", headers=headers)).status_code == 204
    assert (await http.get(f"{path}/metadata", headers=headers)).json() == {"metadata": {"a": "3"}}
    assert (await http.get(f"{path}/metadata/b", headers=headers)).status_code == 404
    assert (await http.put(f"{path}/tags/blue", headers=headers)).status_code == 201
    assert (await http.put(f"{path}/tags/blue", headers=headers)).status_code == 204
    assert (await http.get(f"{path}/tags/blue", headers=headers)).status_code == 204
    assert (await http.get(servers_url("?tags=blue"), headers=headers)).json()["servers"]
    assert not (await http.get(servers_url("?not-tags=blue"), headers=headers)).json()["servers"]
    assert (await http.delete(f"{path}/tags", headers=headers)).status_code == 204
    assert (await http.get(f"{path}/tags", headers=headers)).json() == {"tags": []}


async def test_a_locked_server_is_changed_by_administrators_only(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    path, headers = servers_url(f"/{server_id}"), cloud.token("alice")
    locked = await cloud.http.post(
        f"{path}/action", json={"lock": {"locked_reason": "mine"}}, headers=at(cloud, "alice", "2.73")
    )
    assert locked.status_code == 202
    assert (await show(cloud, server_id, version="2.73"))["locked_reason"] == "mine"
    answer = await cloud.http.post(f"{path}/action", json={"os-stop": None}, headers=headers)
    assert (answer.status_code, answer.json()["conflictingRequest"]["message"]) == (
        409,
        f"Instance {server_id} is locked",
    )
    assert (await cloud.http.delete(path, headers=headers)).status_code == 409
    stopped = await cloud.http.post(f"{path}/action", json={"os-stop": None}, headers=cloud.token("admin"))
    assert stopped.status_code == 202


async def test_a_hundred_servers_are_listed_in_a_handful_of_queries(cloud: Cloud) -> None:
    furnish(cloud)
    body = {"server": {**GOOD, "name": "many", "min_count": 100, "networks": []}}
    cloud.services.store.write_now(lambda tx: tx.exec_driver_sql("DELETE FROM networks"))
    assert (await cloud.http.post(servers_url(), json=body, headers=cloud.token("alice"))).status_code == 202
    cloud.services.store.write_now(lambda tx: tx.execute(update(servers).values(host="h1")))
    statements: list[str] = []
    headers = at(cloud, "admin", "2.100")
    event.listen(cloud.services.store._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    answer = await cloud.http.get(servers_url("/detail?all_tenants=1"), headers=headers)
    assert len(answer.json()["servers"]) == 100
    assert len([text for text in statements if text.startswith("SELECT")]) <= 5
