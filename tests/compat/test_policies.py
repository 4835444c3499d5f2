"""Who may do what: five personas before the same doors, and the words with which one is closed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat.clients import Clients, Server, message
from tests.compat.conftest import MakeServer

PERSONAS = ("admin", "manager", "demo", "reader", "other")
"""An administrator; a manager, a member and a reader of the server's project; a member of another one."""

REFUSED = "Policy doesn't allow os_compute_api:{rule} to be performed."
GONE = "Instance {id} could not be found."


def answers(clients: Clients, method: str, path: str, body: Any = None) -> dict[str, int]:
    """Return the status that each persona gets."""
    return {who: clients.wire(who)(method, path, body).status_code for who in PERSONAS}


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    """A server of the project demo."""
    return make_server()


def test_what_is_read_of_a_server(clients: Clients, server: Server) -> None:
    for path in ("", "/os-instance-actions", "/metadata", "/tags", "/ips"):
        found = answers(clients, "GET", f"/servers/{server.id}{path}")
        assert found == {"admin": 200, "manager": 200, "demo": 200, "reader": 200, "other": 404}, path
    found = answers(clients, "GET", f"/servers/{server.id}/migrations")
    assert found == {"admin": 200, "manager": 200, "demo": 403, "reader": 403, "other": 404}
    listed = {who: clients.wire(who)("GET", "/servers").json()["servers"] for who in PERSONAS}
    seen = {who: any(row["id"] == server.id for row in rows) for who, rows in listed.items()}
    assert seen == {"admin": False, "manager": True, "demo": True, "reader": True, "other": False}
    all_tenants = answers(clients, "GET", "/servers/detail?all_tenants=1")
    assert all_tenants == {"admin": 200, "manager": 403, "demo": 403, "reader": 403, "other": 403}


def test_where_a_server_is_only_its_administrator_sees(clients: Clients, server: Server) -> None:
    server.move()
    path = f"/servers/{server.id}/os-instance-actions"
    path += "/" + clients.wire()("GET", path).json()["instanceActions"][0]["request_id"]
    for who in ("admin", "manager"):
        wire = clients.wire(who)
        shown = wire("GET", f"/servers/{server.id}").json()["server"]
        own = f"/os-migrations?project_id={clients.wire('demo').project_id}"
        (move,) = [row for row in wire("GET", own).json()["migrations"] if row["instance_uuid"] == server.id]
        events = wire("GET", path).json()["instanceAction"]["events"]
        hosts = {shown.get("OS-EXT-SRV-ATTR:host"), move["dest_compute"]} | {event.get("host") for event in events}
        assert (hosts & {"h1", "h2", "h3"} != set()) is (who == "admin")
        assert (
            any("host" in event for event in events)
            is any("traceback" in event for event in events)
            is (who == "admin")
        )
        assert {"source_compute", "dest_compute", "source_node", "dest_node", "dest_host"} <= set(move)
    foreign = f"/os-migrations?project_id={clients.wire('admin').project_id}"
    assert clients.wire("manager")("GET", foreign).status_code == 403
    found = answers(clients, "GET", "/os-migrations")
    assert found == {"admin": 200, "manager": 200, "demo": 403, "reader": 403, "other": 403}


@pytest.mark.parametrize(
    ("action", "body", "rule", "allowed"),
    [
        ("migrate", None, "os-migrate-server:migrate", {"admin", "manager"}),
        ("migrate", {"host": "h2"}, "os-migrate-server:migrate", {"admin"}),
        ("resize", {"flavorRef": "no-such-flavor"}, "servers:resize", {"admin", "manager", "demo"}),
        ("confirmResize", None, "servers:confirm_resize", {"admin", "manager", "demo"}),
        ("revertResize", None, "servers:revert_resize", {"admin", "manager", "demo"}),
        ("os-start", None, "servers:start", {"admin", "manager", "demo"}),
        ("reboot", {"type": "HARD"}, "servers:reboot", {"admin", "manager", "demo"}),
        ("os-getConsoleOutput", {"length": 1}, "os-console-output", {"admin", "manager", "demo"}),
        ("os-resetState", {"state": "active"}, "os-admin-actions:reset_state", {"admin"}),
        ("lock", None, "os-lock-server:lock", {"admin", "manager", "demo"}),
    ],
)
def test_who_may_act_on_a_server(
    clients: Clients, server: Server, action: str, body: Any, rule: str, allowed: set[str]
) -> None:
    for who in reversed(PERSONAS):
        answer = server.act(action, body, who)
        if who in allowed:
            assert answer.status_code in (200, 202, 204, 400, 409), (who, answer.text)
        elif who == "other":
            assert (answer.status_code, message(answer)) == (404, GONE.format(id=server.id))
        else:
            denied = f"{rule}:host" if who == "manager" and action == "migrate" else rule
            assert (answer.status_code, message(answer)) == (403, REFUSED.format(rule=denied))


