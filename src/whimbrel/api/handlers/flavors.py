"""Flavors: what sizes there are, for whom, and what is said about them beside the sizes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.handlers.server_create import is_true
from whimbrel.api.views import flavors as view
from whimbrel.api.views import links
from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.server import Flavor
from whimbrel.ops import ids
from whimbrel.store import flavors

SORT_KEYS = {
    "flavorid": "id",
    "id": "id",
    "name": "name",
    "memory_mb": "ram_mb",
    "vcpus": "vcpus",
    "root_gb": "disk_gb",
    "ephemeral_gb": "ephemeral_gb",
    "swap": "swap_mb",
    "created_at": "created_at",
}


async def brief(call: Call) -> Reply:
    """List flavors by name."""
    rows, more = await _page(call)
    return _listing(call, [view.brief(row, call.version, call.services.public_url) for row in rows], more)


async def detail(call: Call) -> Reply:
    """List flavors whole."""
    rows, more = await _page(call)
    return _listing(call, [view.whole(row, call.version, call.services.public_url) for row in rows], more)


def _listing(call: Call, items: list[dict[str, Any]], more: bool) -> Reply:
    body: dict[str, Any] = {"flavors": items}
    if more:
        body["flavors_links"] = links.next_page(call.services.public_url, call.path, call.query, items[-1]["id"])
    return Reply(body=body)


async def _page(call: Call) -> tuple[list[dict[str, Any]], bool]:
    limit = parameters.limit(call)
    rows = await call.services.store.read(flavors.everything, public=_public(call), project_id=finding.scope(call))
    rows = [row for row in rows if row.ram_mb >= _number(call, "minRam") and row.disk_gb >= _number(call, "minDisk")]
    key = call.first("sort_key") or "flavorid"
    if key not in SORT_KEYS or call.first("sort_dir") not in (None, "asc", "desc"):
        raise Invalid(
            f"Invalid input for query parameters sort_key. Value: {key}. It must be one of {', '.join(SORT_KEYS)}."
        )
    rows.sort(key=lambda row: getattr(row, SORT_KEYS[key]), reverse=call.first("sort_dir") == "desc")
    marker = call.first("marker")
    if marker is not None:
        behind = [number for number, row in enumerate(rows) if row.id == marker]
        if not behind:
            raise Invalid(f"marker [{marker}] not found")
        rows = rows[behind[0] + 1 :]
    return parameters.cut([flavors.snapshot(row) for row in rows], limit)


def _public(call: Call) -> bool | None:
    """Administrators may ask for public, private or both; everybody else gets what they may use."""
    if not call.who.is_admin:
        return True
    given = call.first("is_public")
    return (
        None if given is not None and given.lower() == "none" else parameters.boolean(call, "is_public", default=True)
    )


def _number(call: Call, name: str) -> int:
    given = call.first(name) or "0"
    if not (given.isascii() and given.isdecimal()):
        raise Invalid(f"Invalid {name} filter [{given}]")
    return int(given[:18])


async def show(call: Call) -> Reply:
    """Show one flavor."""
    row = await call.services.store.read(flavors.find, call.params["id"], finding.scope(call))
    return _one(call, row)


def _one(call: Call, row: Row[Any]) -> Reply:
    return Reply(body={"flavor": view.whole(flavors.snapshot(row), call.version, call.services.public_url)})


async def create(call: Call) -> Reply:
    """Create a flavor."""
    given = call.body["flavor"]
    flavor = Flavor(
        id=str(given["id"]) if given.get("id") is not None else ids.new_uuid(),
        name=given["name"],
        vcpus=int(given["vcpus"]),
        ram_mb=int(given["ram"]),
        disk_gb=int(given["disk"]),
        ephemeral_gb=int(given.get("OS-FLV-EXT-DATA:ephemeral", 0)),
        swap_mb=int(given.get("swap") or 0),
        public=is_true(given.get("os-flavor-access:is_public", True)),
        description=given.get("description"),
    )

    return _one(call, await call.services.store.write(flavors.insert, flavor))


async def update(call: Call) -> Reply:
    """Change a flavor's description."""
    description = call.body["flavor"]["description"]
    row = await call.services.store.write(lambda tx: flavors.change(tx, call.params["id"], description=description))
    return _one(call, row)


async def delete(call: Call) -> Reply:
    """Delete a flavor; servers keep what they took of it."""
    await call.services.store.write(flavors.remove, call.params["id"])
    return Reply(202)


async def list_specs(call: Call) -> Reply:
    """Show a flavor's extra specs."""
    row = await call.services.store.read(flavors.find, call.params["id"], finding.scope(call))
    return Reply(body={"extra_specs": row.extra_specs})


async def show_spec(call: Call) -> Reply:
    """Show one extra spec."""
    row = await call.services.store.read(flavors.find, call.params["id"], finding.scope(call))
    key = call.params["key"]
    if key not in row.extra_specs:
        raise NotFound(f"Flavor {row.id} has no extra specs with key {key}.")
    return Reply(body={key: row.extra_specs[key]})


async def add_specs(call: Call) -> Reply:
    """Set extra specs, and keep the others."""
    new = {key: str(value) for key, value in call.body["extra_specs"].items()}
    await call.services.store.write(_set_specs, call.params["id"], new)
    return Reply(body={"extra_specs": new})


async def set_spec(call: Call) -> Reply:
    """Set one extra spec."""
    key = call.params["key"]
    if list(call.body) != [key]:
        raise Invalid("Request body and URI mismatch")
    new = {key: str(call.body[key])}
    await call.services.store.write(_set_specs, call.params["id"], new)
    return Reply(body=new)


def _set_specs(tx: Connection, flavor_id: str, new: dict[str, str]) -> None:
    row = flavors.find(tx, flavor_id)
    flavors.change(tx, flavor_id, extra_specs={**row.extra_specs, **new})


async def delete_spec(call: Call) -> Reply:
    """Delete one extra spec."""
    key = call.params["key"]

    def remove(tx: Connection) -> None:
        row = flavors.find(tx, call.params["id"])
        if key not in row.extra_specs:
            raise NotFound(f"Flavor {row.id} has no extra specs with key {key}.")
        left = {name: value for name, value in row.extra_specs.items() if name != key}
        flavors.change(tx, row.id, extra_specs=left)

    await call.services.store.write(remove)
    return Reply(200)


async def list_access(call: Call) -> Reply:
    """List the projects that may use a private flavor."""
    row = await call.services.store.read(flavors.find, call.params["id"])
    if row.public:
        raise NotFound("Access list not available for public flavors.")
    return await _access(call)


async def add_access(call: Call) -> Reply:
    """Let a project use a private flavor."""

    def grant(tx: Connection) -> None:
        row = flavors.find(tx, call.params["id"])
        if row.public:
            raise Conflict("Can not add access to a public flavor.")
        flavors.grant(tx, row.id, call.body["addTenantAccess"]["tenant"])

    await call.services.store.write(grant)
    return await _access(call)


async def remove_access(call: Call) -> Reply:
    """Take a private flavor away from a project."""

    def revoke(tx: Connection) -> None:
        flavors.find(tx, call.params["id"])
        flavors.revoke(tx, call.params["id"], call.body["removeTenantAccess"]["tenant"])

    await call.services.store.write(revoke)
    return await _access(call)


async def _access(call: Call) -> Reply:
    flavor_id = call.params["id"]
    projects = await call.services.store.read(flavors.access, flavor_id)
    return Reply(body={"flavor_access": [{"flavor_id": flavor_id, "tenant_id": project} for project in projects]})
