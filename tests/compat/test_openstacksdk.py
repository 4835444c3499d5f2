"""openstacksdk, unmodified: a server through its whole life, and what the SDK's resources read of it."""

from __future__ import annotations

from typing import Any

import pytest
from openstack import exceptions

from tests.compat.clients import Clients
from tests.compat.conftest import MakeServer
from whimbrel.lab.seed import IMAGE_NAME

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::ResourceWarning")

SOON: dict[str, Any] = {"interval": 0.2, "wait": 60}


def test_a_server_from_create_to_delete(clients: Clients, make_server: MakeServer) -> None:
    admin = clients.sdk("admin")
    compute = admin.compute
    image, flavor = admin.image.find_image(IMAGE_NAME), compute.find_flavor("small")
    network = admin.network.find_network("private")
    server = compute.create_server(
        name="sdk", image_id=image.id, flavor_id=flavor.id, networks=[{"uuid": network.id}], metadata={"a": "b"}
    )
    make_server.adopt(server.id, "sdk")
    server = compute.wait_for_server(server, **SOON)
    assert (server.status, server.vm_state, server.task_state, server.metadata) == (
        "ACTIVE",
        "active",
        None,
        {"a": "b"},
    )
    assert server.addresses["private"][0]["addr"].startswith("10.98.")
    source = server.compute_host
    assert source == server.hypervisor_hostname and server.launched_at

    compute.migrate_server(server)
    server = compute.wait_for_server(server, status="VERIFY_RESIZE", **SOON)
    assert server.compute_host != source
    compute.revert_server_resize(server)
    server = compute.wait_for_server(server, **SOON)
    assert server.compute_host == source
    (elsewhere, *_) = sorted({"h1", "h2", "h3"} - {source})
    compute.migrate_server(server, host=elsewhere)
    server = compute.wait_for_server(server, status="VERIFY_RESIZE", **SOON)
    compute.confirm_server_resize(server)
    server = compute.wait_for_server(server, **SOON)
    assert server.compute_host == elsewhere
    compute.resize_server(server, compute.find_flavor("medium").id)
    server = compute.wait_for_server(server, status="VERIFY_RESIZE", **SOON)
    compute.confirm_server_resize(server)
    server = compute.wait_for_server(server, **SOON)
    assert server.flavor.original_name == "medium"
    compute.stop_server(server)
    server = compute.wait_for_server(server, status="SHUTOFF", **SOON)
    assert "DOWN" in compute.get_server_console_output(server, length=3)["output"]

    moves = list(compute.migrations(instance_uuid=server.id))
    assert [(move.migration_type, move.status) for move in moves] == [
        ("resize", "confirmed"), ("migration", "confirmed"), ("migration", "reverted"),
    ]  # fmt: skip
    assert (moves[1].source_compute, moves[1].dest_compute) == (source, elsewhere)
    assert list(compute.server_migrations(server)) == [], "cold ones have no place among the live ones in progress"
    actions = {action.action: action for action in compute.server_actions(server)}
    assert {"create", "migrate", "revertResize", "confirmResize", "resize", "stop"} == set(actions)
    told = compute.get_server_action(actions["stop"].request_id, server)
    assert [(event.event, event.result) for event in told.events] == [("compute_set_power", "Success")]

    compute.delete_server(server)
    compute.wait_for_delete(server, **SOON)
    with pytest.raises(exceptions.NotFoundException, match="could not be found"):
        compute.get_server(server.id)


def test_the_cloud_layer_creates_finds_and_deletes(clients: Clients, make_server: MakeServer) -> None:
    demo = clients.sdk("demo")
    server = demo.create_server("layer", image=IMAGE_NAME, flavor="small", network="private", wait=True, auto_ip=False)
    make_server.adopt(server.id, "layer")
    assert server.status == "ACTIVE" and server.private_v4.startswith("10.98.")
    assert demo.get_server("layer").id == server.id
    assert demo.delete_server("layer")


def test_hosts_as_services_and_hypervisors(clients: Clients) -> None:
    compute = clients.sdk("admin").compute
    services = {service.host: service for service in compute.services()}
    assert {service.state for service in services.values()} == {"up"} and set(services) == {"h1", "h2", "h3"}
    compute.disable_service(services["h2"], disabled_reason="new fans")
    try:
        (service,) = compute.services(host="h2")
        assert (service.status, service.disabled_reason) == ("disabled", "new fans")
    finally:
        compute.enable_service(services["h2"])
    assert {each.name: each.state for each in compute.hypervisors(details=True)} == dict.fromkeys(services, "up")
    (found,) = compute.hypervisors(details=True, hypervisor_hostname_pattern="h3", with_servers=True)
    assert (found.name, found.host_ip, found.service_details["host"], found.servers) == ("h3", "127.0.0.1", "h3", [])
    assert compute.get_limits().absolute.instances >= 10


def test_lists_follow_their_pages(clients: Clients, make_server: MakeServer) -> None:
    made = [make_server().id for _ in range(3)]
    demo = clients.sdk("demo").compute
    assert [server.id for server in demo.servers(limit=1)] == made[::-1]
    assert [server.id for server in demo.servers(details=False, limit=2, paginated=False)] == made[:0:-1]
    compute = clients.sdk("admin").compute
    for server_id in made:
        compute.migrate_server(server_id)
    assert {move.server_id for move in compute.migrations(limit=1)} >= set(made)
    assert {host.name for host in compute.hypervisors(details=True, limit=1)} == {"h1", "h2", "h3"}
    assert [action.action for action in compute.server_actions(made[0], limit=1)] == ["migrate", "create"]


PAGED = (
    ("compute", "flavors"), ("compute", "services"), ("image", "images"), ("network", "networks"),
    ("network", "subnets"), ("network", "ports"), ("network", "security_groups"), ("identity", "projects"),
    ("identity", "users"), ("identity", "roles"), ("identity", "domains"), ("identity", "services"),
    ("identity", "endpoints"),
)  # fmt: skip


@pytest.mark.parametrize(("service", "noun"), PAGED)
def test_a_list_by_pages_of_one_is_the_whole_list(clients: Clients, service: str, noun: str) -> None:
    listing = getattr(getattr(clients.sdk("admin"), service), noun)
    whole = [each.id for each in listing()]
    assert [each.id for each in listing(limit=1)] == whole
    assert [each.id for each in listing(limit=2)] == whole


def test_a_member_may_not_migrate(clients: Clients, make_server: MakeServer) -> None:
    server = make_server()
    with pytest.raises(
        exceptions.ForbiddenException, match="Policy doesn't allow os_compute_api:os-migrate-server:migr"
    ):
        clients.sdk("demo").compute.migrate_server(server.id)
    with pytest.raises(exceptions.ConflictException, match="while it is in vm_state active"):
        clients.sdk("demo").compute.confirm_server_resize(server.id)
