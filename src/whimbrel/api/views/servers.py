"""Servers as each microversion shows them: a table of fields, each with the version that brought it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from whimbrel.api.call import Version
from whimbrel.api.views import flavors, links
from whimbrel.api.views.state import State
from whimbrel.ops import clock
from whimbrel.store.servers import Situation

ZONE = "nova"
WITH_PROGRESS = frozenset({"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"})
WITH_FAULT = frozenset({"ERROR", "DELETED"})


@dataclass(frozen=True)
class Shown:
    """A server and all that its view depends on. `brief_addresses` is how old updates are answered."""

    situation: Situation
    state: State
    version: Version
    public_url: str
    admin: bool
    progress: int = 0
    host_status: str = ""
    brief_addresses: bool = False

    @property
    def row(self) -> Any:
        """The server's row."""
        return self.situation.server


@dataclass(frozen=True)
class Field:
    """One field: its name, how to read it, since when, for whom, and where it is left out.

    `extended` fields are missing from the answer to an update before 2.75; `listed` is whether the detailed list
    has it.
    """

    name: str
    read: Callable[[Shown], Any]
    since: Version = (2, 1)
    admin: bool = False
    extended: bool = False
    listed: bool = True


def brief(situation: Situation, public_url: str) -> dict[str, Any]:
    """Return a server as the short list shows it."""
    row = situation.server
    return {"id": row.id, "name": row.name, "links": links.of(public_url, "servers", row.id)}


def whole(shown: Shown, *, listed: bool = False, extended: bool = True) -> dict[str, Any]:
    """Return a server with every field that its version and its reader get."""
    view = {
        field.name: field.read(shown)
        for field in FIELDS
        if shown.version >= field.since
        and (shown.admin or not field.admin)
        and (field.listed or not listed)
        and (extended or not field.extended)
    }
    if extended and (shown.version >= (2, 90) or (shown.admin and shown.version >= (2, 3))):
        view["OS-EXT-SRV-ATTR:hostname"] = shown.row.hostname
    status = shown.state.status
    if status in WITH_PROGRESS:
        view["progress"] = shown.progress
    if status in WITH_FAULT and shown.state.fault is not None:
        view["fault"] = _fault(shown)
    if extended and shown.situation.addresses:
        view["security_groups"] = [{"name": "default"} for _ in _networks(shown)]
    return view


def host_id(project_id: str, host: str | None) -> str:
    """Return the name of a host that a project may see: the same for its servers there, of no meaning to others."""
    return hashlib.sha224(f"{project_id}{host}".encode()).hexdigest() if host else ""


def _fault(shown: Shown) -> dict[str, Any]:
    fault = shown.state.fault or {}
    created = fault.get("created") or shown.row.updated_at
    return {"code": fault.get("code", 500), "message": fault.get("message", ""), "created": clock.iso(created)}


def _networks(shown: Shown) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for port in shown.situation.addresses:
        found.setdefault(port.name, []).append(port)
    return found


def _addresses(shown: Shown) -> dict[str, list[dict[str, Any]]]:
    if shown.brief_addresses:
        return addresses(shown.situation)
    return {name: [_port(port) for port in ports] for name, ports in _networks(shown).items()}


def _port(port: Any) -> dict[str, Any]:
    return {
        "version": 6 if ":" in port.address else 4,
        "addr": port.address,
        "OS-EXT-IPS:type": "fixed",
        "OS-EXT-IPS-MAC:mac_addr": port.mac,
    }


def addresses(situation: Situation) -> dict[str, list[dict[str, Any]]]:
    """Return the addresses by network, in the form of the `ips` resource."""
    found: dict[str, list[dict[str, Any]]] = {}
    for port in situation.addresses:
        found.setdefault(port.name, []).append({"version": 6 if ":" in port.address else 4, "addr": port.address})
    return found


