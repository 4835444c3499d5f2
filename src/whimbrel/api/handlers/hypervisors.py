"""Hypervisors: hosts as OpenStack's administrators look at their capacity, in the forms of all microversions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.handlers.services import UUID
from whimbrel.api.views import hosts as view
from whimbrel.api.views import links
from whimbrel.domain.errors import Invalid, NotFound
from whimbrel.store import hosts_view
from whimbrel.store.hosts_view import HostView

KNOWN = frozenset({"limit", "marker", "hypervisor_hostname_pattern", "with_servers"})


async def brief(call: Call) -> Reply:
    """List hypervisors by name."""
    return await _listing(call, detail=False)


async def detail(call: Call) -> Reply:
    """List hypervisors whole."""
    return await _listing(call, detail=True)


async def _listing(call: Call, *, detail: bool) -> Reply:
    hosts, servers = await call.services.store.read(_load)
    more = False
    if call.version >= (2, 33):
        hosts, more = _page(call, hosts)
    items = [_shown(call, host, servers, whole=detail) for host in hosts]
    body: dict[str, Any] = {"hypervisors": items}
    if more:
        marker = str(items[-1]["id"])
        body["hypervisors_links"] = links.next_page(call.services.public_url, call.path, call.query, marker)
    return Reply(body=body)


def _load(tx: Connection) -> tuple[list[HostView], view.Servers]:
    return hosts_view.everything(tx), hosts_view.servers_by_host(tx)


def _page(call: Call, hosts: list[HostView]) -> tuple[list[HostView], bool]:
    """Apply the parameters that came with 2.33 and 2.53."""
    limit, marker = parameters.limit(call), call.first("marker")
    pattern = call.first("hypervisor_hostname_pattern") if call.version >= (2, 53) else None
    if call.version >= (2, 75):
        parameters.refuse_unknown(call, KNOWN)
    if pattern is not None:
        if marker is not None or "limit" in call.query:
            raise Invalid(
                "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported."
            )
        hosts = [host for host in hosts if pattern in host.row.name]
        if not hosts:
            raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
    if marker is not None:
        places = [number for number, host in enumerate(hosts) if marker == _id(call, host)]
        if not places:
            raise Invalid(f"Marker {marker} could not be found.")
        hosts = hosts[places[0] + 1 :]
    return parameters.cut(hosts, limit)


def _id(call: Call, host: HostView) -> str:
    return host.row.hypervisor_uuid if call.version >= (2, 53) else str(host.row.number)


def _shown(call: Call, host: HostView, servers: view.Servers, *, whole: bool) -> dict[str, Any]:
    up = host.is_up(finding.heard_since(call.services.settings))
    item = (view.hypervisor if whole else view.hypervisor_brief)(host, call.version, up)
    if call.version >= (2, 53) and parameters.boolean(call, "with_servers", default=False):
        return view.with_servers(item, host.row.name, servers, always=call.version >= (2, 75))
    return item


async def show(call: Call) -> Reply:
    """Show one hypervisor."""
    hosts, servers = await call.services.store.read(_load)
    return Reply(body={"hypervisor": _shown(call, _find(call, hosts), servers, whole=True)})


def _find(call: Call, hosts: list[HostView]) -> HostView:
    wanted = call.params["id"]
    if call.version >= (2, 53) and not UUID.fullmatch(wanted):
        raise Invalid(f"Invalid uuid {wanted}")
    for host in hosts:
        if _id(call, host) == wanted:
            return host
    raise NotFound(f"Hypervisor with ID '{wanted}' could not be found.")


async def uptime(call: Call) -> Reply:
    """Show how long a host has been up, in the words of its `uptime` command."""
    host = _find(call, await call.services.store.read(hosts_view.everything))
    up = host.is_up(finding.heard_since(call.services.settings))
    if not up:
        raise Invalid(f"Host {host.row.name} is down; its uptime is not known.")
    return Reply(body={"hypervisor": {**view.hypervisor_brief(host, call.version, up), "uptime": host.row.uptime}})


async def search(call: Call) -> Reply:
    """List hypervisors whose name holds a word; this path ended with 2.53."""
    hosts = _named(call, await call.services.store.read(hosts_view.everything))
    return Reply(body={"hypervisors": [_shown(call, host, {}, whole=False) for host in hosts]})


async def servers(call: Call) -> Reply:
    """List hypervisors whose name holds a word, with their servers; this path ended with 2.53."""
    hosts, here = await call.services.store.read(_load)
    items = [
        view.with_servers(_shown(call, host, {}, whole=False), host.row.name, here, always=False)
        for host in _named(call, hosts)
    ]
    return Reply(body={"hypervisors": items})


def _named(call: Call, hosts: list[HostView]) -> list[HostView]:
    found = [host for host in hosts if call.params["id"] in host.row.name]
    if not found:
        raise NotFound(f"No hypervisor matching '{call.params['id']}' could be found.")
    return found


async def statistics(call: Call) -> Reply:
    """Sum up all hosts that are switched on; ended with 2.88."""
    hosts = [host for host in await call.services.store.read(hosts_view.everything) if host.row.enabled]
    total: dict[str, int] = {"count": len(hosts)}
    names = (
        "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used",
        "free_disk_gb", "disk_available_least", "running_vms", "current_workload",
    )  # fmt: skip
    each = [view.figures(host) for host in hosts]
    total |= {name: sum(row[name] for row in each) for name in names}
    return Reply(body={"hypervisor_statistics": total})
