"""One migration, driven as far as it goes without waiting: decide, write, decide again, inside one transaction.

Nothing here waits or sends. What is to be sent stands in the outbox when the transaction commits, and is returned
as effects so that it is published at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection, Row

from whimbrel.conductor import endings, orders
from whimbrel.domain.claim import resources_of
from whimbrel.domain.errors import StepError
from whimbrel.domain.migration import Kind, Mark, Verb, Verdict
from whimbrel.migration import protocols
from whimbrel.migration.decide import Decision, Do, Finished, Owe, Pass, Undo, Wait, decide
from whimbrel.migration.journal import Entry
from whimbrel.migration.messages import Changed, Order, SelectTargets
from whimbrel.migration.ports import Case
from whimbrel.migration.protocols import BooksStep, HostStep, Protocol
from whimbrel.ops import clock, settings
from whimbrel.store import debts, journal, migrations, outbox, servers_core
from whimbrel.store.books import StoreBooks

_log = structlog.get_logger()

MAX_STEPS = 200
"""Decisions in one transaction; a table has about ten rows, so more means a loop, which is a defect."""


@dataclass
class Effects:
    """What a transaction leaves to be done outside of it."""

    outbox: list[tuple[int, str, object]] = field(default_factory=list)
    select: list[tuple[int, SelectTargets]] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)

    def merge(self, other: Effects) -> None:
        """Add another transaction part's effects."""
        self.outbox += other.outbox
        self.select += other.select
        self.changed += other.changed


