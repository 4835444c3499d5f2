"""Lists of servers: which filters there are, for whom, and pages of what they leave."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.views import links, state
from whimbrel.api.views import servers as view
from whimbrel.domain.errors import Forbidden, Invalid
from whimbrel.store import servers
from whimbrel.store.servers import Search, Situation

BATCH = 1000
"""How many rows are looked at in one go where a filter is on what is derived."""

FOR_ALL = frozenset({
    "limit", "marker", "sort_key", "sort_dir", "all_tenants", "name", "display_name", "status", "image", "flavor",
    "ip", "ip6", "reservation_id", "changes-since", "changes-before", "tags", "tags-any", "not-tags", "not-tags-any",
    "locked", "availability_zone", "config_drive", "key_name", "power_state", "vm_state", "task_state", "user_id",
    "uuid", "description", "created_at", "launched_at", "terminated_at", "progress",
})  # fmt: skip
FOR_ADMIN = frozenset({
    "host", "node", "deleted", "project_id", "tenant_id", "hostname", "kernel_id", "ramdisk_id", "soft_deleted",
    "launch_index", "root_device_name", "access_ip_v4", "access_ip_v6", "locked_by", "instance_type_id",
    "image_ref", "block_device_mapping", "services", "metadata", "system_metadata", "root_gb", "ephemeral_gb",
    "memory_mb", "vcpus", "cell_name", "default_ephemeral_device", "default_swap_device", "disable_terminate",
    "shutdown_terminate", "cleaned", "fault", "flavor_id", "info_cache", "internal_id", "auto_disk_config",
})  # fmt: skip

DERIVED = frozenset({
    "status", "vm_state", "task_state", "power_state", "availability_zone", "tags", "tags-any", "not-tags",
    "not-tags-any",
})  # fmt: skip
EQUAL = {"reservation_id": "reservation_id", "uuid": "id", "key_name": "key_name", "user_id": "user_id"}
EQUAL_FOR_ADMIN = {"host": "host", "node": "host", "hostname": "hostname"}


async def brief(call: Call) -> Reply:
    """List servers by name."""
    found, more = await call.services.store.read(_page, call, detail=False)
    return _reply(call, [view.brief(each, call.services.public_url) for each in found], more)


async def detail(call: Call) -> Reply:
    """List servers whole."""
    found, more = await call.services.store.read(_page, call, detail=True)
    hosts = await call.services.store.read(finding.hosts_for_view, call)
    return _reply(call, [view.whole(finding.show(call, each, hosts), listed=True) for each in found], more)


def _reply(call: Call, items: list[dict[str, Any]], more: bool) -> Reply:
    body: dict[str, Any] = {"servers": items}
    if more:
        body["servers_links"] = links.next_page(call.services.public_url, call.path, call.query, items[-1]["id"])
    return Reply(body=body)


def _page(tx: Connection, call: Call, *, detail: bool) -> tuple[list[Situation], bool]:
    """Return a page of servers and whether there are more behind it."""
    if call.version >= (2, 75):
        parameters.refuse_unknown(call, FOR_ALL | FOR_ADMIN)
    limit = parameters.limit(call)
    search = _search(call, "detail" if detail else "index")
    after = _marker(tx, call)
    if not _derived_filters(call):
        rows, more = parameters.cut(servers.page(tx, search, after, limit + 1), limit)
        return (servers.situations(tx, rows) if detail else [Situation(row, None, {}) for row in rows]), more
    found: list[Situation] = []
    while len(found) <= limit:
        rows = servers.page(tx, search, after, BATCH)
        found += [each for each in servers.situations(tx, rows) if _wanted(call, each)]
        if len(rows) < BATCH:
            break
        after = rows[-1]
    return parameters.cut(found, limit)


def _search(call: Call, rule: str) -> Search:
    admin = call.who.is_admin
    since, before = parameters.span(call)
    equal: dict[str, Any] = {column: call.first(name) for name, column in EQUAL.items() if name in call.query}
    if admin:
        equal |= {column: call.first(name) for name, column in EQUAL_FOR_ADMIN.items() if name in call.query}
    if "locked" in call.query and call.version >= (2, 73):
        equal["locked"] = parameters.boolean(call, "locked")
    if "config_drive" in call.query and (admin or call.version >= (2, 83)):
        equal["config_drive"] = parameters.boolean(call, "config_drive")
    return Search(
        project_id=_project(call, rule),
        equal=equal,
        name_pattern=parameters.pattern(call, "name") or parameters.pattern(call, "display_name"),
        address_pattern=parameters.pattern(call, "ip") or parameters.pattern(call, "ip6"),
        flavor_id=call.first("flavor"),
        image_id=call.first("image"),
        changed_since=since,
        changed_before=before,
        deleted=_deleted(call, since),
        sort=_sort(call),
    )


def _project(call: Call, rule: str) -> str | None:
    """Return the one project whose servers are listed, None for all of them."""
    every = parameters.boolean(call, "all_tenants", default=False)
    if every and not finding.may(call, f"os_compute_api:servers:{rule}:get_all_tenants"):
        raise Forbidden(f"Policy doesn't allow os_compute_api:servers:{rule}:get_all_tenants to be performed.")
    named = call.first("project_id") or call.first("tenant_id")
    return named if every else call.who.project_id or "-"


def _deleted(call: Call, since: float | None) -> bool | None:
    """Return whether deleted servers are wanted: None for both kinds."""
    if call.who.is_admin and "deleted" in call.query:
        given = parameters.boolean(call, "deleted")
        return given or (None if since is not None else False)
    if call.first("status") is not None and str(call.first("status")).upper() == "DELETED":
        if not call.who.is_admin:
            raise Forbidden("Only administrators may list deleted instances")
        return True
    return None if since is not None else False


def _sort(call: Call) -> servers.Sort:
    keys = call.query.get("sort_key") or ("created_at",)
    directions = list(call.query.get("sort_dir") or ())
    if any(way not in ("asc", "desc") for way in directions):
        raise Invalid("Invalid input for query parameters sort_dir. It must be asc or desc.")
    default = directions[0] if directions else "desc"
    directions += [default] * (len(keys) - len(directions))
    return tuple(
        (key, way == "desc") for key, way in zip(keys[:4], directions, strict=False) if key in servers.SORT_KEYS
    ) or (("created_at", True),)


def _marker(tx: Connection, call: Call) -> Row[Any] | None:
    marker = call.first("marker")
    if marker is None:
        return None
    row = servers.find(tx, marker, finding.scope(call), deleted=True)
    if row is None:
        raise Invalid(f"marker [{marker}] not found")
    return row


def _derived_filters(call: Call) -> bool:
    return not DERIVED.isdisjoint(call.query)


def _wanted(call: Call, each: Situation) -> bool:
    """Apply the filters on what is derived or lies in JSON."""
    known = state.derive(each)
    if "status" in call.query and known.status not in {word.upper() for word in call.query["status"]}:
        return False
    if "availability_zone" in call.query and view.zone(each.server) not in call.query["availability_zone"]:
        return False
    if call.who.is_admin or call.version >= (2, 83):
        for name, value in (("vm_state", known.vm), ("task_state", known.task), ("power_state", str(known.power))):
            if name in call.query and value not in call.query[name]:
                return False
    tags = set(each.server.tags)
    asked = {name: set((call.first(name) or "").split(",")) for name in call.query if "tags" in name}
    return not (
        not asked.get("tags", set()) <= tags
        or ("tags-any" in asked and not asked["tags-any"] & tags)
        or ("not-tags" in asked and asked["not-tags"] <= tags)
        or ("not-tags-any" in asked and asked["not-tags-any"] & tags)
    )
