"""Hosts as OpenStack knows them, compute services and hypervisors, and as Whimbrel shows them itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row

from whimbrel.api.call import Version
from whimbrel.api.views.servers import ZONE
from whimbrel.ops import clock
from whimbrel.store import fencing
from whimbrel.store.claims import capacity_of
from whimbrel.store.hosts_view import HostView

Servers = Mapping[str, Sequence[tuple[str, str]]]
BINARY = "nova-compute"


def service(host: HostView, version: Version, up: bool) -> dict[str, Any]:
    """Return a host's compute service."""
    row = host.row
    view = {
        "binary": BINARY,
        "host": row.name,
        "id": row.service_uuid if version >= (2, 53) else row.number,
        "zone": ZONE,
        "status": "enabled" if row.enabled else "disabled",
        "state": "up" if up else "down",
        "updated_at": clock.iso_micro(row.heard_at),
        "disabled_reason": row.disabled_reason,
    }
    if version >= (2, 11):
        view["forced_down"] = row.forced_down
    return view


def hypervisor_brief(host: HostView, version: Version, up: bool) -> dict[str, Any]:
    """Return a host as the short list of hypervisors shows it."""
    return {
        "id": host.row.hypervisor_uuid if version >= (2, 53) else host.row.number,
        "hypervisor_hostname": host.row.name,
        "state": "up" if up else "down",
        "status": "enabled" if host.row.enabled else "disabled",
    }


def hypervisor(host: HostView, version: Version, up: bool) -> dict[str, Any]:
    """Return a host as a hypervisor, whole; from 2.88 on without what its claims sum up to."""
    row = host.row
    view = hypervisor_brief(host, version, up) | {
        "hypervisor_type": "QEMU" if row.hypervisor == "libvirt" else row.hypervisor,
        "hypervisor_version": row.hypervisor_version,
        "host_ip": row.address,
        "service": {
            "id": row.service_uuid if version >= (2, 53) else row.number,
            "host": row.name,
            "disabled_reason": row.disabled_reason,
        },
    }
    if version >= (2, 88):
        return view | {"uptime": row.uptime or None}
    return view | figures(host) | {"cpu_info": _cpu_info(row.architecture, version)}


def _cpu_info(architecture: str, version: Version) -> dict[str, str] | str:
    info = {"arch": architecture}
    return info if version >= (2, 28) else msgspec.json.encode(info).decode()


def figures(host: HostView) -> dict[str, int]:
    """Return what a host has, what is claimed, and what is left, in GiB and MiB."""
    row, used = host.row, host.claimed
    return {
        "vcpus": row.vcpus,
        "vcpus_used": used.vcpus,
        "memory_mb": row.ram_mb,
        "memory_mb_used": used.ram_mb + row.reserved_ram_mb,
        "free_ram_mb": row.ram_mb - used.ram_mb - row.reserved_ram_mb,
        "local_gb": row.disk_gb,
        "local_gb_used": used.disk_gb + row.reserved_disk_gb,
        "free_disk_gb": row.disk_gb - used.disk_gb - row.reserved_disk_gb,
        "disk_available_least": row.free_disk_gb,
        "running_vms": host.guests,
        "current_workload": 0,
    }


def with_servers(view: dict[str, Any], name: str, servers: Servers, *, always: bool) -> dict[str, Any]:
    """Add the host's servers; without any, the key is there only from 2.75 on (`always`)."""
    here = [{"name": server_name, "uuid": server_id} for server_name, server_id in servers.get(name, ())]
    return view | {"servers": here} if here or always else view


def own(host: HostView, up: bool) -> dict[str, Any]:
    """Return a host as Whimbrel's own API shows it."""
    row = host.row
    limit = capacity_of(row).limit()
    return {
        "name": row.name,
        "address": row.address,
        "state": "up" if up else "down",
        "enabled": row.enabled,
        "disabled_reason": row.disabled_reason,
        "forced_down": row.forced_down,
        "total": {"vcpus": row.vcpus, "ram_mb": row.ram_mb, "disk_gb": row.disk_gb},
        "limit": msgspec.to_builtins(limit),
        "claimed": msgspec.to_builtins(host.claimed),
        "free": {
            "vcpus": limit.vcpus - host.claimed.vcpus,
            "ram_mb": limit.ram_mb - host.claimed.ram_mb,
            "disk_gb": limit.disk_gb - host.claimed.disk_gb,
        },
        "free_disk_gb": row.free_disk_gb,
        "guests": host.guests,
        "architecture": row.architecture,
        "hypervisor": row.hypervisor,
        "heard_at": clock.iso(row.heard_at),
        "boot": row.boot,
        "fenced": _fenced(row),
    }


def _fenced(row: Row[Any]) -> dict[str, str] | None:
    """Return the proof that this host cannot run guests, if one counts."""
    proof = fencing.of_row(row)
    return None if proof is None else {"by": proof.witness, "reason": proof.reason, "at": clock.iso(proof.at)}
