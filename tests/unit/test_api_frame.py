"""What every request meets before its handler: paths, microversions, tokens, bodies, and the shapes of refusals."""

from __future__ import annotations

import pytest

from tests.unit.cloud import URL, Cloud
from whimbrel.api.routes import ROUTES

pytestmark = pytest.mark.anyio
NEW, OLD = "OpenStack-API-Version", "X-OpenStack-Nova-API-Version"


async def test_discovery_needs_no_token_and_links_only_to_the_public_address(cloud: Cloud) -> None:
    answer = await cloud.http.get("/compute/v2.1", headers={"Host": "evil.example"})
    version = answer.json()["version"]
    assert (version["min_version"], version["version"]) == ("2.1", "2.100")
    assert version["links"][0]["href"] == f"{URL}/compute/v2.1/"
    assert "evil.example" not in answer.text
    listed = (await cloud.http.get("/compute/")).json()["versions"]
    assert [(row["id"], row["status"]) for row in listed] == [("v2.0", "DEPRECATED"), ("v2.1", "CURRENT")]
    assert (await cloud.http.get("/compute/v1")).status_code == 300
    assert (await cloud.http.get("/placement/")).json()["versions"][0]["id"] == "v1.0"


@pytest.mark.parametrize(
    ("headers", "status", "used"),
    [
        ({}, 200, "2.1"),
        ({OLD: "2.60"}, 200, "2.60"),
        ({NEW: "compute 2.79", OLD: "2.5"}, 200, "2.79"),
        ({NEW: "placement 1.29, compute latest"}, 200, "2.100"),
        ({NEW: "identity 3.0"}, 200, "2.1"),
        ({OLD: "2.101"}, 406, "2.1"),
        ({NEW: "compute 3.0"}, 406, "2.1"),
        ({OLD: "2.01"}, 400, "2.1"),
        ({OLD: "two"}, 400, "2.1"),
    ],
)
async def test_the_microversion_is_negotiated_and_told(
    cloud: Cloud, headers: dict[str, str], status: int, used: str
) -> None:
    answer = await cloud.http.get("/compute/v2.1/flavors", headers={**cloud.token("alice"), **headers})
    assert answer.status_code == status
    assert (answer.headers[NEW], answer.headers[OLD]) == (f"compute {used}", used)
    assert NEW in answer.headers["Vary"] and OLD in answer.headers["Vary"]
    assert answer.headers["x-openstack-request-id"] == answer.headers["x-compute-request-id"]
    assert answer.headers["x-openstack-request-id"].startswith("req-")


async def test_each_service_refuses_in_its_own_words(cloud: Cloud) -> None:
    async def refusal(path: str) -> object:
        answer = await cloud.http.get(path, headers=cloud.token("alice"))
        assert answer.status_code == 404
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.text

    assert await refusal("/compute/v2.1/servers/vm1") == {
        "itemNotFound": {"code": 404, "message": "Instance vm1 could not be found."}
    }
    assert (await refusal("/identity/v3/nowhere"))["error"]["title"] == "Not Found"  # type: ignore[index]
    assert (await refusal("/network/v2.0/nowhere"))["NeutronError"]["type"] == "NotFound"  # type: ignore[index]
    assert "<h1>404 Not Found</h1>" in str(await refusal("/image/v2/nowhere"))
    assert (await refusal("/placement/allocations"))["errors"][0]["status"] == 404  # type: ignore[index]
    assert (await refusal("/whimbrel/v1/nowhere"))["error"]["code"] == 404  # type: ignore[index]


async def test_a_request_without_a_valid_token_is_told_to_authenticate(cloud: Cloud) -> None:
    for headers in ({}, {"X-Auth-Token": "nonsense"}):
        answer = await cloud.http.get("/compute/v2.1/servers", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["unauthorized"]["code"] == 401


async def test_bodies_are_bounded_and_must_be_json(cloud: Cloud) -> None:
    headers = cloud.token("alice")
    large = await cloud.http.post("/compute/v2.1/servers", content=b" " * (1024 * 1024 + 1), headers=headers)
    assert large.status_code == 413 and "overLimit" in large.json()
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        answer = await cloud.http.post("/compute/v2.1/servers", content=content, headers=headers)
        assert answer.status_code == 400, content[:10]


async def test_unknown_methods_and_actions_are_refused(cloud: Cloud) -> None:
    headers = cloud.token("alice")
    assert (await cloud.http.patch("/compute/v2.1/servers", headers=headers)).status_code == 405
    for body, words in (({"fly": None}, "no such action: fly"), ({}, "only key"), ({"a": 1, "b": 2}, "only key")):
        answer = await cloud.http.post("/compute/v2.1/servers/x/action", json=body, headers=headers)
        assert answer.status_code == 400 and words in answer.text


async def test_a_route_outside_its_microversions_is_not_there(cloud: Cloud) -> None:
    headers = cloud.token("admin")
    at_2_88 = {**headers, OLD: "2.88"}
    assert (await cloud.http.get("/compute/v2.1/os-hypervisors/statistics", headers=headers)).status_code == 200
    assert (await cloud.http.get("/compute/v2.1/os-hypervisors/statistics", headers=at_2_88)).status_code in (400, 404)
    assert (await cloud.http.get("/compute/v2.1/servers/x/tags", headers=headers)).status_code == 404


async def test_health_says_that_bus_and_database_answer(cloud: Cloud) -> None:
    answer = await cloud.http.get("/healthz")
    assert answer.status_code == 503  # the cloud's bus was not started
    assert answer.json()["bus"] is False


def test_every_row_that_is_not_public_names_its_action_once() -> None:
    keys = [(row.service, row.method, row.path, row.action, row.since) for row in ROUTES]
    assert len(keys) == len(set(keys))
