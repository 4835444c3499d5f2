"""The network service, and what servers are given on a network: one MAC and one address, for life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cloud import Cloud
from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.server import Nic
from whimbrel.ops import ids
from whimbrel.store import networks
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata, servers


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/db.sqlite")
    store.write_now(metadata.create_all)
    yield store
    store.close()


def test_ports_get_the_lowest_free_address(store: Store) -> None:
    network = store.write_now(networks.create_network, "n", "10.0.0.0/29", "p1")

    def take(server: str) -> str:
        return str(store.write_now(networks.allocate_port, network.id, server).address)

    assert [take(f"s{number}") for number in range(5)] == [f"10.0.0.{last}" for last in (2, 3, 4, 5, 6)]
    with pytest.raises(Conflict, match="No address is free in network n"):
        take("s5")
    store.write_now(networks.free_ports, "s1")
    assert take("s5") == "10.0.0.3"
    assert store.read_now(networks.ports_of, ["s0", "s1"]).keys() == {"s0"}


def test_a_port_is_what_a_host_needs_to_know(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    network = store.write_now(networks.create_network, "n", "10.0.0.0/24", "p1", mtu=1400)
    macs = iter(["fa:16:3e:00:00:01", "fa:16:3e:00:00:01", "fa:16:3e:00:00:02"])
    monkeypatch.setattr(ids, "new_mac", lambda: next(macs))
    for server in ("s0", "s1"):
        store.write_now(networks.allocate_port, network.id, server)
    nic = Nic("fa:16:3e:00:00:02", "10.0.0.3", 24, "n", "10.0.0.1", 1400)
    assert store.read_now(networks.nics_of, "s1") == (nic,)
    assert store.read_now(networks.nics_of, "s2") == ()


def test_macs_are_in_openstacks_range() -> None:
    macs = {ids.new_mac() for _ in range(50)}
    assert len(macs) > 40
    assert all(len(mac) == 17 and mac.startswith("fa:16:3e:") for mac in macs)


@pytest.mark.parametrize(
    ("cidr", "mtu"), [("10.0.0.1/24", 1500), ("10.0.0.0/31", 1500), ("x", 1500), ("10.0.0.0/24", 9)]
)
def test_a_network_that_makes_no_sense_is_refused(store: Store, cidr: str, mtu: int) -> None:
    with pytest.raises(Invalid, match="of network n"):
        store.write_now(networks.create_network, "n", cidr, "p1", mtu=mtu)


def test_a_network_that_is_not_shared_is_its_projects(store: Store) -> None:
    network = store.write_now(networks.create_network, "n", "10.0.0.0/24", "p1", shared=False)
    assert store.read_now(networks.find_network, network.id, "p1").id == network.id
    assert store.read_now(lambda tx: networks.list_networks(tx, "p2")) == []
    assert len(store.read_now(lambda tx: networks.list_networks(tx, None, every=True))) == 1
    with pytest.raises(NotFound):
        store.read_now(networks.find_network, network.id, "p2")


def _server(tx: Any, project_id: str) -> str:
    """Write as much of a server as its port needs."""
    server_id = ids.new_uuid()
    row = {"id": server_id, "name": "vm", "project_id": project_id, "user_id": "u", "reservation_id": "r"}
    tx.execute(servers.insert().values(**row, flavor={}, created_at=0.0, updated_at=0.0, host="h1"))
    return server_id


@pytest.mark.anyio
async def test_clients_find_the_network(cloud: Cloud) -> None:
    alice = cloud.token("alice")

    async def get(path: str, status: int = 200) -> Any:
        answer = await cloud.http.get(f"/network/v2.0/{path}", headers=alice)
        assert answer.status_code == status, answer.text
        return answer.json()

    (network,) = (await get("networks?name=private"))["networks"]
    assert (network["name"], network["shared"], network["mtu"]) == ("private", True, 1500)
    assert (await get(f"networks/{network['id']}"))["network"] == network
    assert (await get("networks?name=other"))["networks"] == []
    assert (await get("networks?shared=True&fields=id"))["networks"] == [{"id": network["id"]}]
    assert (await get("networks/private", 404))["NeutronError"]["type"] == "NotFound"
    (subnet,) = (await get(f"subnets?network_id={network['id']}"))["subnets"]
    assert network["subnets"] == [subnet["id"]]
    assert (subnet["cidr"], subnet["gateway_ip"]) == ("10.99.0.0/29", "10.99.0.1")
    assert subnet["allocation_pools"] == [{"start": "10.99.0.2", "end": "10.99.0.6"}]
    (group,) = (await get("security-groups?name=default&fields=id"))["security_groups"]
    assert (await get(f"security-groups/{group['id']}"))["security_group"]["name"] == "default"
    assert (await get("floatingips?port_id=x"), await get("extensions")) == ({"floatingips": []}, {"extensions": []})
    await get("extensions/Availability%20Zone", 404)
    assert (await cloud.http.get("/network/")).json()["versions"][0]["id"] == "v2.0"


@pytest.mark.anyio
async def test_ports_are_seen_by_their_project(cloud: Cloud) -> None:
    store = cloud.services.store
    (network,) = store.read_now(lambda tx: networks.list_networks(tx, None))
    server_id = store.write_now(_server, cloud.caller("alice").project_id or "")
    port = store.write_now(networks.allocate_port, network.id, server_id)
    for who, count, host in (("alice", 1, None), ("bob", 0, None), ("admin", 1, "h1")):
        answer = await cloud.http.get(f"/network/v2.0/ports?device_id={server_id}", headers=cloud.token(who))
        ports = answer.json()["ports"]
        assert len(ports) == count
        assert all(one["binding:host_id"] == host and one["mac_address"] == port.mac for one in ports)
        answer = await cloud.http.get(f"/network/v2.0/ports/{port.id}", headers=cloud.token(who))
        assert answer.status_code == (200 if count else 404)
