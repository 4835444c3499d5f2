"""What happens because time passes: asking about orders, calling a host silent, closing windows, paying debts."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import structlog
from sqlalchemy import Connection, select

from whimbrel.conductor.drive import Driver, Effects, send
from whimbrel.domain.migration import Mark
from whimbrel.migration.messages import Ask, Targets
from whimbrel.ops import clock, settings
from whimbrel.store import debts, journal, migrations
from whimbrel.store.tables import migrations as table

_log = structlog.get_logger()

PATIENCE = 60.0
"""No host may be silent for longer than this, in seconds, whatever its step's limit is."""

NO_SCHEDULER_AFTER = 60.0
"""A migration for which no scheduler answers is ended after this many seconds."""


@dataclass
class Due:
    """What one tick found to do outside of the transaction."""

    asks: list[Ask] = field(default_factory=list)
    effects: Effects = field(default_factory=Effects)


def tick(tx: Connection, driver: Driver, conf: settings.Conductor) -> Due:
    """Look at every awaited order, every window and every debt once."""
    due = Due()
    now = clock.now()
    _watch_orders(tx, driver, conf, now, due)
    for begun in migrations.confirm_when_due(tx, now):
        _log.info("undo window has run out: confirming", migration=begun.migration_id)
        due.effects.outbox += begun.outbox
    for order in debts.due(tx, now, heard_since=now - conf.service_down_after / 2):
        send(tx, order, due.effects)
    _ask_scheduler_again(tx, driver, now, due)
    return due


def _watch_orders(tx: Connection, driver: Driver, conf: settings.Conductor, now: float, due: Due) -> None:
    for row in journal.awaited(tx):
        key = (row.migration_id, row.segment, row.attempt, row.step)
        order = journal.order_of(row)
        if row.mark in (Mark.DOING, Mark.UNDOING) and now - row.heard_at > min(order.limit, PATIENCE):
            mark = Mark.LOST if row.mark == Mark.DOING else Mark.UNDO_LOST
            reason = row.reason or f"Host {row.host} has not answered for {int(now - row.heard_at)} s."
            journal.write(tx, key, {"mark": mark, "reason": reason, "ended_at": now})
            _log.warning("host is silent", on=row.host, migration=row.migration_id, step=row.step, reason=reason)
            due.effects.merge(driver.advance(tx, row.migration_id))
        elif now - row.asked_at >= conf.ask_after:
            journal.write(tx, key, {"asked_at": now})
            due.asks.append(Ask(order))


def _ask_scheduler_again(tx: Connection, driver: Driver, now: float, due: Due) -> None:
    """Migrations that got no list of targets: the scheduler was away, or its answer was lost."""
    rows = tx.execute(
        select(table.c.id, table.c.revision, table.c.created_at).where(
            table.c.open, table.c.targets.is_(None), table.c.target.is_(None), table.c.updated_at < now - 5.0
        )
    ).all()
    for row in rows:
        if now - row.created_at > NO_SCHEDULER_AFTER:
            reason = [{"host": "-", "filter": "scheduler", "reason": "No scheduler answers; start one and try again."}]
            migrations.save(tx, row.id, row.revision, {"targets": [], "refusals": reason})
        due.effects.merge(driver.advance(tx, row.id))


def keep_targets(tx: Connection, driver: Driver, migration_id: int, answer: Targets) -> Effects:
    """Write the scheduler's list into the migration and drive it on; a second list is ignored."""
    row = migrations.load(tx, migration_id)
    if row is None or not row.open or row.targets is not None:
        return Effects()
    hosts = [{"host": host, "weight": weight} for host, weight in zip(answer.hosts, answer.weights, strict=True)]
    migrations.save(tx, row.id, row.revision, {"targets": hosts, "refusals": msgspec.to_builtins(answer.refusals)})
    return driver.advance(tx, migration_id)
