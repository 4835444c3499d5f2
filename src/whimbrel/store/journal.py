"""The journal's rows, read as entries and written back one at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Update, bindparam, select, update

from whimbrel.domain.migration import Mark
from whimbrel.migration.journal import OUTSTANDING, Entry
from whimbrel.migration.messages import Facts, Order
from whimbrel.store.tables import journal, migrations

Key = tuple[int, int, int, str]
"""Migration, segment, attempt, step."""

AWAITED = (Mark.DOING, Mark.UNDOING, Mark.LOST, Mark.UNDO_LOST)
"""Marks of rows whose host still owes an answer."""


_ATTEMPT = select(journal).where(
    journal.c.migration_id == bindparam("migration"),
    journal.c.segment == bindparam("segment"),
    journal.c.attempt == bindparam("attempt"),
)
_ROW = _ATTEMPT.where(journal.c.step == bindparam("step"))
_FACTS = (
    select(journal.c.step, journal.c.facts)
    .where(journal.c.migration_id == bindparam("migration"), journal.c.attempt == bindparam("attempt"))
    .order_by(journal.c.segment)
)
_KEY = (
    (journal.c.migration_id == bindparam("of_migration"))
    & (journal.c.segment == bindparam("of_segment"))
    & (journal.c.attempt == bindparam("of_attempt"))
    & (journal.c.step == bindparam("of_step"))
)
_INSERT = journal.insert()
_AWAITED = (
    select(journal)
    .join(migrations, migrations.c.id == journal.c.migration_id)
    .where(
        migrations.c.open,
        migrations.c.held.is_(False),
        migrations.c.window_open.is_(False),
        journal.c.segment == migrations.c.segment,
        journal.c.attempt == migrations.c.attempt,
        journal.c.mark.in_(AWAITED),
    )
)


@cache
def _writing(names: tuple[str, ...]) -> Update:
    """Return the statement that writes these columns of one row; there are few such sets of columns."""
    return update(journal).where(_KEY).values({name: bindparam(name) for name in names})


def entries(tx: Connection, migration_id: int, segment: int, attempt: int) -> dict[str, Entry]:
    """Return one attempt's entries by step name."""
    rows = tx.execute(_ATTEMPT, {"migration": migration_id, "segment": segment, "attempt": attempt})
    return {row.step: entry_of(row) for row in rows}


def entry_of(row: Row[Any]) -> Entry:
    """Make a journal row an entry."""
    return Entry(
        step=row.step,
        mark=Mark(row.mark),
        number=row.number,
        tries=row.tries,
        undo_tries=row.undo_tries,
        facts=row.facts,
        undo_facts=row.undo_facts,
        reason=row.reason,
        started_at=row.started_at,
        ended_at=row.ended_at,
        heard_at=row.heard_at,
        asked_at=row.asked_at,
    )


def write(tx: Connection, key: Key, values: dict[str, Any], *, new: bool = False) -> None:
    """Update the row of (migration, segment, attempt, step), or insert it when it is `new`."""
    migration_id, segment, attempt, step = key
    if new:
        names = {"migration_id": migration_id, "segment": segment, "attempt": attempt, "step": step}
        tx.execute(_INSERT, {**names, **values})
        return
    names = {"of_migration": migration_id, "of_segment": segment, "of_attempt": attempt, "of_step": step}
    tx.execute(_writing(tuple(values)), {**names, **values})


def ask_soon(tx: Connection, attempt: tuple[int, int, int]) -> None:
    """Let the host of the order that is out be asked at the next occasion: there is something new to be told it."""
    migration_id, segment, number = attempt
    mine = (journal.c.migration_id == migration_id, journal.c.segment == segment, journal.c.attempt == number)
    tx.execute(update(journal).where(*mine, journal.c.mark.in_(OUTSTANDING)).values(asked_at=0.0))


def row_for(tx: Connection, key: Key) -> Row[Any] | None:
    """Return one row whole, None when the step was never begun."""
    return tx.execute(_ROW, dict(zip(("migration", "segment", "attempt", "step"), key, strict=True))).one_or_none()


def results(tx: Connection, migration_id: int, attempt: int) -> dict[str, Facts]:
    """Return the facts of all steps that were done in this attempt, over all segments."""
    rows = tx.execute(_FACTS, {"migration": migration_id, "attempt": attempt})
    return {row.step: row.facts for row in rows if row.facts}


def awaited(tx: Connection) -> list[Row[Any]]:
    """Return the rows whose host still owes an answer that somebody waits for: those of attempts under way."""
    return list(tx.execute(_AWAITED))


def order_of(row: Row[Any]) -> Order:
    """Return the order that is out for this row."""
    return msgspec.convert(row.outstanding, Order)
