"""Compute services: one for each host's agent, with the switches that keep work away from it."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding, recovery
from whimbrel.api.handlers.server_create import is_true
from whimbrel.api.views import hosts as view
from whimbrel.domain.errors import Invalid, NotFound
from whimbrel.store import hosts_view
from whimbrel.store.hosts_view import HostView

Outbox = list[tuple[int, str, object]]

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


async def index(call: Call) -> Reply:
    """List compute services."""
    hosts = await call.services.store.read(hosts_view.everything)
    named, binary = call.first("host"), call.first("binary")
    shown = [
        _service(call, host)
        for host in hosts
        if named in (None, "", host.row.name) and binary in (None, "", view.BINARY)
    ]
    return Reply(body={"services": parameters.asked_page(call, shown)})


def _service(call: Call, host: HostView) -> dict[str, Any]:
    return view.service(host, call.version, host.is_up(finding.heard_since(call.services.settings)))


async def update(call: Call) -> Reply:
    """Change a service that is named by its id."""
    given = call.body
    if not given:
        raise Invalid("No updates were requested. Fields 'status' or 'forced_down' should be specified.")
    values: dict[str, Any] = {}
    if "status" in given:
        values["enabled"] = given["status"] == "enabled"
        values["disabled_reason"] = given.get("disabled_reason")
    if "disabled_reason" in given and given.get("status") != "disabled":
        raise Invalid("Specifying 'disabled_reason' when status is not 'disabled' is invalid.")
    if "forced_down" in given:
        values["forced_down"] = is_true(given["forced_down"])

    def change(tx: Connection) -> tuple[HostView, Outbox]:
        host = _find(tx, call)
        hosts_view.change(tx, host.row.number, **values)
        return _find(tx, call), _declared(tx, call, host.row.name, values)

    host, outbox = await call.services.store.write(change)
    await call.services.publish(outbox)
    return Reply(body={"service": _service(call, host)})


async def update_by_name(call: Call) -> Reply:
    """Change a service that is named by its host: `enable`, `disable`, `disable-log-reason` and `force-down`."""
    word, given = call.params["id"], call.body
    named = {"host": given["host"], "binary": given["binary"]}
    match word:
        case "enable":
            values: dict[str, Any] = {"enabled": True, "disabled_reason": None}
            shown = {**named, "status": "enabled"}
        case "disable":
            values = {"enabled": False, "disabled_reason": None}
            shown = {**named, "status": "disabled"}
        case "disable-log-reason":
            if "disabled_reason" not in given:
                raise Invalid("Missing disabled reason field")
            values = {"enabled": False, "disabled_reason": given["disabled_reason"]}
            shown = {**named, "status": "disabled", "disabled_reason": given["disabled_reason"]}
        case "force-down" if call.version >= (2, 11):
            if "forced_down" not in given:
                raise Invalid("Missing forced_down field")
            values = {"forced_down": is_true(given["forced_down"])}
            shown = {**named, **values}
        case _:
            raise NotFound("Unknown action")

    def change(tx: Connection) -> Outbox:
        row = hosts_view.find(tx, given["host"])
        if row is None or given["binary"] != view.BINARY:
            raise NotFound(f"Could not find binary {given['binary']} on host {given['host']}.")
        hosts_view.change(tx, row.number, **values)
        return _declared(tx, call, row.name, values)

    await call.services.publish(await call.services.store.write(change))
    return Reply(body={"service": shown})


def _declared(tx: Connection, call: Call, name: str, values: dict[str, Any]) -> Outbox:
    """Note what an administrator's word about a host proves, if anything was said of it."""
    if "forced_down" not in values:
        return []
    return recovery.note_forced_down(tx, call, name, down=values["forced_down"])


async def delete(call: Call) -> Reply:
    """Forget a host that has neither servers nor migrations."""

    def remove(tx: Connection) -> None:
        hosts_view.remove(tx, _find(tx, call).row)

    await call.services.store.write(remove)
    return Reply(204)


def _find(tx: Connection, call: Call) -> HostView:
    """Return the host whose service the path names: by a number before 2.53, by a UUID since."""
    wanted = call.params["id"]
    by_uuid = call.version >= (2, 53)
    if not (UUID.fullmatch(wanted) if by_uuid else wanted.isascii() and wanted.isdecimal()):
        raise Invalid(f"Invalid uuid {wanted}" if by_uuid else f"Service id {wanted} is not a number.")
    for host in hosts_view.everything(tx):
        if wanted == (host.row.service_uuid if by_uuid else str(host.row.number)):
            return host
    raise NotFound(f"Service {wanted} could not be found.")
