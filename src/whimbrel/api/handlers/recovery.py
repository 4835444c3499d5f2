"""When a host is down: its servers are evacuated, and somebody proves that it cannot run them any more."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.handlers.server_create import is_true
from whimbrel.api.views import state
from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.migration import Witness
from whimbrel.ops import clock, ids
from whimbrel.store import actions, evacuations, fencing, hosts_view, servers
from whimbrel.store.migrations import Begun

EVACUABLE = ("active", "stopped", "error", "paused")


async def evacuate(call: Call) -> Reply:
    """Make a server of a host that is down anew, from its image, on another host; the old disks are not there."""
    begun: Begun = await call.services.store.write(_evacuate, call)
    await call.services.publish(begun.outbox)
    password = (call.body["evacuate"] or {}).get("adminPass") or ids.new_secret(12)[:12]
    return Reply(200, {"adminPass": password} if call.version < (2, 14) else None)


def _evacuate(tx: Connection, call: Call) -> Begun:
    given = call.body["evacuate"] or {}
    situation = servers.situation(tx, finding.server(tx, call))  # a lock does not stand in the way of a recovery
    server = situation.server
    known = state.derive(situation)
    if known.vm not in EVACUABLE or server.host is None or server.launched_at is None:
        raise Conflict(f"Cannot 'evacuate' instance {server.id} while it is in vm_state {known.vm}")
    if is_true(given.get("onSharedStorage", False)):
        raise Invalid("Hosts share no storage here: leave onSharedStorage out, the disks are made anew from the image.")
    if server.image is None:
        raise Invalid(f"Instance {server.id} has no image to be made anew from; its disks are only on {server.host}.")
    host = hosts_view.find(tx, server.host)
    if host is not None and hosts_view.is_up(host, finding.heard_since(call.services.settings)):
        raise Invalid(f"Compute service of {server.host} is still in use.")
    wanted = given.get("host")
    if wanted is not None:
        if hosts_view.find(tx, wanted) is None:
            raise NotFound(f"Compute host {wanted} not found.")
        if wanted == server.host:
            raise Invalid("The target host can't be the same one.")
    asked = finding.asked(call)
    stopped = call.version >= (2, 95)
    begun = evacuations.begin(tx, server.id, asked, server.project_id, target=wanted, leave_stopped=stopped)
    actions.record(tx, server.id, "evacuate", asked, migration_id=begun.migration_id, segment=begun.segment)
    return begun


async def prove(call: Call) -> Reply:
    """Take an administrator's word that this boot of a host is over, and let what waits for it go on."""
    name, boot = call.params["name"], call.body["boot"]
    reason = call.body.get("reason") or f"said by user {call.who.user_id}"
    since = finding.heard_since(call.services.settings)

    def give(tx: Connection) -> tuple[dict[str, Any], list[tuple[int, str, object]]]:
        wakes = fencing.give(tx, name, Witness.ADMINISTRATOR, reason, boot=boot, silent_since=since)
        return {"host": name, "boot": boot, "proved_at": clock.iso(clock.now()), "wakes": len(wakes)}, wakes

    shown, outbox = await call.services.store.write(give)
    await call.services.publish(outbox)
    return Reply(body={"fence": shown})


def note_forced_down(tx: Connection, call: Call, name: str, *, down: bool) -> list[tuple[int, str, object]]:
    """A host that is silent and declared down is proved to be off; one that speaks is not, whatever is declared."""
    row = hosts_view.find(tx, name)
    if row is None:
        return []
    if not down:
        fencing.withdraw(tx, name)
        return []
    since = finding.heard_since(call.services.settings)
    if row.heard_at > since:
        return []
    reason = f"forced down by user {call.who.user_id}"
    return fencing.give(tx, name, Witness.ADMINISTRATOR, reason, boot=row.boot, silent_since=since)
