"""What the compute API refuses of moves, in OpenStack's words, and what becomes of a move that finds no host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from tests.compat.clients import Clients, Json, Wire, message, wait_for
from tests.compat.conftest import MakeServer
from whimbrel.scheduler.service import FRESH

NOWHERE = "00000000-0000-0000-0000-000000000000"


@contextmanager
def service(wire: Wire, host: str, on: Json, off: Json) -> Iterator[None]:
    """Switch a host's service for a while."""
    (found,) = wire("GET", f"/os-services?host={host}").json()["services"]
    assert wire("PUT", f"/os-services/{found['id']}", on).status_code == 200
    try:
        yield
    finally:
        wire("PUT", f"/os-services/{found['id']}", off)


def see_hosts_anew() -> None:
    """Wait until the scheduler's picture of the hosts is newer than what was switched."""
    Event().wait(FRESH)


@pytest.fixture
def flavor(wire: Wire) -> Iterator[Any]:
    """Make flavors of other sizes than the cloud has; afterwards they are gone."""
    made: list[str] = []

    def make(**size: int) -> str:
        body = {"name": f"flavor-{len(made)}", "ram": 128, "vcpus": 1, "disk": 1, **size}
        made.append(str(wire("POST", "/flavors", {"flavor": body}).json()["flavor"]["id"]))
        return made[-1]

    yield make
    for flavor_id in made:
        wire("DELETE", f"/flavors/{flavor_id}")


def test_a_migration_is_refused_before_anything_is_touched(wire: Wire, make_server: MakeServer) -> None:
    server = make_server(host="h1")
    for body, status, words in (
        ({"host": "nowhere"}, 400, "Compute host nowhere could not be found."),
        ({"host": "h1"}, 400, "Cannot migrate to the host where the server exists."),
        ({"host": 7}, 400, "Invalid input for field/attribute host. Value: 7."),
        ({"hosts": "h2"}, 400, "Invalid input for field/attribute migrate."),
        ("h2", 400, "Invalid input for field/attribute migrate."),
    ):
        answer = server.act("migrate", body)
        assert answer.status_code == status and message(answer).startswith(words), answer.text
    answer = wire("POST", f"/servers/{NOWHERE}/action", {"migrate": None})
    assert (answer.status_code, message(answer)) == (404, f"Instance {NOWHERE} could not be found.")
    for body in ({}, {"migrate": None, "resize": None}, {"fly": None}, [], None):
        assert wire("POST", f"/servers/{server.id}/action", body).status_code == 400
    with service(wire, "h1", {"forced_down": True}, {"forced_down": False}):
        answer = server.act("migrate")
        assert (answer.status_code, message(answer)) == (409, "Service is unavailable at this time.")
    assert server.migrations() == [] and server.show()["status"] == "ACTIVE"


def test_a_resize_is_refused_before_anything_is_touched(clients: Clients, make_server: MakeServer, flavor: Any) -> None:
    server = make_server(flavorRef=clients.flavor_id("medium"))
    for reference, status, words in (
        ("no-such-flavor", 400, "Flavor no-such-flavor could not be found."),
        (clients.flavor_id("medium"), 400, "When resizing, instances must change flavor!"),
        (
            flavor(disk=0),
            400,
            "Server disk was unable to be resized because: Resize to zero disk flavor is not allowed",
        ),
        (flavor(disk=1), 400, "Server disk was unable to be resized because:"),
        (
            flavor(disk=2, vcpus=200_000),
            403,
            "Quota exceeded for cores: Requested 199999, but already used 1 of 100000",
        ),
        (None, 400, "Invalid input for field/attribute flavorRef."),
        ("", 400, "Invalid input for field/attribute flavorRef."),
    ):
        answer = server.act("resize", {"flavorRef": reference}, "demo")
        assert answer.status_code == status and message(answer).startswith(words), (reference, answer.text)
    assert server.act("resize", {}, "demo").status_code == server.act("resize", None, "demo").status_code == 400
    assert server.migrations() == []


def test_a_state_that_does_not_allow_it_is_named(make_server: MakeServer, clients: Clients) -> None:
    server = make_server()

    def conflict(action: str, state: str, body: Any = None) -> None:
        answer = server.act(action, body)
        words = f"Cannot '{action.removeprefix('os-')}' instance {server.id} while it is in {state}"
        assert (answer.status_code, message(answer)) == (409, words)

    resize = {"flavorRef": clients.flavor_id("medium")}
    for action in ("confirmResize", "revertResize"):
        conflict(action, "vm_state active")
    conflict("os-start", "vm_state active")
    server.act("os-stop")
    server.wait("SHUTOFF")
    conflict("os-stop", "vm_state stopped")
    server.move()
    assert server.show()["OS-EXT-STS:power_state"] == 4, "a stopped server is moved and stays stopped"
    for action, body in (("migrate", None), ("resize", resize), ("os-start", None), ("os-stop", None)):
        conflict(action, "vm_state resized", body)
    assert server.act("confirmResize").status_code == 204
    server.wait("SHUTOFF")
    server.act("os-resetState", {"state": "error"})
    conflict("migrate", "vm_state error")
    server.act("os-resetState", {"state": "active"})
    server.wait("SHUTOFF")


