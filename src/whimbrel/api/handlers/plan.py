"""What a move would be, beforehand: the request itself, in a transaction that is taken back, and then two questions.

So a plan is refused wherever the request would be, and its answers are those of the scheduler and of the server's host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import microversion
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding, server_moves
from whimbrel.api.views import journal as view
from whimbrel.bus import queues
from whimbrel.domain.errors import BusError
from whimbrel.migration import protocols
from whimbrel.migration.messages import Foresee, Foresight, SelectTargets, Targets
from whimbrel.migration.protocols import Protocol
from whimbrel.store import migrations, placing
from whimbrel.store.migrations import Begun

ANSWER_SECONDS = 10.0

Begin = Callable[[Connection, Call], Begun]


@dataclass(frozen=True)
class Sketch:
    """A migration that was not begun, and what is to be asked about it."""

    migration: Row[Any]
    table: Protocol
    where: SelectTargets
    how: Foresee


async def migrate(call: Call) -> Reply:
    """Say what a cold migration would do."""
    return await _plan(call, server_moves.begin_migration)


async def migrate_live(call: Call) -> Reply:
    """Say what a live migration would do."""
    return await _plan(call, server_moves.begin_live_migration)


async def resize(call: Call) -> Reply:
    """Say what a resize would do."""
    return await _plan(call, server_moves.begin_resize)


async def _plan(call: Call, begin: Begin) -> Reply:
    newest = replace(call, version=microversion.MAX)  # the body is that of the newest form of the action
    sketch = await call.services.store.write(_rehearse, newest, begin)
    bus, source = call.services.bus, sketch.migration.source
    targets, foresight = await asyncio.gather(
        bus.call(queues.SCHEDULER, sketch.where, timeout=ANSWER_SECONDS),
        bus.call(queues.agent(source), sketch.how, timeout=ANSWER_SECONDS),
    )
    if not isinstance(targets, Targets) or not isinstance(foresight, Foresight):
        raise BusError("The answers to a plan's questions are not of this release; ask again after the upgrade.")
    reader = view.Reader(hosts=finding.may(call, "whimbrel:migrations"))
    return Reply(body={"plan": view.plan(sketch.migration, sketch.table, targets, foresight, reader)})


def _rehearse(tx: Connection, call: Call, begin: Begin) -> Sketch:
    """Begin the migration, look at it, and take it back."""
    trial = tx.begin_nested()
    try:
        begun = begin(tx, call)
        migration = migrations.load(tx, begun.migration_id)
        assert migration is not None
        first = migration.segments[0]
        table = protocols.protocol(first["protocol"], first["version"])
        same_host = call.services.settings.conductor.same_host_resize
        where = placing.targets(tx, migration, table, same_host=same_host)
        return Sketch(migration, table, where, placing.way(tx, migration))
    finally:
        trial.rollback()
