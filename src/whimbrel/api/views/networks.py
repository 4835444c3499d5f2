"""Networks as Neutron shows them. A subnet is its network's address range; security groups are one that allows all."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from sqlalchemy import Row

from whimbrel.ops import clock


def version(public_url: str) -> dict[str, Any]:
    """Describe v2.0, the one version."""
    return {
        "id": "v2.0",
        "status": "CURRENT",
        "links": [{"rel": "self", "href": f"{public_url}/network/v2.0/"}],
    }


def network(row: Row[Any]) -> dict[str, Any]:
    """Show a network."""
    created = clock.iso(row.created_at)
    return {
        "id": row.id,
        "name": row.name,
        "description": "",
        "status": "ACTIVE",
        "admin_state_up": True,
        "shared": row.shared,
        "router:external": False,
        "is_default": False,
        "port_security_enabled": False,
        "mtu": row.mtu,
        "subnets": [_subnet_id(row.id)],
        "availability_zones": [],
        "tags": [],
        "tenant_id": row.project_id,
        "project_id": row.project_id,
        "created_at": created,
        "updated_at": created,
    }


def subnet(row: Row[Any]) -> dict[str, Any]:
    """Show the one subnet of a network."""
    block = ip_network(row.cidr)
    last = block[-2] if block.version == 4 else block[-1]
    return {
        "id": _subnet_id(row.id),
        "name": row.name,
        "description": "",
        "network_id": row.id,
        "ip_version": block.version,
        "cidr": row.cidr,
        "gateway_ip": row.gateway,
        "enable_dhcp": False,
        "allocation_pools": [{"start": str(block[2]), "end": str(last)}],
        "dns_nameservers": [],
        "host_routes": [],
        "tags": [],
        "tenant_id": row.project_id,
        "project_id": row.project_id,
    }


def port(row: Row[Any], *, host_too: bool) -> dict[str, Any]:
    """Show a server's port; where the server runs is for administrators only."""
    return {
        "id": row.id,
        "name": "",
        "network_id": row.network_id,
        "device_id": row.server_id,
        "device_owner": "compute:nova",
        "mac_address": row.mac,
        "fixed_ips": [{"subnet_id": _subnet_id(row.network_id), "ip_address": row.address}],
        "status": "ACTIVE",
        "admin_state_up": True,
        "port_security_enabled": False,
        "security_groups": [],
        "binding:host_id": row.host if host_too else None,
        "tags": [],
        "tenant_id": row.project_id,
        "project_id": row.project_id,
    }


def security_group(project_id: str) -> dict[str, Any]:
    """Show the project's one group, which every server is in and which allows all."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"security-group:{project_id}")),
        "name": "default",
        "description": "Allows everything; what passes is decided on the hosts' network",
        "security_group_rules": [],
        "stateful": True,
        "shared": False,
        "tags": [],
        "tenant_id": project_id,
        "project_id": project_id,
    }


def quota() -> dict[str, int]:
    """Show that networks, subnets and ports are not limited, and that the rest cannot be made."""
    unlimited = dict.fromkeys(("network", "subnet", "port"), -1)
    return unlimited | dict.fromkeys(("router", "floatingip", "security_group", "security_group_rule"), 0)


def only(item: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Leave only the fields that were asked for, all of them when none was."""
    return {name: item[name] for name in fields if name in item} if fields else item


def _subnet_id(network_id: str) -> str:
    return str(uuid.uuid5(uuid.UUID(network_id), "subnet"))