def _image(shown: Shown) -> dict[str, Any] | str:
    image = shown.row.image
    if not image:
        return ""
    view: dict[str, Any] = {"id": image["id"], "links": links.bookmark(shown.public_url, "images", image["id"])}
    if shown.version >= (2, 98):
        view["properties"] = shown.row.image_properties
    return view


def _flavor(shown: Shown) -> dict[str, Any]:
    flavor = shown.row.flavor
    if shown.version >= (2, 47):
        return flavors.inlined(flavor)
    return {"id": flavor["id"], "links": links.bookmark(shown.public_url, "flavors", flavor["id"])}


def zone(row: Row[Any]) -> str:
    """Return the zone that a server is in, or was asked to be in."""
    return ZONE if row.host else row.availability_zone or ""


def _time(seconds: float | None) -> str | None:
    return clock.iso_micro(seconds) if seconds is not None else None


FIELDS: tuple[Field, ...] = (
    Field("id", lambda s: s.row.id),
    Field("name", lambda s: s.row.name),
    Field("status", lambda s: s.state.status),
    Field("tenant_id", lambda s: s.row.project_id),
    Field("user_id", lambda s: s.row.user_id),
    Field("metadata", lambda s: s.row.metadata),
    Field("hostId", lambda s: host_id(s.row.project_id, s.row.host)),
    Field("image", _image),
    Field("flavor", _flavor),
    Field("created", lambda s: clock.iso(s.row.created_at)),
    Field("updated", lambda s: clock.iso(s.row.updated_at)),
    Field("addresses", _addresses),
    Field("accessIPv4", lambda s: s.row.access_ipv4),
    Field("accessIPv6", lambda s: s.row.access_ipv6),
    Field("links", lambda s: links.of(s.public_url, "servers", s.row.id)),
    Field("OS-DCF:diskConfig", lambda s: s.row.disk_config),
    Field("OS-EXT-AZ:availability_zone", lambda s: zone(s.row), extended=True),
    Field("config_drive", lambda s: "True" if s.row.config_drive else "", extended=True),
    Field("key_name", lambda s: s.row.key_name, extended=True),
    Field("OS-SRV-USG:launched_at", lambda s: _time(s.row.launched_at), extended=True),
    Field("OS-SRV-USG:terminated_at", lambda s: _time(s.row.terminated_at), extended=True),
    Field("OS-EXT-STS:task_state", lambda s: s.state.task, extended=True),
    Field("OS-EXT-STS:vm_state", lambda s: s.state.vm, extended=True),
    Field("OS-EXT-STS:power_state", lambda s: s.state.power, extended=True),
    Field("os-extended-volumes:volumes_attached", lambda s: [], extended=True),
    Field("OS-EXT-SRV-ATTR:host", lambda s: s.row.host, admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:hypervisor_hostname", lambda s: s.row.host, admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:instance_name", lambda s: f"instance-{s.row.number:08x}", admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:kernel_id", lambda s: "", (2, 3), admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:ramdisk_id", lambda s: "", (2, 3), admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:launch_index", lambda s: s.row.launch_index, (2, 3), admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:reservation_id", lambda s: s.row.reservation_id, (2, 3), admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:root_device_name", lambda s: "/dev/vda", (2, 3), admin=True, extended=True),
    Field("OS-EXT-SRV-ATTR:user_data", lambda s: s.row.user_data, (2, 3), admin=True, extended=True),
    Field("locked", lambda s: s.row.locked, (2, 9)),
    Field("host_status", lambda s: s.host_status, (2, 16), admin=True, extended=True),
    Field("description", lambda s: s.row.description, (2, 19)),
    Field("tags", lambda s: s.row.tags, (2, 26)),
    Field("trusted_image_certificates", lambda s: None, (2, 63)),
    Field("server_groups", lambda s: [], (2, 71), listed=False),
    Field("locked_reason", lambda s: s.row.locked_reason, (2, 73)),
    Field("pinned_availability_zone", lambda s: s.row.pinned_zone, (2, 96)),
    Field("scheduler_hints", lambda s: s.row.scheduler_hints, (2, 100)),
)
