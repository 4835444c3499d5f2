"""What clients ask about the deployment: zones, limits and quotas, and kinds of things that there are none of."""

from __future__ import annotations

from typing import Any

from whimbrel.api import quotas
from whimbrel.api.call import Call, Reply
from whimbrel.api.faults import Gone
from whimbrel.api.handlers import finding
from whimbrel.api.views.servers import ZONE
from whimbrel.domain.errors import Forbidden
from whimbrel.ops import clock
from whimbrel.store import hosts_view, servers

UNLIMITED = -1


async def zones(call: Call) -> Reply:
    """List the one availability zone."""
    return Reply(body={"availabilityZoneInfo": [_zone(None)]})


async def zones_detail(call: Call) -> Reply:
    """List the one availability zone with its hosts."""
    hosts = await call.services.store.read(hosts_view.everything)
    since = finding.heard_since(call.services.settings)
    return Reply(
        body={
            "availabilityZoneInfo": [
                _zone(
                    {
                        host.row.name: {
                            "nova-compute": {
                                "active": host.row.enabled,
                                "available": host.is_up(since),
                                "updated_at": clock.iso_micro(host.row.heard_at),
                            }
                        }
                        for host in hosts
                    }
                )
            ]
        }
    )


def _zone(hosts: dict[str, Any] | None) -> dict[str, Any]:
    return {"zoneName": ZONE, "zoneState": {"available": True}, "hosts": hosts}


async def limits(call: Call) -> Reply:
    """Show what a project may have and what it has."""
    project = call.who.project_id or ""
    named = call.first("tenant_id")
    if named is not None and named != project:
        if not finding.may(call, "os_compute_api:limits:other_project"):
            raise Forbidden("Policy doesn't allow os_compute_api:limits:other_project to be performed.")
        project = named
    used = await call.services.store.read(servers.usage, project)
    absolute = {
        "maxTotalInstances": quotas.INSTANCES,
        "maxTotalCores": quotas.CORES,
        "maxTotalRAMSize": quotas.RAM_MB,
        "maxTotalKeypairs": quotas.KEY_PAIRS,
        "maxServerMeta": quotas.METADATA_ITEMS,
        "maxServerGroups": quotas.SERVER_GROUPS,
        "maxServerGroupMembers": quotas.SERVER_GROUP_MEMBERS,
        "totalInstancesUsed": used.instances,
        "totalCoresUsed": used.cores,
        "totalRAMUsed": used.ram_mb,
        "totalServerGroupsUsed": 0,
    }
    if call.version < (2, 36):
        absolute |= {
            "maxTotalFloatingIps": UNLIMITED,
            "maxSecurityGroups": UNLIMITED,
            "maxSecurityGroupRules": UNLIMITED,
            "totalFloatingIpsUsed": 0,
            "totalSecurityGroupsUsed": 0,
        }
    if call.version < (2, 39):
        absolute["maxImageMeta"] = quotas.METADATA_ITEMS
    if call.version < (2, 57):
        absolute |= {"maxPersonality": 0, "maxPersonalitySize": 0}
    return Reply(body={"limits": {"rate": [], "absolute": absolute}})


def _quota_values(call: Call) -> dict[str, int]:
    values = {
        "instances": quotas.INSTANCES,
        "cores": quotas.CORES,
        "ram": quotas.RAM_MB,
        "key_pairs": quotas.KEY_PAIRS,
        "metadata_items": quotas.METADATA_ITEMS,
        "server_groups": quotas.SERVER_GROUPS,
        "server_group_members": quotas.SERVER_GROUP_MEMBERS,
    }
    if call.version < (2, 36):
        names = ("fixed_ips", "floating_ips", "security_groups", "security_group_rules")
        values |= dict.fromkeys(names, UNLIMITED)
    if call.version < (2, 57):
        values |= dict.fromkeys(("injected_files", "injected_file_content_bytes", "injected_file_path_bytes"), 0)
    return values


async def quota(call: Call) -> Reply:
    """Show a project's quota: the same for every one."""
    _own_project(call)
    return Reply(body={"quota_set": {"id": call.params["id"], **_quota_values(call)}})


async def quota_defaults(call: Call) -> Reply:
    """Show the quota that a new project gets."""
    return Reply(body={"quota_set": {"id": call.params["id"], **_quota_values(call)}})


async def quota_detail(call: Call) -> Reply:
    """Show a project's quota with what is used of it."""
    _own_project(call)
    used = await call.services.store.read(servers.usage, call.params["id"])
    in_use = {"instances": used.instances, "cores": used.cores, "ram": used.ram_mb}
    detail = {
        name: {"limit": value, "in_use": in_use.get(name, 0), "reserved": 0}
        for name, value in _quota_values(call).items()
    }
    return Reply(body={"quota_set": {"id": call.params["id"], **detail}})


def _own_project(call: Call) -> None:
    if not call.who.is_admin and call.params["id"] != call.who.project_id:
        raise Forbidden("Policy doesn't allow os_compute_api:os-quota-sets:show to be performed.")


async def no_aggregates(call: Call) -> Reply:
    """List host aggregates: there are none."""
    return Reply(body={"aggregates": []})


async def no_server_groups(call: Call) -> Reply:
    """List server groups: there are none."""
    return Reply(body={"server_groups": []})


async def no_keypairs(call: Call) -> Reply:
    """List key pairs: there are none."""
    return Reply(body={"keypairs": []})


async def no_extensions(call: Call) -> Reply:
    """List extensions: there are none, everything is part of the API."""
    return Reply(body={"extensions": []})


async def gone(call: Call) -> Reply:
    """Say that OpenStack took this away."""
    raise Gone("This resource is no longer available. No forwarding address is given.")
