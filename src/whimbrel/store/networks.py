"""Networks, and the ports on them: a server keeps its MAC and address for life, whichever host it runs on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, or_, select

from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.server import Nic
from whimbrel.ops import clock, ids
from whimbrel.store.tables import networks, ports, servers

MAX_LISTED = 10_000
MAC_TRIES = 16
_PORTS_OF = (
    select(ports, networks.c.name, networks.c.cidr, networks.c.gateway, networks.c.mtu)
    .join(networks, networks.c.id == ports.c.network_id)
    .where(ports.c.server_id.in_(bindparam("servers", expanding=True)))
    .order_by(ports.c.id)
)


def create_network(
    tx: Connection, name: str, cidr: str, project_id: str, *, shared: bool = True, mtu: int = 1500
) -> Row[Any]:
    """Add a network whose gateway is its first address; Invalid when the range or the MTU makes no sense."""
    try:
        block = ip_network(cidr)
    except ValueError as error:
        raise Invalid(f"The range of network {name} is wrong: {error}.") from error
    if block.num_addresses < 4:
        raise Invalid(f"The range {cidr} of network {name} has no room for a gateway and a server; give a larger one.")
    if not 576 <= mtu <= 9216:
        raise Invalid(f"The MTU of network {name} must be from 576 to 9216, not {mtu}.")
    values = {"id": ids.new_uuid(), "name": name, "project_id": project_id, "shared": shared, "mtu": mtu}
    added = {**values, "cidr": str(block), "gateway": str(block[1]), "created_at": clock.now()}
    return tx.execute(insert(networks).values(**added).returning(networks)).one()


def list_networks(tx: Connection, project_id: str | None, *, every: bool = False) -> Sequence[Row[Any]]:
    """Return the networks that the project may use (`every`: all there are), the oldest first."""
    query = select(networks).order_by(networks.c.created_at, networks.c.id).limit(MAX_LISTED)
    if not every:
        query = query.where(or_(networks.c.shared, networks.c.project_id == project_id))
    return tx.execute(query).all()


def find_network(tx: Connection, network_id: str, project_id: str | None, *, every: bool = False) -> Row[Any]:
    """Return the network of this id, if the project may use it (`every`: whoever asks); NotFound otherwise."""
    row = tx.execute(select(networks).where(networks.c.id == network_id)).first()
    if row is None or not (every or row.shared or row.project_id == project_id):
        raise NotFound(f"Network {network_id} could not be found.")
    return row


def allocate_port(tx: Connection, network_id: str, server_id: str) -> Row[Any]:
    """Give the server a MAC and the lowest free address of the network; Conflict when no address is free."""
    network = tx.execute(select(networks).where(networks.c.id == network_id).with_for_update()).one()
    taken = set(tx.scalars(select(ports.c.address).where(ports.c.network_id == network_id)))
    values = {
        "id": ids.new_uuid(),
        "network_id": network_id,
        "server_id": server_id,
        "mac": _free_mac(tx),
        "address": _free_address(network, taken),
    }
    return tx.execute(insert(ports).values(**values).returning(ports)).one()


def ports_of(tx: Connection, server_ids: Iterable[str]) -> dict[str, list[Row[Any]]]:
    """Return each server's ports with their network's name, cidr, gateway and mtu; a server without has no key."""
    found: dict[str, list[Row[Any]]] = {}
    for row in tx.execute(_PORTS_OF, {"servers": list(server_ids)}):
        found.setdefault(row.server_id, []).append(row)
    return found


def nic(port: Row[Any]) -> Nic:
    """Return what a host needs to know of a port that `ports_of` found."""
    return Nic(
        mac=port.mac,
        address=port.address,
        prefix=ip_network(port.cidr).prefixlen,
        network=port.name,
        gateway=port.gateway,
        mtu=port.mtu,
    )


def nics_of(tx: Connection, server_id: str) -> tuple[Nic, ...]:
    """Return the server's interfaces in the order in which it sees them."""
    return tuple(nic(port) for port in ports_of(tx, [server_id]).get(server_id, []))


def list_ports(
    tx: Connection, project_id: str | None, *, server_id: str | None = None, network_id: str | None = None
) -> Sequence[Row[Any]]:
    """Return the ports of a project's servers (None: of all) with the servers' project_id and host."""
    query = select(ports, servers.c.project_id, servers.c.host).join(servers, servers.c.id == ports.c.server_id)
    wanted = (
        (servers.c.project_id, project_id),
        (ports.c.server_id, server_id),
        (ports.c.network_id, network_id),
    )
    query = query.where(*(column == value for column, value in wanted if value is not None))
    return tx.execute(query.order_by(ports.c.id).limit(MAX_LISTED)).all()


def free_ports(tx: Connection, server_id: str) -> None:
    """Take the server's ports away; its addresses are free for others."""
    tx.execute(delete(ports).where(ports.c.server_id == server_id))


def _free_mac(tx: Connection) -> str:
    for _ in range(MAC_TRIES):
        mac = ids.new_mac()
        if tx.execute(select(ports.c.id).where(ports.c.mac == mac)).first() is None:
            return mac
    raise Conflict(f"No free MAC address was found in {MAC_TRIES} tries; delete servers that are not needed.")


def _free_address(network: Row[Any], taken: set[str]) -> str:
    """Return the lowest address that is neither taken nor the network's, the gateway's or the broadcast's."""
    block: IPv4Network | IPv6Network = ip_network(network.cidr)
    for address in block.hosts():
        text = str(address)
        if text != network.gateway and text not in taken:
            return text
    raise Conflict(f"No address is free in network {network.name} ({network.cidr}); delete a server or add a network.")