def test_one_verdict_holds_and_may_be_repeated(make_server: MakeServer) -> None:
    server = make_server()
    server.move()
    assert [server.act("revertResize").status_code for _ in range(2)] == [202, 202]
    assert server.act("confirmResize").status_code == 409
    server.wait("ACTIVE")
    assert [row["status"] for row in server.migrations()] == ["reverted"]


def test_a_confirm_does_not_need_the_source(wire: Wire, make_server: MakeServer) -> None:
    server = make_server(host="h1")
    server.move("h2")
    with service(wire, "h1", {"forced_down": True}, {"forced_down": False}):
        assert server.act("confirmResize").status_code == 204
        server.wait("ACTIVE")
    assert server.migrations()[0]["status"] == "confirmed"


def test_a_server_in_its_undo_window_is_deleted(wire: Wire, make_server: MakeServer) -> None:
    server = make_server()
    server.move()
    assert wire("DELETE", f"/servers/{server.id}").status_code == 204
    wait_for("the server to go", lambda: wire("GET", f"/servers/{server.id}").status_code == 404)
    told = wire("GET", f"/servers/{server.id}/os-instance-actions").json()["instanceActions"]
    assert [(row["action"], row["message"]) for row in told] == [("delete", None), ("migrate", None), ("create", None)]


def test_a_migration_without_a_host_ends_in_error_and_says_why_of_each(
    clients: Clients, wire: Wire, make_server: MakeServer
) -> None:
    server = make_server()
    here = server.host
    others = sorted({"h1", "h2", "h3"} - {here})
    enabled = {"status": "enabled"}
    with (
        service(wire, others[0], {"status": "disabled", "disabled_reason": "new fans"}, enabled),
        service(wire, others[1], {"forced_down": True}, {"forced_down": False}),
    ):
        see_hosts_anew()
        begun = server.act("migrate")
        assert begun.status_code == 202
        wait_for("the migration to end", lambda: server.migrations()[0]["status"] == "error")
    shown = server.wait("ACTIVE")
    assert shown["OS-EXT-SRV-ATTR:host"] == here and "fault" not in shown
    path = f"/servers/{server.id}/os-instance-actions/{begun.headers['x-openstack-request-id']}"
    told = wire("GET", path).json()["instanceAction"]
    assert (told["action"], told["message"]) == ("migrate", "Error")
    (event,) = told["events"]
    assert event["result"] == "Error" and event["details"].startswith("No valid host was found.")
    for words in (f"{others[0]}: new fans", f"{others[1]}: it was forced down", f"{here}: the server is there already"):
        assert words in event["details"]
    (event,) = clients.wire("demo")("GET", path).json()["instanceAction"]["events"]
    assert "new fans" in event["details"] and not any(host in event["details"] for host in ("h1", "h2", "h3"))
    see_hosts_anew()
    assert server.act("migrate").status_code == 202, "it may be asked for again"
    server.wait("VERIFY_RESIZE")


def test_a_server_without_a_host_says_why(clients: Clients, make_server: MakeServer, flavor: Any, wire: Wire) -> None:
    body = {
        "name": "huge", "imageRef": clients.image_id, "flavorRef": flavor(ram=200_000), "networks": "none",
    }  # fmt: skip
    made = clients.wire("demo")("POST", "/servers", {"server": body}).json()["server"]
    server = make_server.adopt(made["id"], "huge")
    shown = server.wait("ERROR")
    assert "No valid host was found" in shown["fault"]["message"] and shown["fault"]["code"] == 500
    (action,) = wire("GET", f"/servers/{server.id}/os-instance-actions").json()["instanceActions"]
    assert (action["action"], action["message"]) == ("create", "Error")


def test_answers_come_without_delay_on_a_connection_that_is_kept(wire: Wire) -> None:
    """A body that the kernel keeps back until the headers are acknowledged comes 40 ms late, each time."""

    def seconds() -> float:
        began = time.monotonic()
        assert wire("GET", "/").status_code == 200
        return time.monotonic() - began

    assert min(seconds() for _ in range(10)) < 0.03
