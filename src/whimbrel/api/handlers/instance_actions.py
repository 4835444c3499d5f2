"""Instance actions: what was asked of a server, step by step, and how it went. Deleted servers keep theirs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.views import actions as view
from whimbrel.api.views import links
from whimbrel.domain.errors import Invalid, NotFound
from whimbrel.store import actions
from whimbrel.store.actions import Told


async def index(call: Call) -> Reply:
    """List a server's actions, newest first."""
    paged = call.version >= (2, 58)
    if paged:
        before = {"changes-before"} if call.version >= (2, 66) else set()
        parameters.refuse_unknown(call, {"limit", "marker", "changes-since"} | before)
    told = await call.services.store.read(_load, call)
    more = False
    if paged:
        told, more = _page(call, told)
    body: dict[str, Any] = {"instanceActions": [view.action(each, call.version) for each in told]}
    if more:
        marker = told[-1].action.request_id
        body["links"] = links.next_page(call.services.public_url, call.path, call.query, marker)
    return Reply(body=body)


def _page(call: Call, told: list[Told]) -> tuple[list[Told], bool]:
    limit, marker = parameters.limit(call), call.first("marker")
    since, before = parameters.span(call)
    if marker is not None:
        places = [number for number, each in enumerate(told) if each.action.request_id == marker]
        if not places:
            raise Invalid(f"Marker {marker} could not be found.")
        told = told[places[0] + 1 :]
    told = [
        each
        for each in told
        if (since is None or view.updated_at(each) >= since) and (before is None or view.updated_at(each) <= before)
    ]
    return parameters.cut(told, limit)


async def show(call: Call) -> Reply:
    """Show one action with its events; the action's id is that of the request."""
    told = await call.services.store.read(_load, call, call.params["request_id"])
    if not told:
        raise NotFound(f"Action for request_id {call.params['request_id']} on instance {call.params['id']} not found")
    admin = finding.may(call, "os_compute_api:os-instance-actions:events:details")
    body = view.action(told[0], call.version)
    if admin or call.version >= (2, 51):
        body["events"] = view.events(told[0], call.version, admin=admin)
    return Reply(body={"instanceAction": body})


def _load(tx: Connection, call: Call, request_id: str | None = None) -> list[Told]:
    row = finding.server(tx, call, deleted=call.version >= (2, 21))
    return actions.of_server(tx, row.id, request_id)
