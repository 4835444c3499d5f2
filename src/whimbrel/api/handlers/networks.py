"""The network service, as far as clients of the compute API look into it: it reads, and makes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.views import networks as view
from whimbrel.domain.errors import NotFound
from whimbrel.store import networks as store

NOT_FILTERS = ("fields", "limit", "marker", "sort_key", "sort_dir", "page_reverse")


async def versions(call: Call) -> Reply:
    """List the network API's versions."""
    return Reply(body={"versions": [view.version(call.services.public_url)]})


async def resources(call: Call) -> Reply:
    """List what v2.0 has."""
    base = f"{call.services.public_url}/network/v2.0"
    names = ("networks", "subnets", "ports", "security-groups")
    shown = [{"name": name, "collection": name, "links": [{"rel": "self", "href": f"{base}/{name}"}]} for name in names]
    return Reply(body={"resources": shown})


async def list_networks(call: Call) -> Reply:
    """List the networks that the caller may use."""
    return _listing(call, "networks", [view.network(row) for row in await _networks(call)])


async def show_network(call: Call) -> Reply:
    """Show one network by its id."""
    who = call.who
    row = await call.services.store.read(store.find_network, call.params["id"], who.project_id, every=who.is_admin)
    return Reply(body={"network": view.only(view.network(row), _fields(call))})


async def list_subnets(call: Call) -> Reply:
    """List the address ranges of the networks that the caller may use."""
    return _listing(call, "subnets", [view.subnet(row) for row in await _networks(call)])


async def show_subnet(call: Call) -> Reply:
    """Show one address range by its id."""
    return _one(call, "subnet", [view.subnet(row) for row in await _networks(call)])


async def list_ports(call: Call) -> Reply:
    """List the ports of the caller's servers, or of all servers for an administrator."""
    return _listing(call, "ports", await _ports(call))


async def show_port(call: Call) -> Reply:
    """Show one port by its id."""
    return _one(call, "port", await _ports(call))


async def list_security_groups(call: Call) -> Reply:
    """List the one security group of the caller's project."""
    return _listing(call, "security_groups", _groups(call))


async def show_security_group(call: Call) -> Reply:
    """Show the one security group by its id."""
    return _one(call, "security_group", _groups(call))


async def list_nothing(call: Call) -> Reply:
    """List what there is none of: floating IPs, extensions."""
    return Reply(body={call.path.rsplit("/", 1)[-1]: []})


async def show_extension(call: Call) -> Reply:
    """Say that there is no such extension."""
    raise NotFound(f"Extension with alias {call.params['alias']} does not exist.")


async def show_quota(call: Call) -> Reply:
    """Show the limits: the same for every project."""
    return Reply(body={"quota": view.quota()})


async def _networks(call: Call) -> Sequence[Row[Any]]:
    who = call.who
    return await call.services.store.read(store.list_networks, who.project_id, every=who.is_admin)


async def _ports(call: Call) -> list[dict[str, Any]]:
    who = call.who
    rows = await call.services.store.read(
        store.list_ports,
        None if who.is_admin else who.project_id or "",
        server_id=call.first("device_id"),
        network_id=call.first("network_id"),
    )
    return [view.port(row, host_too=who.is_admin) for row in rows]


def _groups(call: Call) -> list[dict[str, Any]]:
    project_id = (call.who.is_admin and call.first("project_id")) or call.who.project_id
    return [view.security_group(project_id)] if project_id else []


def _listing(call: Call, noun: str, items: list[dict[str, Any]]) -> Reply:
    """Filter by every parameter that is a field of the items, then page; what no item has is no filter."""
    for name, wanted in call.query.items():
        if name not in NOT_FILTERS:
            items = [item for item in items if name not in item or _text(item[name]) in map(str.lower, wanted)]
    items = parameters.asked_page(call, items)
    return Reply(body={noun: [view.only(item, _fields(call)) for item in items]})


def _one(call: Call, noun: str, items: list[dict[str, Any]]) -> Reply:
    for item in items:
        if item["id"] == call.params["id"]:
            return Reply(body={noun: view.only(item, _fields(call))})
    raise NotFound(f"{noun.replace('_', ' ').capitalize()} {call.params['id']} could not be found.")


def _fields(call: Call) -> Sequence[str]:
    return call.query.get("fields", ())


def _text(value: Any) -> str:
    return str(value).lower()
