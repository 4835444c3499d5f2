"""One server: shown, renamed, deleted, and its addresses."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.handlers.server_create import canonical
from whimbrel.api.views import servers as view
from whimbrel.api.views import state
from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.store import actions, migrations, servers
from whimbrel.store.migrations import Begun
from whimbrel.store.servers import Situation

CHANGEABLE = {
    "name": "name",
    "accessIPv4": "access_ipv4",
    "accessIPv6": "access_ipv6",
    "OS-DCF:diskConfig": "disk_config",
    "description": "description",
    "hostname": "hostname",
}


async def show(call: Call) -> Reply:
    """Show one server, whole."""
    situation, hosts = await call.services.store.read(_load, call)
    return finding.whole(call, situation, hosts)


def _load(tx: Connection, call: Call) -> tuple[Situation, dict[str, Row[Any]]]:
    return servers.situation(tx, finding.server(tx, call)), finding.hosts_for_view(tx, call)


async def update(call: Call) -> Reply:
    """Rename a server, or change its description or access addresses."""
    given = call.body["server"]
    values = {column: given[name] for name, column in CHANGEABLE.items() if name in given}
    if values.get("access_ipv6"):
        values["access_ipv6"] = canonical(values["access_ipv6"])

    def change(tx: Connection) -> tuple[Situation, dict[str, Row[Any]]]:
        servers.change(tx, finding.server(tx, call).id, **values)
        return _load(tx, call)

    situation, hosts = await call.services.store.write(change)
    if call.version >= (2, 75):
        return finding.whole(call, situation, hosts)
    shown = finding.show(call, situation, hosts, brief_addresses=True)
    return Reply(body={"server": view.whole(shown, extended=False)})


async def delete(call: Call) -> Reply:
    """Delete a server, whatever is being done with it."""
    begun = await call.services.store.write(_delete, call)
    await call.services.publish(begun.outbox)
    return Reply(204)


def _delete(tx: Connection, call: Call) -> Begun:
    row = finding.server(tx, call)
    if row.locked and not call.who.is_admin:
        raise Conflict(f"Instance {row.id} is locked")
    who = finding.asked(call)
    begun = migrations.request_delete(
        tx, row.id, request_id=who.request_id, user_id=who.user_id, project_id=who.project_id
    )
    if begun.outbox:
        actions.record(tx, row.id, "delete", who, migration_id=begun.migration_id, segment=begun.segment)
    return begun


async def force_delete(call: Call) -> Reply:
    """Delete a server; there is no other way than at once."""
    await delete(call)
    return Reply(202)


async def restore(call: Call) -> Reply:
    """Refuse: a deleted server is gone, and one that is there needs no restoring."""
    situation, _ = await call.services.store.read(_load, call)
    known = state.derive(situation)
    raise Conflict(f"Cannot 'restore' instance {situation.server.id} while it is in vm_state {known.vm}")


async def list_addresses(call: Call) -> Reply:
    """List a server's addresses by network."""
    situation, _ = await call.services.store.read(_load, call)
    return Reply(body={"addresses": view.addresses(situation)})


async def show_addresses(call: Call) -> Reply:
    """List a server's addresses in one network."""
    situation, _ = await call.services.store.read(_load, call)
    network = call.params["network"]
    found = view.addresses(situation)
    if network not in found:
        raise NotFound(f"Instance is not a member of network {network}.")
    return Reply(body={network: found[network]})


async def list_security_groups(call: Call) -> Reply:
    """List a server's security groups: the one that every port has."""
    situation, _ = await call.services.store.read(_load, call)
    row = situation.server
    group = {
        "id": row.project_id,
        "name": "default",
        "description": "Default security group",
        "tenant_id": row.project_id,
        "rules": [],
    }
    return Reply(body={"security_groups": [group] if situation.addresses else []})