def test_a_lock_keeps_members_out_and_administrators_not(clients: Clients, server: Server) -> None:
    assert server.act("lock", {"locked_reason": "moving"}, "demo").status_code == 202
    words = f"Instance {server.id} is locked"
    for action, body, who in (("os-stop", None, "demo"), ("migrate", None, "manager"),
                              ("resize", {"flavorRef": clients.flavor_id("medium")}, "demo")):  # fmt: skip
        answer = server.act(action, body, who)
        assert (answer.status_code, message(answer)) == (409, words)
    deleted = clients.wire("demo")("DELETE", f"/servers/{server.id}")
    assert (deleted.status_code, message(deleted)) == (409, words)
    assert server.act("migrate").status_code == 202
    server.wait("VERIFY_RESIZE")
    for action in ("confirmResize", "revertResize"):
        assert message(server.act(action, None, "demo")) == words
    assert server.act("confirmResize").status_code == 204


def test_a_reader_changes_nothing_and_another_project_finds_nothing(clients: Clients, server: Server) -> None:
    path = f"/servers/{server.id}"
    changes = [
        ("DELETE", path, None), ("PUT", path, {"server": {"name": "mine"}}),
        ("POST", f"{path}/metadata", {"metadata": {"a": "b"}}), ("PUT", f"{path}/tags", {"tags": ["t"]}),
    ]  # fmt: skip
    for method, where, body in changes:
        refused = clients.wire("reader")(method, where, body)
        assert refused.status_code == 403 and message(refused).startswith("Policy doesn't allow os_compute_api:")
        assert clients.wire("other")(method, where, body).status_code == 404
    create = {"name": "x", "imageRef": clients.image_id, "flavorRef": clients.flavor_id("small"), "networks": "none"}
    refused = clients.wire("reader")("POST", "/servers", {"server": create})
    assert (refused.status_code, message(refused)) == (403, REFUSED.format(rule="servers:create"))
    refused = clients.wire("demo")("POST", "/servers", {"server": {**create, "host": "h1"}})
    assert (refused.status_code, message(refused)) == (403, REFUSED.format(rule="servers:create:forced_host"))
    assert server.show()["name"] == server.name


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/os-services", None),
        ("GET", "/os-hypervisors", None),
        ("GET", "/os-hypervisors/detail", None),
        ("GET", "/os-aggregates", None),
        ("GET", "/os-availability-zone/detail", None),
        ("PUT", "/os-services/00000000-0000-0000-0000-000000000000", {"status": "disabled"}),
        ("DELETE", "/os-services/00000000-0000-0000-0000-000000000000", None),
        ("POST", "/flavors", {"flavor": {"name": "x"}}),
        ("DELETE", "/flavors/no-such-flavor", None),
    ],
)
def test_hosts_and_flavors_are_the_administrators(clients: Clients, method: str, path: str, body: Any) -> None:
    found = answers(clients, method, path, body)
    assert found.pop("admin") in (200, 400, 404)
    assert set(found.values()) == {403}


def test_everybody_sees_flavors_limits_and_zones(clients: Clients) -> None:
    for path in ("/flavors", "/flavors/detail", "/limits", "/os-availability-zone"):
        assert set(answers(clients, "GET", path).values()) == {200}, path
