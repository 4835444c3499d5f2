"""`openstack`, unmodified: every command of the story of a server that is created, moved, looked at and deleted."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import pytest

from tests.compat.clients import Clients, Openstack, wait_for
from tests.compat.conftest import MakeServer
from whimbrel.lab.seed import IMAGE_NAME
from whimbrel.scheduler.service import FRESH


@pytest.fixture
def admin(clients: Clients) -> Openstack:
    return clients.openstack("admin")


@pytest.fixture
def demo(clients: Clients) -> Openstack:
    return clients.openstack("demo")


def test_the_installed_program_moves_a_server_and_tells_of_it(clients: Clients, make_server: MakeServer) -> None:
    def typed(line: str, persona: str = "admin") -> str:
        said = clients.typed(f"openstack {line}", persona)
        assert said.code == 0, said
        return said.out

    server = make_server()
    before = server.host
    assert typed(f"server migrate --wait {server.id}").startswith("Complete")
    typed(f"server migration confirm {server.name}", "demo")
    assert server.wait("ACTIVE")["OS-EXT-SRV-ATTR:host"] not in (before, None)
    (move,) = json.loads(typed(f"server migration list --server {server.id} -f json"))
    assert (move["Status"], move["Type"], move["Source Compute"]) == ("confirmed", "migration", before)
    asked = {row["Action"]: row["Request ID"] for row in json.loads(typed(f"server event list {server.id} -f json"))}
    assert list(asked) == ["confirmResize", "migrate", "create"]
    told = json.loads(typed(f"server event show {server.id} {asked['migrate']} -f json"))
    assert [event["event"] for event in told["events"]] == [
        "cold_migrate", "conductor_claim", "compute_prepare", "compute_open_channel", "compute_precopy",
        "compute_stop_guest", "compute_copy_disks", "compute_verify_disks", "compute_define_guest",
        "conductor_hand_over", "compute_start_guest",
    ]  # fmt: skip
    assert {event["result"] for event in told["events"]} == {"Success"}
    assert [event["host"] for event in told["events"] if event["event"] == "compute_stop_guest"] == [before]
    typed(f"server delete --wait {server.name}", "demo")
    assert "No Server found" in clients.openstack("demo").refused(f"server show {server.name}")


def test_who_i_am_and_what_there_is(admin: Openstack, demo: Openstack) -> None:
    token = demo.json("token issue")
    assert token["expires"] and token["id"] and token["user_id"]
    (project,) = (row for row in admin.json("project list") if row["ID"] == token["project_id"])
    assert project["Name"] == "demo" and admin.json("project show demo")["id"] == project["ID"]
    assert [row["Name"] for row in demo.json("project list")] == ["demo"], "the client asks for its own when refused"
    catalog = {row["Type"]: row["Endpoints"] for row in demo.json("catalog list")}
    assert set(catalog) == {"identity", "compute", "image", "network", "placement"}
    assert {end["interface"] for end in catalog["compute"]} == {"public", "internal", "admin"}
    assert all(end["url"].endswith("/compute/v2.1") for end in catalog["compute"])
    services = {row["Service Name"] for row in admin.json("endpoint list")}
    assert services == {"keystone", "nova", "glance", "neutron", "placement"}
    versions = {row["Service Type"]: row for row in demo.json("versions show") if row["Status"] == "CURRENT"}
    assert versions["compute"]["Min Microversion"] == "2.1" and versions["compute"]["Max Microversion"] == "2.100"
    assert {"admin", "demo", "manager"} <= {row["Name"] for row in admin.json("user list")}
    assert {"admin", "manager", "member", "reader", "service"} == {row["Name"] for row in admin.json("role list")}
    assert [row["Zone Name"] for row in demo.json("availability zone list")] == ["nova"]
    limits = {row["Name"]: row["Value"] for row in demo.json("limits show --absolute")}
    assert limits["instances"] >= 10 and limits["total_cores"] >= 20 and limits["instances_used"] == 0
    assert demo.json("network list")[0]["Name"] == "private"
    assert demo.json("network show private")["mtu"] == 1500


def test_flavors(admin: Openstack, demo: Openstack) -> None:
    assert {"small", "medium"} <= {row["Name"] for row in demo.json("flavor list")}
    assert "os-flavor-manage:create" in demo.refused("flavor create --ram 64 --disk 1 --vcpus 1 mine")
    made = admin.json("flavor create --ram 64 --disk 1 --vcpus 2 --swap 32 --id f77 --property a:b=c made")
    assert (made["id"], made["ram"], made["vcpus"], made["swap"]) == ("f77", 64, 2, 32)
    admin.ok("flavor set --description words --property d:e=f made")
    admin.ok("flavor unset --property a:b made")
    shown = demo.json("flavor show made")
    assert (shown["name"], shown["disk"], shown["properties"]) == ("made", 1, {"d:e": "f"})
    assert shown["description"] == "words"
    admin.ok("flavor create --private --project demo --ram 64 --disk 1 --vcpus 1 ours")
    assert demo.json("flavor show ours")["os-flavor-access:is_public"] is False
    admin.ok("flavor unset --project demo ours")
    assert "No Flavor found" in demo.refused("flavor show ours")
    admin.ok("flavor delete made ours")
    assert not {"made", "ours"} & {row["Name"] for row in admin.json("flavor list --all")}


def test_an_image_comes_back_as_it_went_in(demo: Openstack, clients: Clients, tmp_path: Path) -> None:
    content = tmp_path / "disk.raw"
    content.write_bytes(bytes(range(256)) * 40_000)
    made = demo.json(f"image create --file {content} --disk-format raw --property x=y --tag t disk")
    assert (made["status"], made["name"], made["size"]) == ("active", "disk", content.stat().st_size)
    demo.ok("image set --property hw_disk_bus=virtio --name disk2 disk")
    shown = demo.json("image show disk2")
    assert shown["properties"]["x"] == "y" and shown["properties"]["hw_disk_bus"] == "virtio" and shown["tags"] == ["t"]
    assert {IMAGE_NAME, "disk2"} <= {row["Name"] for row in demo.json("image list")}
    assert "disk2" not in {row["Name"] for row in clients.openstack("other").json("image list")}
    demo.ok(f"image save --file {tmp_path}/back disk2")
    assert (tmp_path / "back").read_bytes() == content.read_bytes()
    demo.ok("image delete disk2")
    assert "disk2" not in {row["Name"] for row in demo.json("image list")}


def test_a_server_gets_what_it_is_created_with(
    admin: Openstack, demo: Openstack, make_server: MakeServer, tmp_path: Path
) -> None:
    words = tmp_path / "words"
    words.write_text("writer.interval_ms=50\n")
    base = f"server create --image {IMAGE_NAME} --flavor small"
    made = demo.json(
        f"{base} --network private --property a=b --user-data {words} --config-drive true --tag t --description d one"
    )
    assert made["adminPass"]
    server = make_server.adopt(made["id"], "one")
    server.wait("ACTIVE")
    shown = demo.json("server show one")
    assert (shown["status"], shown["properties"], shown["tags"]) == ("ACTIVE", {"a": "b"}, ["t"])
    assert (shown["description"], shown["config_drive"]) == ("d", "True")
    assert list(shown["addresses"]) == ["private"] and shown["addresses"]["private"][0].startswith("10.98.")
    assert shown["flavor"]["original_name"] == "small" and shown["image"].startswith(IMAGE_NAME)
    assert shown["OS-EXT-SRV-ATTR:host"] is None, "where it is is its administrator's matter"
    shown = admin.json(f"server show {server.id}")
    assert shown["OS-EXT-SRV-ATTR:host"] in ("h1", "h2", "h3") and shown["OS-EXT-SRV-ATTR:user_data"]
    assert "forced_host" in demo.refused(f"{base} --nic none --host h2 two")
    assert "Compute host nowhere could not be found." in admin.refused(f"{base} --nic none --host nowhere two")
    two = make_server.adopt(admin.json(f"{base} --nic none --host h2 two")["id"], "two")
    assert two.wait("ACTIVE")["OS-EXT-SRV-ATTR:host"] == "h2"
    assert admin.json("server show two")["addresses"] == {}
    demo.ok("server set --property c=d --name uno one")
    demo.ok("server unset --property a uno")
    assert demo.json("server show uno -c properties")["properties"] == {"c": "d"}
    demo.ok("server delete --wait uno")
    assert demo.json("server list") == []


def test_lists_are_filtered_and_paged(admin: Openstack, demo: Openstack, make_server: MakeServer) -> None:
    one, two, three = make_server(), make_server(), make_server(host="h2")
    assert [row["Name"] for row in demo.json("server list")] == [two.name, one.name]
    assert [row["Name"] for row in demo.json("server list -n --sort-column Name")] == [one.name, two.name]
    assert [row["Name"] for row in demo.json("server list --limit 1")] == [two.name]
    assert [row["Name"] for row in demo.json(f"server list --limit 1 --marker {two.id}")] == [one.name]
    assert demo.json(f"server list --limit 1 --marker {one.id}") == []
    assert [row["Name"] for row in demo.json(f"server list --name {one.name}$ --status ACTIVE")] == [one.name]
    assert demo.json("server list --status SHUTOFF") == demo.json("server list --flavor medium") == []
    assert {row["ID"] for row in demo.json("server list --flavor small")} == {one.id, two.id}
    assert {row["ID"] for row in demo.json("server list --availability-zone nova")} == {one.id, two.id}
    assert {row["ID"] for row in admin.json("server list --all-projects")} == {one.id, two.id, three.id}
    assert {row["ID"] for row in admin.json("server list --project demo")} == {one.id, two.id}
    assert three.id in {row["ID"] for row in admin.json("server list --all-projects --host h2 --long")}
    assert "get_all_tenants" in demo.refused("server list --all-projects")


def test_power_and_the_console(demo: Openstack, make_server: MakeServer) -> None:
    server = make_server()
    demo.ok(f"server stop {server.name}")
    server.wait("SHUTOFF")
    assert f"Cannot 'stop' instance {server.id} while it is in vm_state stopped" in demo.refused(
        f"server stop {server.name}"
    )
    demo.ok(f"server start {server.name}")
    server.wait("ACTIVE")
    demo.ok(f"server reboot {server.name}")
    server.wait("ACTIVE")
    demo.ok(f"server reboot --hard {server.name}")
    server.wait("ACTIVE")
    console = demo.ok(f"console log show {server.name}")
    assert [line.split("boot=")[1] for line in console.splitlines() if "VERIFY" in line] == ["1", "2", "3", "4"]
    assert console.count("DOWN") == 2, "a stop and a soft reboot ask the guest, a hard reboot does not"
    tail = demo.ok(f"console log show --lines 2 {server.name}")
    assert tail.splitlines() == console.splitlines()[-2:]
    demo.ok(f"server lock --reason moving {server.name}")
    assert f"Instance {server.id} is locked" in demo.refused(f"server stop {server.name}")
    demo.ok(f"server unlock {server.name}")


def test_resize_is_confirmed_or_reverted(demo: Openstack, make_server: MakeServer) -> None:
    server = make_server()
    before = server.host
    demo.ok(f"server resize --flavor medium {server.name}")
    assert server.wait("VERIFY_RESIZE")["flavor"]["original_name"] == "medium"
    assert server.host != before
    demo.ok(f"server resize revert {server.name}")
    assert server.wait("ACTIVE")["flavor"]["original_name"] == "small"
    assert server.host == before
    demo.ok(f"server resize --flavor medium {server.name}")
    server.wait("VERIFY_RESIZE")
    demo.ok(f"server resize confirm {server.name}")
    assert server.wait("ACTIVE")["flavor"]["original_name"] == "medium"
    moves = [(move["migration_type"], move["status"]) for move in server.migrations()]
    assert moves == [("resize", "confirmed"), ("resize", "reverted")]
    actions = [row["Action"] for row in demo.json(f"server event list {server.name}")]
    assert actions == ["confirmResize", "resize", "revertResize", "resize", "create"]


def test_a_migration_to_a_named_host_is_reverted_and_found_again(
    admin: Openstack, demo: Openstack, make_server: MakeServer
) -> None:
    server = make_server(host="h1")
    assert "Cannot migrate to the host where the server exists." in admin.refused(
        f"server migrate --host h1 {server.id}"
    )
    admin.ok(f"server migrate --host h3 {server.id}")
    assert server.wait("VERIFY_RESIZE")["OS-EXT-SRV-ATTR:host"] == "h3"
    assert "vm_state resized" in admin.refused(f"server migrate {server.id}")
    admin.ok(f"server migration revert {server.id}")
    assert server.wait("ACTIVE")["OS-EXT-SRV-ATTR:host"] == "h1"
    admin.ok(f"server migrate {server.id}")
    server.wait("VERIFY_RESIZE")
    admin.ok(f"server migrate confirm {server.id}")
    server.wait("ACTIVE")

    def found(options: str) -> list[str]:
        rows = admin.json(f"server migration list --server {server.id} {options}")
        return [row["Status"] for row in rows]

    assert found("") == found("--type cold-migration") == ["confirmed", "reverted"]
    assert found("--max-items 1") == ["confirmed"]
    assert found("--status reverted") == found("--host h3 --status reverted") == ["reverted"]
    assert found("--type live-migration") == found("--status running") == []
    assert "os-migrations:index" in demo.refused("server migration list")
    newest = admin.json(f"server migration list --server {server.id}")[0]
    assert (
        admin.json(f"server migration list --server {server.id} --limit 1 --marker {newest['UUID']}")[0]["UUID"]
        != (newest["UUID"])
    )


def test_services_and_hypervisors(admin: Openstack, demo: Openstack) -> None:
    def service(host: str) -> tuple[str, str, str | None]:
        rows = admin.json("compute service list --long --service nova-compute")
        (row,) = (row for row in rows if row["Host"] == host)
        return row["Status"], row["State"], row["Disabled Reason"]

    assert service("h3") == ("enabled", "up", None)
    try:
        admin.ok("compute service set --disable --disable-reason maintenance h3 nova-compute")
        assert service("h3") == ("disabled", "up", "maintenance")
        admin.ok("compute service set --enable h3 nova-compute")
        admin.ok("compute service set --down h3 nova-compute")
        assert service("h3") == ("enabled", "down", None)
        assert {row["Hypervisor Hostname"]: row["State"] for row in admin.json("hypervisor list")}["h3"] == "down"
    finally:
        admin.ok("compute service set --up h3 nova-compute")
        admin.ok("compute service set --enable h3 nova-compute")
    assert service("h3") == ("enabled", "up", None)
    assert "not found" in admin.refused("compute service set --disable nowhere nova-compute")
    assert [row["Hypervisor Hostname"] for row in admin.json("hypervisor list --matching h2")] == ["h2"]
    assert "No hypervisor matching 'zz' could be found." in admin.refused("hypervisor list --matching zz")
    shown = admin.json("hypervisor show h1")
    assert (shown["service_host"], shown["host_ip"], shown["state"]) == ("h1", "127.0.0.1", "up")
    stats = admin.json("hypervisor stats show")
    assert (stats["count"], stats["vcpus"], stats["memory_mb"]) == (3, 300, 300_000)
    for line in ("compute service list", "hypervisor list"):
        assert "Policy doesn't allow os_compute_api:os-" in demo.refused(line)


def test_without_a_host_the_server_stays_and_every_refusal_can_be_read(
    clients: Clients, admin: Openstack, make_server: MakeServer
) -> None:
    server = make_server(host="h1")
    admin.ok("flavor create --id huge --ram 100001 --disk 1 --vcpus 1 huge")
    try:
        admin.ok("compute service set --disable", "--disable-reason", "new fans", "h2", "nova-compute")
        Event().wait(FRESH)  # the scheduler's picture of the hosts may be that old
        admin.ok(f"server resize --flavor huge {server.id}")
        wait_for("the resize to fail", lambda: server.migrations()[0]["status"] == "error")
    finally:
        admin.ok("compute service set --enable h2 nova-compute")
        admin.ok("flavor delete huge")
    shown = server.wait("ACTIVE")
    assert (shown["OS-EXT-SRV-ATTR:host"], shown["flavor"]["original_name"]) == ("h1", "small")
    newest = admin.json(f"server event list --long {server.id}")[0]
    assert (newest["Action"], newest["Message"]) == ("resize", "Error")
    (event,) = admin.json(f"server event show {server.id} {newest['Request ID']}")["events"]
    assert event["result"] == "Error"
    for words in ("No valid host was found.", "h2: new fans", "h3: 100001 MiB RAM needed, 99488 MiB free of"):
        assert words in event["details"], event
    told = clients.typed(f"whimbrel show {server.id}")
    assert told.code == 0, told
    assert "new fans" in told.out and "100001 MiB RAM needed" in told.out
