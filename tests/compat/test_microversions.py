"""Microversions of the compute API: how one is asked for, what every answer says of it, and the form that it gives."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.compat.clients import Clients, Wire
from tests.compat.conftest import MakeServer

NEW, OLD = "OpenStack-API-Version", "X-OpenStack-Nova-API-Version"
NEWEST = "2.100"

Keys = dict[str, set[str]]


def version_of(answer: httpx2.Response) -> str:
    """Return the version that an answer says it has, in all the ways in which it must say so."""
    assert answer.headers[NEW] == f"compute {answer.headers[OLD]}"
    assert {NEW, OLD} <= {name.strip() for name in answer.headers["Vary"].split(",")}
    request = answer.headers["x-openstack-request-id"]
    assert request.startswith("req-") and answer.headers["x-compute-request-id"] == request
    return answer.headers[OLD]


@pytest.mark.parametrize(
    ("headers", "spoken"),
    [
        ({}, "2.1"),
        ({NEW: "compute 2.60"}, "2.60"),
        ({OLD: "2.60"}, "2.60"),
        ({NEW: "compute 2.60", OLD: "2.61"}, "2.60"),
        ({NEW: "placement 1.29, compute 2.60"}, "2.60"),
        ({NEW: "placement 1.29"}, "2.1"),
        ({NEW: "compute latest"}, NEWEST),
        ({OLD: "latest"}, NEWEST),
        ({NEW: f"compute {NEWEST}"}, NEWEST),
    ],
)
def test_a_version_is_asked_for_in_either_header(wire: Wire, headers: dict[str, str], spoken: str) -> None:
    answer = wire.http.get("/flavors/detail", headers=headers)
    assert (answer.status_code, version_of(answer)) == (200, spoken)
    assert ("description" in answer.json()["flavors"][0]) is (spoken != "2.1")


@pytest.mark.parametrize(
    ("wanted", "status", "words"),
    [
        ("2.101", 406, f"Version 2.101 is not supported by the API. Minimum is 2.1 and maximum is {NEWEST}."),
        ("2.0", 406, "Version 2.0 is not supported by the API."),
        ("3.1", 406, "Version 3.1 is not supported by the API."),
        ("2.060", 400, "API Version String 2.060 is of invalid format."),
        ("two", 400, "API Version String two is of invalid format."),
    ],
)
def test_a_version_that_there_is_not_is_refused(wire: Wire, wanted: str, status: int, words: str) -> None:
    for headers in ({NEW: f"compute {wanted}"}, {OLD: wanted}):
        answer = wire.http.get("/servers", headers=headers)
        (fault,) = answer.json().values()
        assert (answer.status_code, fault["code"]) == (status, status) and words in fault["message"]
        assert version_of(answer) == "2.1"


def test_every_answer_says_its_version_and_its_request(clients: Clients, wire: Wire) -> None:
    nobody = httpx2.Client(base_url=f"{wire.root}/compute/v2.1", trust_env=False)
    at = {NEW: "compute 2.79"}
    answers = [
        (404, wire("GET", "/servers/nothing", version="2.79"), "itemNotFound"),
        (404, wire("GET", "/nowhere", version="2.79"), "itemNotFound"),
        (405, wire("PATCH", "/servers", version="2.79"), "badMethod"),
        (400, wire("POST", "/servers", {"server": {}}, version="2.79"), "badRequest"),
        (403, clients.wire("demo")("GET", "/os-services", version="2.79"), "forbidden"),
        (401, nobody.get("/servers", headers=at), "unauthorized"),
        (401, nobody.get("/servers", headers={**at, "X-Auth-Token": "wrong"}), "unauthorized"),
    ]
    for status, answer, fault in answers:
        assert (answer.status_code, list(answer.json())) == (status, [fault])
        assert answer.json()[fault]["code"] == status and answer.json()[fault]["message"]
        assert version_of(answer) == "2.79"
    requests = {answer.headers["x-openstack-request-id"] for _, answer, _ in answers}
    assert len(requests) == len(answers)
    nobody.close()


def test_versions_are_discovered_without_a_token(wire: Wire) -> None:
    with httpx2.Client(base_url=wire.root, trust_env=False) as nobody:
        for path in ("/compute/v2.1", "/compute/v2.1/"):
            version = nobody.get(path).json()["version"]
            assert (version["id"], version["min_version"], version["version"]) == ("v2.1", "2.1", NEWEST)
        listed = nobody.get("/compute/").json()["versions"]
        assert [(row["id"], row["status"]) for row in listed] == [("v2.0", "DEPRECATED"), ("v2.1", "CURRENT")]
        assert nobody.get("/compute/v9").status_code == 300
        assert nobody.get("/identity/v3").json()["version"]["links"][0]["rel"] == "self"
        assert nobody.get("/identity").json()["versions"]["values"] and nobody.get("/image").json()["versions"]


def added(wire: Wire, path: str, envelope: str, versions: tuple[str, ...]) -> Keys:
    """Return the keys that each version shows of a thing and the one before it does not."""
    found: Keys = {}
    before: set[str] = set()
    for version in versions:
        body = wire("GET", path, version=version).json()[envelope]
        keys = set(body[0] if isinstance(body, list) else body)
        assert before <= keys, f"{version} lost {before - keys}"
        if keys - before:
            found[version] = keys - before
        before = keys
    return found


def steps(*versions: int) -> tuple[str, ...]:
    """Return 2.1, and for each version the one before it and itself: nothing comes early, nothing late."""
    return ("2.1", *(f"2.{number}" for version in versions for number in (version - 1, version)))


def test_a_server_shows_what_its_version_knows(wire: Wire, make_server: MakeServer) -> None:
    server = make_server()
    later = (3, 9, 16, 19, 26, 63, 71, 73, 90, 96, 98, 100)
    found = added(wire, f"/servers/{server.id}", "server", steps(*later))
    attribute = "OS-EXT-SRV-ATTR:"
    assert found.pop("2.1") == {
        "id", "name", "status", "tenant_id", "user_id", "created", "updated", "hostId", "accessIPv4", "accessIPv6",
        "addresses", "image", "flavor", "links", "metadata", "config_drive", "key_name", "progress",
        "OS-DCF:diskConfig", "OS-EXT-AZ:availability_zone", "OS-EXT-STS:task_state", "OS-EXT-STS:vm_state",
        "OS-EXT-STS:power_state", "OS-SRV-USG:launched_at", "OS-SRV-USG:terminated_at",
        "os-extended-volumes:volumes_attached", f"{attribute}host", f"{attribute}hypervisor_hostname",
        f"{attribute}instance_name",
    }  # fmt: skip
    assert found == {
        "2.3": {
            f"{attribute}{name}" for name in ("hostname", "kernel_id", "ramdisk_id", "launch_index", "reservation_id",
                                              "root_device_name", "user_data")
        },
        "2.9": {"locked"}, "2.16": {"host_status"}, "2.19": {"description"}, "2.26": {"tags"},
        "2.63": {"trusted_image_certificates"}, "2.71": {"server_groups"}, "2.73": {"locked_reason"},
        "2.96": {"pinned_availability_zone"}, "2.100": {"scheduler_hints"},
    }  # fmt: skip


def test_a_servers_flavor_and_image_have_their_versions_form(wire: Wire, make_server: MakeServer) -> None:
    server = make_server()

    def shown(version: str | None) -> dict[str, Any]:
        server_shown: dict[str, Any] = wire("GET", f"/servers/{server.id}", version=version).json()["server"]
        return server_shown

    for old in (None, "2.1", "2.46"):
        flavor = shown(old)["flavor"]
        assert set(flavor) == {"id", "links"} and isinstance(flavor["id"], str)
    assert set(shown("2.47")["flavor"]) == {
        "vcpus", "ram", "disk", "ephemeral", "swap", "original_name", "extra_specs",
    }  # fmt: skip
    assert set(shown("2.97")["image"]) == {"id", "links"} and "properties" in shown("2.98")["image"]
    update = {"server": {"name": "renamed"}}
    before = wire("PUT", f"/servers/{server.id}", update, version="2.74").json()["server"]
    assert before["name"] == "renamed" and "OS-EXT-STS:vm_state" not in before
    assert "OS-EXT-STS:vm_state" in wire("PUT", f"/servers/{server.id}", update, version="2.75").json()["server"]


def test_migrations_and_actions_grow_with_their_versions(wire: Wire, make_server: MakeServer) -> None:
    server = make_server()
    server.move()
    found = added(wire, f"/os-migrations?instance_uuid={server.id}", "migrations", steps(23, 59, 80))
    assert len(found.pop("2.1")) == 12
    assert found == {"2.23": {"migration_type"}, "2.59": {"uuid"}, "2.80": {"user_id", "project_id"}}
    path = f"/servers/{server.id}/os-instance-actions"
    assert added(wire, path, "instanceActions", steps(58)).get("2.58") == {"updated_at"}
    request = wire("GET", path).json()["instanceActions"][0]["request_id"]
    events = {
        version: set(wire("GET", f"{path}/{request}", version=version).json()["instanceAction"]["events"][0])
        for version in ("2.1", "2.61", "2.62", "2.83", "2.84")
    }
    assert events["2.1"] == events["2.61"] == {"event", "start_time", "finish_time", "result", "traceback"}
    assert events["2.62"] - events["2.61"] == {"hostId", "host"} and events["2.84"] - events["2.83"] == {"details"}
    assert wire("GET", f"/servers/{server.id}/migrations", version="2.22").status_code == 404
    assert wire("GET", f"/servers/{server.id}/migrations", version="2.23").json() == {"migrations": []}


def test_a_deleted_servers_actions_stay_readable_from_2_21_on(wire: Wire, make_server: MakeServer) -> None:
    server = make_server()
    path = f"/servers/{server.id}"
    assert wire("DELETE", path).status_code == 204
    make_server.delete_all()
    assert wire("GET", f"{path}/os-instance-actions", version="2.20").status_code == 404
    told = wire("GET", f"{path}/os-instance-actions", version="2.21").json()["instanceActions"]
    assert [action["action"] for action in told] == ["delete", "create"]


def test_hosts_have_numbers_before_2_53_and_uuids_after(wire: Wire) -> None:
    def first(path: str, envelope: str, version: str) -> dict[str, Any]:
        row: dict[str, Any] = wire("GET", path, version=version).json()[envelope][0]
        return row

    assert isinstance(first("/os-services", "services", "2.52")["id"], int)
    assert len(first("/os-services", "services", "2.53")["id"]) == 36
    assert added(wire, "/os-services", "services", steps(11)).get("2.11") == {"forced_down"}
    old, new = (first("/os-hypervisors/detail", "hypervisors", version) for version in ("2.1", "2.88"))
    assert isinstance(old["id"], int) and isinstance(old["cpu_info"], str) and old["vcpus"] == 100
    assert isinstance(first("/os-hypervisors/detail", "hypervisors", "2.28")["cpu_info"], dict)
    assert len(new["id"]) == 36 and "uptime" in new and not {"vcpus", "cpu_info", "running_vms"} & set(new)
    assert wire("GET", "/os-hypervisors/statistics", version="2.87").status_code == 200
    assert wire("GET", "/os-hypervisors/statistics", version="2.88").status_code == 404
    for version, by in (("2.1", "number"), ("2.53", "uuid")):
        host = first("/os-hypervisors", "hypervisors", version)
        shown = wire("GET", f"/os-hypervisors/{host['id']}", version=version).json()["hypervisor"]
        assert shown["hypervisor_hostname"] == host["hypervisor_hostname"], by


def test_services_are_switched_by_name_before_2_53(wire: Wire) -> None:
    body = {"host": "h3", "binary": "nova-compute"}
    reason = body | {"disabled_reason": "new fans"}
    assert wire("PUT", "/os-services/disable-log-reason", reason, "2.1").json()["service"]["status"] == "disabled"
    (shown,) = wire("GET", "/os-services?host=h3", version="2.1").json()["services"]
    assert (shown["status"], shown["disabled_reason"]) == ("disabled", "new fans")
    assert wire("PUT", "/os-services/enable", body, "2.1").json()["service"]["status"] == "enabled"
    assert wire("PUT", "/os-services/force-down", body | {"forced_down": True}, "2.10").status_code == 404
    assert wire("PUT", "/os-services/enable", body | {"host": "nowhere"}, "2.1").status_code == 404


def test_flavors_have_their_versions_form(wire: Wire) -> None:
    assert wire("GET", "/flavors/detail", version="2.74").json()["flavors"][0]["swap"] == ""
    assert wire("GET", "/flavors/detail", version="2.75").json()["flavors"][0]["swap"] == 0
    found = added(wire, "/flavors/detail", "flavors", steps(55, 61))
    assert found["2.55"] == {"description"} and found["2.61"] == {"extra_specs"}


def test_what_a_version_does_not_know_it_ignores_or_refuses(
    clients: Clients, wire: Wire, make_server: MakeServer
) -> None:
    for path, old, new in (("/servers", "2.74", "2.75"), ("/os-migrations", "2.58", "2.59")):
        assert wire("GET", f"{path}?unheard_of=1", version=old).status_code == 200
        assert wire("GET", f"{path}?unheard_of=1", version=new).status_code == 400
    assert wire("GET", "/limits?reserved=False", version=None).status_code == 200
    body = {"name": "x", "imageRef": clients.image_id, "flavorRef": clients.flavor_id("small")}
    assert "networks" in wire("POST", "/servers", {"server": body}, "2.37").json()["badRequest"]["message"]
    refused = wire("POST", "/servers", {"server": {**body, "host": "h1", "networks": "none"}}, "2.73")
    assert "host" in refused.json()["badRequest"]["message"]
    server = make_server(host="h1")
    assert server.act("migrate", {"host": "nowhere"}, version="2.56").status_code == 400
    assert server.act("migrate", {}, version="2.1").status_code == 202
    server.wait("VERIFY_RESIZE")
    assert server.act("revertResize", {}, version="2.1").status_code == 202
    server.wait("ACTIVE")
