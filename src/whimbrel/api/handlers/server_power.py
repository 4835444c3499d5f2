"""Starting, stopping and rebooting a server, and reading what it says on its console."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.handlers.server_moves import require, source_is_up
from whimbrel.bus import queues
from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.domain.migration import Kind
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.migration.messages import Console, ReadConsole
from whimbrel.store import actions, migrations
from whimbrel.store.migrations import Begun

CONSOLE_SECONDS = 10.0


async def start(call: Call) -> Reply:
    """Start a stopped server."""
    return await _power(call, PowerAction.START, "start", ("stopped",))


async def stop(call: Call) -> Reply:
    """Stop a running server: it is asked first, and forced after the grace time."""
    return await _power(call, PowerAction.STOP, "stop", ("active",))


async def reboot(call: Call) -> Reply:
    """Restart a server: SOFT asks the guest, HARD does not."""
    if call.body["reboot"]["type"].upper() == "SOFT":
        return await _power(call, PowerAction.REBOOT_SOFT, "reboot", ("active",))
    return await _power(call, PowerAction.REBOOT_HARD, "reboot", ("active", "stopped", "paused"))


async def _power(call: Call, action: PowerAction, name: str, vm_states: tuple[str, ...]) -> Reply:
    begun = await call.services.store.write(_begin(call, action, name, vm_states))
    await call.services.publish(begun.outbox)
    return Reply(202)


def _begin(call: Call, action: PowerAction, name: str, vm_states: tuple[str, ...]) -> Callable[[Connection], Begun]:
    def begin(tx: Connection) -> Begun:
        situation = finding.unlocked(tx, call)
        require(situation, name, vm_states)
        server = situation.server
        source_is_up(tx, call, server)
        who = finding.asked(call)
        begun = migrations.begin(
            tx,
            server.id,
            Kind.POWER,
            protocols.POWER,
            request_id=who.request_id,
            user_id=who.user_id,
            project_id=server.project_id,
            action=action,
        )
        actions.record(tx, server.id, name, who, migration_id=begun.migration_id, segment=begun.segment)
        return begun

    return begin


async def console(call: Call) -> Reply:
    """Return the last lines that a server wrote to its serial console."""
    server = await call.services.store.read(finding.server, call)
    if server.host is None:
        raise Conflict(f"Instance {server.id} is not ready")
    length = (call.body["os-getConsoleOutput"] or {}).get("length")
    lines = None if length is None or int(length) < 0 else int(length)
    answer = await call.services.bus.call(
        queues.agent(server.host), ReadConsole(server.id, lines), timeout=CONSOLE_SECONDS
    )
    if not isinstance(answer, Console):
        raise NotFound(f"The console of instance {server.id} is not available at host {server.host}.")
    # Clients count what is between line ends, so a tail of three lines has two of them.
    return Reply(body={"output": answer.text if lines is None else answer.text.removesuffix("\n")})
