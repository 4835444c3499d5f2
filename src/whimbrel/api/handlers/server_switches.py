"""What is changed about a server in the database alone: its lock, a declared state, metadata and tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Row

from whimbrel.api import quotas
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.schemas.servers import TAG
from whimbrel.domain.errors import Invalid, NotFound
from whimbrel.ops import clock
from whimbrel.store import actions, servers

MAX_TAGS = 50


async def lock(call: Call) -> Reply:
    """Keep everybody but administrators from changing the server."""
    reason = (call.body["lock"] or {}).get("locked_reason") if call.version >= (2, 73) else None
    return await _switch(call, "lock", lambda row: {"locked": True, "locked_reason": reason})


async def unlock(call: Call) -> Reply:
    """Take the lock away."""
    return await _switch(call, "unlock", lambda row: {"locked": False, "locked_reason": None})


async def reset_state(call: Call) -> Reply:
    """Declare a server broken, or whole again.

    States are read from what is written down, so this changes nothing but what an administrator has declared.
    """
    broken = call.body["os-resetState"]["state"] == "error"
    fault = {"code": 500, "created": clock.now(), "message": "Declared by an administrator.", "declared": True}
    return await _switch(call, "resetState", lambda row: {"fault": fault if broken else None})


async def _switch(call: Call, action: str, values: Callable[[Row[Any]], dict[str, Any]]) -> Reply:
    def change(tx: Connection) -> None:
        row = finding.server(tx, call)
        servers.change(tx, row.id, **values(row))
        actions.record(tx, row.id, action, finding.asked(call))

    await call.services.store.write(change)
    return Reply(202)


async def list_metadata(call: Call) -> Reply:
    """Show all metadata of a server."""
    row = await call.services.store.read(finding.server, call)
    return Reply(body={"metadata": row.metadata})


async def show_metadata(call: Call) -> Reply:
    """Show one item of a server's metadata."""
    row = await call.services.store.read(finding.server, call)
    key = call.params["key"]
    _there(key, row.metadata)
    return Reply(body={"meta": {key: row.metadata[key]}})


async def add_metadata(call: Call) -> Reply:
    """Set items, and keep the others."""
    return Reply(body={"metadata": await _metadata(call, lambda old: old | call.body["metadata"])})


async def replace_metadata(call: Call) -> Reply:
    """Set all metadata anew."""
    return Reply(body={"metadata": await _metadata(call, lambda old: dict(call.body["metadata"]))})


async def set_metadata_item(call: Call) -> Reply:
    """Set one item."""
    if list(call.body["meta"]) != [call.params["key"]]:
        raise Invalid("Request body and URI mismatch")
    await _metadata(call, lambda old: old | call.body["meta"])
    return Reply(body={"meta": call.body["meta"]})


async def delete_metadata_item(call: Call) -> Reply:
    """Delete one item."""
    key = call.params["key"]

    def without(old: dict[str, str]) -> dict[str, str]:
        _there(key, old)
        return {name: value for name, value in old.items() if name != key}

    await _metadata(call, without)
    return Reply(204)


async def _metadata(call: Call, new: Callable[[dict[str, str]], dict[str, str]]) -> dict[str, str]:
    def change(tx: Connection) -> dict[str, str]:
        row = finding.unlocked(tx, call).server
        metadata = new(row.metadata)
        quotas.check_metadata(len(metadata))
        servers.change(tx, row.id, metadata=metadata)
        return metadata

    return await call.services.store.write(change)


def _there(key: str, metadata: dict[str, str]) -> None:
    if key not in metadata:
        raise NotFound("Metadata item was not found")


async def list_tags(call: Call) -> Reply:
    """Show a server's tags."""
    row = await call.services.store.read(finding.server, call)
    return Reply(body={"tags": row.tags})


async def check_tag(call: Call) -> Reply:
    """Say whether a server has a tag: 204 or 404."""
    row = await call.services.store.read(finding.server, call)
    if call.params["tag"] not in row.tags:
        raise NotFound(f"Server {row.id} has no tag '{call.params['tag']}'")
    return Reply(204)


async def replace_tags(call: Call) -> Reply:
    """Set all tags anew."""
    return Reply(body={"tags": await _tags(call, lambda old: list(call.body["tags"]))})


async def add_tag(call: Call) -> Reply:
    """Add one tag: 201 when it is new, 204 when it was there."""
    tag = call.params["tag"]
    if len(tag) > TAG["maxLength"] or "," in tag:
        raise Invalid(f"Tag '{tag[:80]}' is invalid: at most {TAG['maxLength']} characters, and no comma.")
    before: list[str] = []

    def add(old: list[str]) -> list[str]:
        before.extend(old)
        return old if tag in old else [*old, tag]

    await _tags(call, add)
    location = f"{call.services.public_url}/compute/v2.1/servers/{call.params['id']}/tags/{quote(tag, safe='')}"
    return Reply(204 if tag in before else 201, headers={"Location": location})


async def delete_tag(call: Call) -> Reply:
    """Delete one tag."""
    tag = call.params["tag"]

    def remove(old: list[str]) -> list[str]:
        if tag not in old:
            raise NotFound(f"Server {call.params['id']} has no tag '{tag}'")
        return [other for other in old if other != tag]

    await _tags(call, remove)
    return Reply(204)


async def delete_tags(call: Call) -> Reply:
    """Delete all tags."""
    await _tags(call, lambda old: [])
    return Reply(204)


async def _tags(call: Call, new: Callable[[list[str]], list[str]]) -> list[str]:
    def change(tx: Connection) -> list[str]:
        row = finding.unlocked(tx, call).server
        tags = new(row.tags)
        if len(tags) > MAX_TAGS:
            raise Invalid(f"The number of tags exceeded the per-server limit {MAX_TAGS}")
        servers.change(tx, row.id, tags=tags)
        return tags

    return await call.services.store.write(change)
