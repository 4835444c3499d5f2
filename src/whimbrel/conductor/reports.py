"""What agents say, written into the journal: believed only from the host and for the order that the journal names."""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import Connection, Row

from whimbrel.conductor import restore
from whimbrel.conductor.drive import Driver, Effects, send
from whimbrel.conductor.endings import power_from
from whimbrel.domain.migration import Answer, Mark, Verb
from whimbrel.migration.messages import Facts, Order, StepReport
from whimbrel.ops import clock
from whimbrel.store import debts, journal, migrations, servers_core

_log = structlog.get_logger()


def take(tx: Connection, driver: Driver, report: StepReport) -> Effects:
    """Write down what a host reports of an order, and drive the migration on."""
    effects = Effects()
    if debts.is_debt(tx, report.host, report.server, report.number):
        if report.answer is Answer.DONE:
            debts.pay(tx, report.host, report.server, report.number)
            _log.info("debt paid", server=report.server, on=report.host, step=report.step)
        return effects
    row = _awaited(tx, report)
    if row is None:
        _log.info("report ignored", on=report.host, server=report.server, step=report.step, number=report.number)
        return effects
    if report.answer is Answer.NOT_DONE and report.facts.get("unheard"):
        _send_again(tx, row, effects)
        return effects
    if report.answer is Answer.STALE and restore.refuse_stale(tx, report):
        return effects
    key = (row.migration_id, row.segment, row.attempt, row.step)
    journal.write(tx, key, _values(tx, row, report))
    if report.answer in (Answer.RUNNING, Answer.UNKNOWN):
        return effects
    _log.info(
        "step " + report.answer if report.verb is Verb.DO else "undo " + report.answer,
        request_id=journal.order_of(row).request_id,
        migration=report.migration,
        server=report.server,
        step=report.step,
        on=report.host,
        **({"reason": report.reason} if report.reason else {}),
    )
    effects.merge(driver.advance(tx, report.migration))
    return effects


def _awaited(tx: Connection, report: StepReport) -> Row[Any] | None:
    """Return the journal's row that awaits exactly this report; None when it is old, forged or about nothing."""
    migration = migrations.load(tx, report.migration)
    if migration is None or not migration.open or report.server != migration.server_id:
        return None
    if report.segment != migration.segment:
        return None
    if (report.server, report.attempt) != (migration.server_id, migrations.attempt_label(migration)):
        return None
    row = journal.row_for(tx, (report.migration, report.segment, migration.attempt, report.step))
    if row is None or row.mark not in journal.AWAITED:
        return None
    verb = Verb.UNDO if row.mark in (Mark.UNDOING, Mark.UNDO_LOST) else Verb.DO
    if (row.host, row.number, verb) != (report.host, report.number, report.verb):
        return None
    return row


def _values(tx: Connection, row: Row[Any], report: StepReport) -> dict[str, Any]:
    """Return the columns that this report changes."""
    now = clock.now()
    undo = report.verb is Verb.UNDO
    facts_column = "undo_facts" if undo else "facts"
    tries_column = "undo_tries" if undo else "tries"
    tries = getattr(row, tries_column)
    match report.answer:
        case Answer.RUNNING:
            return {"heard_at": now, "mark": Mark.UNDOING if undo else Mark.DOING}
        case Answer.UNKNOWN:
            return {"reason": report.reason}
        case Answer.DONE:
            _keep_power(tx, report)
            skipped = "" if undo else str(report.facts.get("skipped", ""))
            if skipped:
                done = {"mark": Mark.SKIPPED, "facts": {}, "reason": skipped}
                return {**done, "ended_at": now, "heard_at": now}
            mark = Mark.UNDONE if undo else Mark.DONE
            # Done after all, but its silence may be why the attempt turned, and then the user must read it.
            reason = row.reason if undo or row.mark == Mark.LOST else ""
            return {"mark": mark, facts_column: report.facts, "reason": reason, "ended_at": now, "heard_at": now}
        case Answer.FAILED:
            mark = Mark.UNDO_FAILED if undo else Mark.FAILED
            values = {"mark": mark, facts_column: report.facts, "ended_at": now, "heard_at": now}
            return values | ({} if undo and row.reason else {"reason": report.reason})
        case Answer.STALE:
            servers_core.adopt_numbers(
                tx, report.server, int(report.facts.get("epoch", 0)), int(report.facts.get("number", 0))
            )
    # Not done, or refused as stale: order it anew, which costs no try, because nothing was tried.
    mark = Mark.UNDO_FAILED if undo else Mark.NOT_DONE
    return {"mark": mark, facts_column: _known(report.facts), tries_column: tries - 1, "heard_at": now}


def _known(facts: Facts) -> Facts:
    """Keep of a not-done answer only what later decisions ask for: whether the guest was ever let run."""
    return {"released": True} if facts.get("released") else {}


def _keep_power(tx: Connection, report: StepReport) -> None:
    """Write the power state that the step found or made into the server's row."""
    state = power_from(report.facts)
    if state is not None:
        servers_core.set_values(tx, report.server, power_state=state)


def _send_again(tx: Connection, row: Row[Any], effects: Effects) -> None:
    """The host never got the order: send the same one again; the ledger makes a double harmless."""
    order: Order = journal.order_of(row)
    now = clock.now()
    journal.write(tx, (row.migration_id, row.segment, row.attempt, row.step), {"heard_at": now, "asked_at": now})
    send(tx, order, effects)
