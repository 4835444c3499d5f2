"""How handlers find what a path names, and show servers: with the caller's project as the bound of what exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api.call import Call, Reply
from whimbrel.api.views import servers as view
from whimbrel.api.views import state
from whimbrel.api.views.servers import Shown
from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.identity import policy
from whimbrel.ops import clock
from whimbrel.ops.settings import Settings
from whimbrel.store import hosts_view, servers
from whimbrel.store.actions import Asked
from whimbrel.store.servers import Situation


def scope(call: Call) -> str | None:
    """Return the project that the caller is bound to: None for an administrator, who sees all."""
    return None if call.who.is_admin else call.who.project_id or "-"


def may(call: Call, rule: str) -> bool:
    """Return whether the policy lets the caller do this in the caller's own project."""
    return policy.allowed(rule, call.who, {"project_id": call.who.project_id, "user_id": call.who.user_id})


def asked(call: Call) -> Asked:
    """Return who asks, for the record of actions."""
    return Asked(call.request_id, call.who.user_id, call.who.project_id or "")


def server(tx: Connection, call: Call, *, deleted: bool = False) -> Row[Any]:
    """Return the server that the path names; NotFound when the caller's project has none such."""
    wanted = call.params["id"]
    row = servers.find(tx, wanted, scope(call), deleted=deleted)
    if row is None:
        raise NotFound(f"Instance {wanted} could not be found.")
    return row


async def subject(call: Call) -> None:
    """Raise NotFound when the caller's project has no server such as the path names."""
    await call.services.store.read(server, call, deleted=True)


def unlocked(tx: Connection, call: Call) -> Situation:
    """Return the server of the path with its situation; Conflict when it is locked and the caller is no admin."""
    row = server(tx, call)
    if row.locked and not call.who.is_admin:
        raise Conflict(f"Instance {row.id} is locked")
    return servers.situation(tx, row)


def heard_since(settings: Settings) -> float:
    """Return since when a host must have been heard of to count as up."""
    return clock.now() - settings.conductor.service_down_after


def show(call: Call, situation: Situation, hosts: Mapping[str, Row[Any]], *, brief_addresses: bool = False) -> Shown:
    """Put together what a view of one server needs."""
    return Shown(
        situation=situation,
        state=state.derive(situation),
        version=call.version,
        public_url=call.services.public_url,
        admin=may(call, "os_compute_api:os-extended-server-attributes"),
        progress=_progress(call, situation),
        host_status=_host_status(call, hosts.get(situation.server.host)),
        brief_addresses=brief_addresses,
    )


def hosts_for_view(tx: Connection, call: Call) -> dict[str, Row[Any]]:
    """Return the hosts by name if the view will tell their state to this caller."""
    return hosts_view.rows(tx) if call.version >= (2, 16) and call.who.is_admin else {}


def whole(call: Call, situation: Situation, hosts: Mapping[str, Row[Any]]) -> Reply:
    """Answer with one server, whole."""
    return Reply(body={"server": view.whole(show(call, situation, hosts))})


def _progress(call: Call, situation: Situation) -> int:
    migration = situation.migration
    if migration is None or migration.window_open:
        return 0
    word = call.services.hub.newest(migration.id, (migration.source, migration.target))
    return min(100, word.done * 100 // word.total) if word is not None and word.total > 0 else 0


def _host_status(call: Call, host: Row[Any] | None) -> str:
    if host is None:
        return ""
    if not host.enabled:
        return "MAINTENANCE"
    return "UP" if hosts_view.is_up(host, heard_since(call.services.settings)) else "DOWN"