class Driver:
    """Applies decisions. Made once per process; every method takes the transaction it works in."""

    def __init__(self, conf: settings.Conductor, ticket_url: orders.TicketUrl) -> None:
        self._conf = conf
        self._ticket_url = ticket_url

    def advance(self, tx: Connection, migration_id: int) -> Effects:
        """Drive the migration until an order is out, targets are needed, a user is awaited, or it has ended."""
        effects = Effects()
        for _ in range(MAX_STEPS):
            migration = migrations.load(tx, migration_id)
            if migration is None or not migration.open:
                return effects
            if not self._one(tx, migration, effects):
                row = migrations.load(tx, migration_id)
                assert row is not None
                effects.changed.append(Changed(row.id, row.server_id, row.revision))
                return effects
        raise RuntimeError(f"migration {migration_id} was decided {MAX_STEPS} times without coming to rest")

    def _one(self, tx: Connection, migration: Row[Any], effects: Effects) -> bool:
        """Apply one decision; return whether there is another one to take now."""
        if migration.window_open:
            return migration.verdict is not None and endings.next_segment(tx, migration)
        current = migration.segments[migration.segment]
        table = protocols.protocol(current["protocol"], current["version"])
        entries = journal.entries(tx, migration.id, migration.segment, migration.attempt)
        cancelled = migration.cancelled and not self._is_last_segment(migration)
        if not entries and table.steps[0].name == "claim" and migration.target is None and not cancelled:
            return self._choose_target(tx, migration, effects)
        decision = decide(table, entries, cancelled=cancelled)
        if isinstance(decision, Wait):
            return self._wait(tx, migration, decision)
        if migration.fence is not None:
            migrations.save(tx, migration.id, migration.revision, {"fence": None})
            return True
        return self._apply(tx, migration, table, decision, entries, effects)

    @staticmethod
    def _is_last_segment(migration: Row[Any]) -> bool:
        """A cancel ends the segments before a delete, never the delete itself."""
        return bool(migration.segment == len(migration.segments) - 1 and migration.verdict == Verdict.DELETE)

    def _apply(
        self,
        tx: Connection,
        migration: Row[Any],
        table: Protocol,
        decision: Decision,
        entries: dict[str, Entry],
        effects: Effects,
    ) -> bool:
        match decision:
            case Do(step) if isinstance(step, BooksStep):
                self._do_now(tx, migration, step)
            case Undo(step) if isinstance(step, BooksStep):
                self._undo_now(tx, migration, step)
            case Do(step):
                return self._order(tx, migration, table, step, Verb.DO, entries.get(step.name), effects)
            case Undo(step):
                return self._order(tx, migration, table, step, Verb.UNDO, entries.get(step.name), effects)
            case Owe(step, undo):
                self._owe(tx, migration, entries[step.name], undo=undo)
            case Pass(step, undo):
                self._pass(tx, migration, entries[step.name], undo=undo)
            case Finished(done):
                return endings.finish(tx, migration, table, done=done, conf=self._conf)
        migrations.save(tx, migration.id, migration.revision, {})
        return True

    # --- the conductor's own steps ---------------------------------------------------------------

    def _do_now(self, tx: Connection, migration: Row[Any], step: BooksStep) -> None:
        now = clock.now()
        mark, facts, reason = Mark.DONE, {}, ""
        try:
            facts = step.do(StoreBooks(tx), _case(migration))
        except StepError as error:
            mark, facts, reason = Mark.FAILED, dict(error.facts), str(error)
        journal.write(
            tx,
            _key(migration, step.name),
            {"mark": mark, "facts": facts, "reason": reason, "tries": 1, "started_at": now, "ended_at": now},
        )
        _tell("step " + mark, migration, step.name, None, reason)

    def _undo_now(self, tx: Connection, migration: Row[Any], step: BooksStep) -> None:
        assert step.undo is not None
        facts = step.undo(StoreBooks(tx), _case(migration))
        journal.write(
            tx, _key(migration, step.name), {"mark": Mark.UNDONE, "undo_facts": facts, "ended_at": clock.now()}
        )
        _tell("step undone", migration, step.name, None, "")

    # --- orders to hosts -------------------------------------------------------------------------

    def _order(
        self,
        tx: Connection,
        migration: Row[Any],
        table: Protocol,
        step: protocols.Step,
        verb: Verb,
        entry: Entry | None,
        effects: Effects,
    ) -> bool:
        assert isinstance(step, HostStep)
        now = clock.now()
        host = orders.host_for(migration, step.where)
        if host is None:
            journal.write(tx, _key(migration, step.name), {"mark": Mark.SKIPPED, "started_at": now, "ended_at": now})
            return True
        order = orders.build(
            tx, migration, table, step, verb, grace=self._conf.shutdown_grace, ticket_url=self._ticket_url
        )
        row: dict[str, Any] = {
            "host": host,
            "mark": Mark.DOING if verb is Verb.DO else Mark.UNDOING,
            "number": order.number,
            "outstanding": msgspec.to_builtins(order),
            "heard_at": now,
            "asked_at": now,
        }
        if verb is Verb.DO:
            row |= {"tries": (entry.tries if entry else 0) + 1, "started_at": now, "ended_at": None}
        else:
            row["undo_tries"] = (entry.undo_tries if entry else 0) + 1
        journal.write(tx, _key(migration, step.name), row)
        migrations.save(tx, migration.id, migration.revision, {"fence": None})
        send(tx, order, effects)
        _tell("step ordered" if verb is Verb.DO else "undo ordered", migration, step.name, host, "")
        return False

    def _wait(self, tx: Connection, migration: Row[Any], decision: Wait) -> bool:
        """Leave the order out. At a fence a delete goes on all the same; otherwise the host is named and awaited."""
        fence = orders.host_for(migration, decision.step.where) if decision.fence else None
        if fence is not None and migration.verdict == Verdict.DELETE and not self._is_last_segment(migration):
            return endings.next_segment(tx, migration)
        if fence != migration.fence:
            migrations.save(tx, migration.id, migration.revision, {"fence": fence})
            _tell("needs fence" if fence else "fence lifted", migration, decision.step.name, fence, "")
        return False

    def _owe(self, tx: Connection, migration: Row[Any], entry: Entry, *, undo: bool) -> None:
        row = journal.row_for(tx, _key(migration, entry.step))
        assert row is not None
        order = journal.order_of(row)
        verb = Verb.UNDO if undo else Verb.DO
        debts.owe(tx, replace(order, verb=verb), entry.step, verb)
        mark = Mark.UNDONE if undo else Mark.OWED
        journal.write(tx, _key(migration, entry.step), {"mark": mark, "ended_at": clock.now()})
        _tell("step owed", migration, entry.step, order.host, entry.reason)

    def _pass(self, tx: Connection, migration: Row[Any], entry: Entry, *, undo: bool) -> None:
        facts = {**(entry.undo_facts if undo else entry.facts), "guest_down": True}
        values = {"mark": Mark.UNDONE, "undo_facts": {**facts, "released": False}} if undo else {
            "mark": Mark.SKIPPED, "facts": facts}  # fmt: skip
        journal.write(tx, _key(migration, entry.step), {**values, "ended_at": clock.now()})
        _tell("went on without it", migration, entry.step, None, entry.reason)

    # --- targets ---------------------------------------------------------------------------------

    def _choose_target(self, tx: Connection, migration: Row[Any], effects: Effects) -> bool:
        """Take the next host of the scheduler's list; ask for a list when there is none yet."""
        if migration.targets is None:
            effects.select.append((migration.id, self._question(tx, migration)))
            return False
        left = [target["host"] for target in migration.targets if target["host"] not in migration.tried]
        if not left or migration.attempt > self._conf.max_attempts:
            return endings.no_host(tx, migration)
        migrations.save(tx, migration.id, migration.revision, {"target": left[0], "tried": [*migration.tried, left[0]]})
        _tell("target chosen", migration, "claim", left[0], "")
        return True

    def _question(self, tx: Connection, migration: Row[Any]) -> SelectTargets:
        server = servers_core.load(tx, migration.server_id)
        need = resources_of(servers_core.flavor_of(migration.new_flavor))
        current = migration.segments[migration.segment]
        return SelectTargets(
            vcpus=need.vcpus,
            ram_mb=need.ram_mb,
            disk_gb=need.disk_gb,
            architecture=server.image_properties.get("hw_architecture")
            or server.image_properties.get("architecture")
            or "",
            exclude=tuple(migration.tried),
            source=migration.source,
            same_host_allowed=migration.kind == Kind.RESIZE and self._conf.same_host_resize,
            forced_host=migration.forced_host,
            protocol=current["protocol"],
            version=current["version"],
        )


def send(tx: Connection, order: Order, effects: Effects) -> None:
    """Put an order into the outbox and among the effects."""
    queue = f"agent.{order.host}"
    effects.outbox.append((outbox.put(tx, queue, order), queue, order))


def _case(migration: Row[Any]) -> Case:
    return Case(
        migration=migration.id,
        server=migration.server_id,
        attempt=orders.attempt_label(migration),
        source=migration.source,
        target=migration.target,
    )


def _key(migration: Row[Any], step: str) -> tuple[int, int, int, str]:
    return migration.id, migration.segment, migration.attempt, step


def _tell(event: str, migration: Row[Any], step: str, host: str | None, reason: str) -> None:
    _log.info(
        event,
        request_id=migration.segments[migration.segment]["request_id"],
        migration=migration.id,
        server=migration.server_id,
        segment=migration.segments[migration.segment]["protocol"],
        attempt=migration.attempt,
        step=step,
        on=host,
        **({"reason": reason} if reason else {}),
    )
