"""What happens because time passes: asking about orders, calling a host silent, closing windows, paying debts.

`look` finds what is due without changing anything; each finding is then a transaction of its own, so that a fault in
one migration leaves the others their time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection, Row, and_, bindparam, or_, select

from whimbrel.conductor.drive import Driver, Effects, send
from whimbrel.domain.migration import Mark
from whimbrel.migration.messages import Ask, Targets
from whimbrel.ops import clock, settings
from whimbrel.store import debts, journal, migrations
from whimbrel.store.journal import Key
from whimbrel.store.tables import journal as rows
from whimbrel.store.tables import migrations as table

_log = structlog.get_logger()

CHOOSE_AGAIN_AFTER = 5.0
NO_SCHEDULER_AFTER = 60.0
"""A migration for which no scheduler answers is asked about again, and ended after this many seconds."""


@dataclass(frozen=True)
class Due:
    """What one look found."""

    silent: list[Key] = field(default_factory=list)
    asks: list[tuple[Key, Ask]] = field(default_factory=list)
    unreadable: list[Key] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)
    unplaced: list[int] = field(default_factory=list)
    asleep: list[int] = field(default_factory=list)


def look(tx: Connection, conf: settings.Conductor, *, listening_since: float = 0.0) -> Due:
    """Return the orders to ask about, the hosts to call silent, the windows to close and the migrations to drive on.

    Before `listening_since` this conductor was deaf, so nobody's silence counts.
    """
    now = clock.now()
    due = Due(windows=migrations.windows_run_out(tx, now), unplaced=_unplaced(tx, now), asleep=_asleep(tx, now))
    for row in journal.awaited(tx):
        key = (row.migration_id, row.segment, row.attempt, row.step)
        asks = _passed(row.asked_at, now, conf.ask_after)
        try:
            if _is_silent(row, now, conf, listening_since):
                due.silent.append(key)
            elif asks:
                due.asks.append((key, Ask(journal.order_of(row))))
        except msgspec.ValidationError as error:  # another release wrote it, say; every other migration goes on
            if asks:
                due.unreadable.append(key)
                _log.error("an order in the journal cannot be read", migration=row.migration_id, reason=str(error))
    return due


def _passed(since: float, now: float, seconds: float) -> bool:
    """Return whether so many seconds have passed; nobody knows how many have since a time that is still to come."""
    return now < since or now - since >= seconds


def call_silent(tx: Connection, driver: Driver, key: Key) -> Effects:
    """Write down that the host of this order has not answered, and drive the migration on."""
    migrations.load(tx, key[0])  # locked first, so that a report of this moment is either seen here or comes after
    row = journal.row_for(tx, key)
    now = clock.now()
    if row is None or not _is_silent(row, now, driver.conf):
        return Effects()
    reason = row.reason or f"Host {row.host} has not answered for {int(now - row.heard_at)} s."
    mark = Mark.LOST if row.mark == Mark.DOING else Mark.UNDO_LOST
    journal.write(tx, key, {"mark": mark, "reason": reason, "ended_at": now})
    _log.warning("host is silent", on=row.host, migration=row.migration_id, step=row.step, reason=reason)
    return driver.advance(tx, row.migration_id)


def note_asked(tx: Connection, keys: list[Key]) -> None:
    """Remember when these orders were asked about last; after the clock was set back, silence counts from now."""
    now = clock.now()
    for key in sorted(keys):  # in one order, because another conductor may be doing the same
        row = journal.row_for(tx, key)
        if row is not None:
            journal.write(tx, key, {"asked_at": now, "heard_at": min(row.heard_at, now)})


def close_window(tx: Connection, server_id: str) -> Effects:
    """Confirm a migration whose undo window has run out."""
    begun = migrations.confirm_when_due(tx, server_id, clock.now())
    if begun is None:
        return Effects()
    _log.info("undo window has run out: confirming", migration=begun.migration_id, server=server_id)
    return Effects(outbox=begun.outbox)


def collect_debts(tx: Connection, conf: settings.Conductor) -> Effects:
    """Send the clean-up that hosts owe to those that answer again."""
    effects = Effects()
    now = clock.now()
    for order in debts.due(tx, now, heard_since=now - conf.service_down_after / 2):
        send(tx, order, effects)
    return effects


def place_again(tx: Connection, driver: Driver, migration_id: int) -> Effects:
    """Ask for targets once more: the scheduler was away, or its answer was lost. After a minute, give up."""
    row = migrations.load(tx, migration_id)
    if row is None or not row.open or row.targets is not None:
        return Effects()
    if clock.now() - row.created_at > NO_SCHEDULER_AFTER:
        reason = [{"host": "-", "filter": "scheduler", "reason": "No scheduler answers; start one and try again."}]
        migrations.save(tx, row.id, row.revision, {"targets": [], "refusals": reason})
    return driver.advance(tx, migration_id)


def keep_targets(tx: Connection, driver: Driver, migration_id: int, answer: Targets) -> Effects:
    """Write the scheduler's list into the migration and drive it on; a second list is ignored."""
    row = migrations.load(tx, migration_id)
    if row is None or not row.open or row.targets is not None:
        return Effects()
    hosts = [{"host": host, "weight": weight} for host, weight in zip(answer.hosts, answer.weights, strict=True)]
    migrations.save(tx, row.id, row.revision, {"targets": hosts, "refusals": msgspec.to_builtins(answer.refusals)})
    return driver.advance(tx, migration_id)


def _is_silent(row: Row[Any], now: float, conf: settings.Conductor, listening_since: float = 0.0) -> bool:
    """Return whether the host that this row waits for has said nothing for longer than it may."""
    if row.mark not in (Mark.DOING, Mark.UNDOING):
        return False
    silence = now - max(row.heard_at, listening_since)
    return bool(silence > min(journal.order_of(row).limit, conf.patience))


_UNPLACED = and_(table.c.targets.is_(None), table.c.target.is_(None))
_ORDER_IS_OUT = (
    select(rows.c.step)
    .where(
        rows.c.migration_id == table.c.id,
        rows.c.segment == table.c.segment,
        rows.c.attempt == table.c.attempt,
        rows.c.mark.in_(journal.AWAITED),
    )
    .exists()
)


_AWAITS_USER = and_(table.c.window_open, table.c.verdict.is_(None))
_UNTOUCHED = or_(table.c.updated_at < bindparam("long_ago"), table.c.updated_at > bindparam("now"))
_UNPLACED_ONES = select(table.c.id).where(table.c.open, _UNPLACED, _UNTOUCHED)
_ASLEEP = select(table.c.id).where(table.c.open, ~_UNPLACED, ~_AWAITS_USER, ~_ORDER_IS_OUT, _UNTOUCHED)


def _unplaced(tx: Connection, now: float) -> list[int]:
    return list(tx.execute(_UNPLACED_ONES, _bounds(now)).scalars())


def _asleep(tx: Connection, now: float) -> list[int]:
    """Return the migrations that nobody drives: no order is out, no user is awaited, so a message was lost."""
    return list(tx.execute(_ASLEEP, _bounds(now)).scalars())


def _bounds(now: float) -> dict[str, float]:
    return {"now": now, "long_ago": now - CHOOSE_AGAIN_AFTER}
