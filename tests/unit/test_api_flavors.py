"""Flavors through the compute API: in both dialects of their clients, private ones, extra specs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cloud import Cloud
from tests.unit.compute_cloud import active, at, furnish, servers_url

pytestmark = pytest.mark.anyio
BASE = "/compute/v2.1/flavors"
SIZES = {"ram": 64, "vcpus": 1, "disk": 1}


async def names(cloud: Cloud, who: str, query: str = "") -> list[str]:
    answer = await cloud.http.get(f"{BASE}/detail{query}", headers=at(cloud, who))
    assert answer.status_code == 200, answer.text
    return [flavor["name"] for flavor in answer.json()["flavors"]]


@pytest.mark.parametrize(
    "body",
    [
        {"id": None, "swap": 0, "os-flavor-access:is_public": True, "OS-FLV-EXT-DATA:ephemeral": 0},
        {"id": 77, "os-flavor-access:is_public": "True", "rxtx_factor": 1.0},
        {},
    ],
)
async def test_a_flavor_is_created_as_each_client_asks(cloud: Cloud, body: dict[str, Any]) -> None:
    answer = await cloud.http.post(BASE, json={"flavor": {"name": "f", **SIZES, **body}}, headers=at(cloud, "admin"))
    assert answer.status_code == 200, answer.text
    made = answer.json()["flavor"]
    assert made["id"] == ("77" if body.get("id") else made["id"]) and isinstance(made["id"], str)
    assert made["swap"] == "" and "description" not in made
    newer = await cloud.http.get(f"{BASE}/{made['id']}", headers=at(cloud, "alice", "2.75"))
    assert newer.json()["flavor"]["swap"] == 0 and newer.json()["flavor"]["extra_specs"] == {}
    again = await cloud.http.post(BASE, json={"flavor": {"name": "f", **SIZES}}, headers=at(cloud, "admin"))
    assert again.status_code == 409


@pytest.mark.parametrize(
    "change",
    [{"name": ""}, {"name": " "}, {"ram": 0}, {"vcpus": -1}, {"disk": "much"}, {"id": " x"}, {"swap": -1},
     {"ram": 2**31}, {"surprise": 1}],
    ids=str,
)  # fmt: skip
async def test_a_flavor_that_makes_no_sense_is_refused(cloud: Cloud, change: dict[str, Any]) -> None:
    body = {"flavor": {"name": "f", **SIZES, **change}}
    assert (await cloud.http.post(BASE, json=body, headers=at(cloud, "admin"))).status_code == 400
    assert (await cloud.http.post(BASE, json=body, headers=at(cloud, "alice"))).status_code == 403


async def test_a_private_flavor_is_there_for_those_who_were_let(cloud: Cloud) -> None:
    furnish(cloud)
    body = {"flavor": {"name": "secret", "id": "s", **SIZES, "os-flavor-access:is_public": False}}
    assert (await cloud.http.post(BASE, json=body, headers=at(cloud, "admin"))).status_code == 200
    assert await names(cloud, "alice") == ["small", "large"]
    assert await names(cloud, "alice", "?is_public=None") == ["small", "large"]
    assert await names(cloud, "admin", "?is_public=None") == ["small", "large", "secret"]
    assert (await cloud.http.get(f"{BASE}/s", headers=at(cloud, "alice"))).status_code == 404
    project = cloud.caller("alice").project_id
    for status in (200, 409):
        grant = {"addTenantAccess": {"tenant": project}}
        answer = await cloud.http.post(f"{BASE}/s/action", json=grant, headers=at(cloud, "admin"))
        assert answer.status_code == status
    assert await names(cloud, "alice") == ["small", "large", "secret"]
    assert await names(cloud, "bob") == ["small", "large"]
    taken = {"removeTenantAccess": {"tenant": project}}
    answer = await cloud.http.post(f"{BASE}/s/action", json=taken, headers=at(cloud, "admin"))
    assert answer.json() == {"flavor_access": []}
    assert (await cloud.http.get(f"{BASE}/1/os-flavor-access", headers=at(cloud, "admin"))).status_code == 404


async def test_extra_specs_are_set_read_and_deleted(cloud: Cloud) -> None:
    furnish(cloud)
    path, admin = f"{BASE}/1/os-extra_specs", at(cloud, "admin")
    specs = {"extra_specs": {"hw:a": "1", "hw:b": "2"}}
    assert (await cloud.http.post(path, json=specs, headers=admin)).json() == specs
    assert (await cloud.http.put(f"{path}/hw:a", json={"hw:a": "3"}, headers=admin)).json() == {"hw:a": "3"}
    for body in ({"hw:b": "1"}, {"hw:a": "1", "hw:b": "2"}, {}):
        assert (await cloud.http.put(f"{path}/hw:a", json=body, headers=admin)).status_code == 400
    assert (await cloud.http.delete(f"{path}/hw:b", headers=admin)).status_code == 200
    assert (await cloud.http.get(path, headers=at(cloud, "alice"))).json() == {"extra_specs": {"hw:a": "3"}}
    assert (await cloud.http.get(f"{path}/hw:b", headers=at(cloud, "alice"))).status_code == 404
    assert (await cloud.http.post(path, json=specs, headers=at(cloud, "alice"))).status_code == 403


async def test_a_server_outlives_its_flavor_and_the_list_is_paged(cloud: Cloud) -> None:
    furnish(cloud)
    server_id = await active(cloud)
    assert (await cloud.http.delete(f"{BASE}/1", headers=at(cloud, "admin"))).status_code == 202
    answer = await cloud.http.get(servers_url(f"/{server_id}"), headers=at(cloud, "alice", "2.47"))
    assert answer.json()["server"]["flavor"]["original_name"] == "small"
    for number in range(3):
        body = {"flavor": {"name": f"f{number}", "id": f"f{number}", **SIZES}}
        await cloud.http.post(BASE, json=body, headers=at(cloud, "admin"))
    assert await names(cloud, "alice", "?limit=2&marker=f0") == ["f1", "f2"]
    assert await names(cloud, "alice", "?minRam=100") == ["large"]
    assert await names(cloud, "alice", "?sort_key=name&sort_dir=desc&limit=1") == ["large"]
    assert await names(cloud, "alice", "?limit=0") == []
    for query in ("?limit=-1", "?marker=zz", "?minDisk=x", "?sort_key=nonsense"):
        assert (await cloud.http.get(f"{BASE}{query}", headers=at(cloud, "alice"))).status_code == 400
