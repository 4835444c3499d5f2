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
from whimbrel.conductor.passes import Passes
from whimbrel.domain.errors import StepError
from whimbrel.domain.migration import Mark, Proof, Verb, Verdict
from whimbrel.domain.server import PowerState
from whimbrel.migration import protocols
from whimbrel.migration.decide import Decision, Do, Finished, Owe, Pass, Undo, Wait, decide
from whimbrel.migration.journal import Entry
from whimbrel.migration.messages import Changed, Order, SelectTargets
from whimbrel.migration.ports import Case
from whimbrel.migration.protocols import BooksStep, HostStep, Protocol
from whimbrel.ops import clock, metrics, settings
from whimbrel.store import debts, fencing, journal, migrations, outbox, placing, servers_core
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
    passing: list[tuple[str, object]] = field(default_factory=list)
    """Messages to queues that may be lost: whoever misses one asks again."""

    def merge(self, other: Effects) -> None:
        """Add another transaction part's effects."""
        self.outbox += other.outbox
        self.select += other.select
        self.changed += other.changed
        self.passing += other.passing


@dataclass(frozen=True)
class Hand:
    """One migration in hand: its row, the table that it follows, what its journal says, and what will be sent."""

    tx: Connection
    migration: Row[Any]
    table: Protocol
    entries: dict[str, Entry]
    effects: Effects

    def write(self, step: str, values: dict[str, Any]) -> None:
        """Write a journal row of the current attempt."""
        journal.write(self.tx, self.key(step), values, new=step not in self.entries)

    def key(self, step: str) -> tuple[int, int, int, str]:
        """Return the journal's key of a step of the current attempt."""
        return self.migration.id, self.migration.segment, self.migration.attempt, step

    def save(self, **values: Any) -> None:
        """Write columns of the migration, under compare-and-swap."""
        migrations.save(self.tx, self.migration.id, self.migration.revision, values)

    def case(self) -> Case:
        """Return what a conductor's own step needs to know."""
        m = self.migration
        return Case(m.id, m.server_id, migrations.attempt_label(m), m.source, m.target)

    def tell(self, event: str, step: str, host: str | None = None, reason: str = "") -> None:
        """Log what was decided, with everything that finds the line again."""
        m = self.migration
        _log.info(
            event,
            request_id=m.segments[m.segment]["request_id"],
            migration=m.id,
            server=m.server_id,
            segment=self.table.name,
            attempt=m.attempt,
            step=step,
            on=host,
            **({"reason": reason} if reason else {}),
        )


class Driver:
    """Applies decisions. Made once per process; every method takes the transaction it works in."""

    def __init__(self, conf: settings.Conductor, ticket_url: orders.TicketUrl, passes: Passes | None = None) -> None:
        self.conf = conf
        self._ticket_url = ticket_url
        self._passes = passes

    def advance(self, tx: Connection, migration_id: int) -> Effects:
        """Drive the migration until an order is out, targets are needed, a user is awaited, or it has ended."""
        effects = Effects()
        for _ in range(MAX_STEPS):
            migration = migrations.load(tx, migration_id)
            if migration is None or not migration.open or migration.held:
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
        hand = Hand(tx, migration, table, entries, effects)
        cancelled = migration.cancelled and not self._is_last_segment(migration)
        if not entries and table.steps[0].name == "claim" and migration.target is None and not cancelled:
            return self._choose_target(hand)
        decision = decide(table, entries, cancelled=cancelled)
        if isinstance(decision, Wait):
            return self._wait(hand, decision)
        if migration.fence is not None:
            hand.save(fence=None)
            return True
        return self._apply(hand, decision)

    @staticmethod
    def _is_last_segment(migration: Row[Any]) -> bool:
        """A cancel ends the segments before a delete, never the delete itself."""
        return bool(migration.segment == len(migration.segments) - 1 and migration.verdict == Verdict.DELETE)

    def _apply(self, hand: Hand, decision: Decision) -> bool:
        match decision:
            case Do(step) if isinstance(step, BooksStep):
                self._do_now(hand, step)
            case Undo(step) if isinstance(step, BooksStep):
                self._undo_now(hand, step)
            case Do(step):
                return self._order(hand, step, Verb.DO)
            case Undo(step):
                return self._order(hand, step, Verb.UNDO)
            case Owe(step, undo):
                self._owe(hand, hand.entries[step.name], Verb.UNDO if undo else Verb.DO)
            case Pass(step, undo):
                self._pass(hand, hand.entries[step.name], undo=undo)
            case Finished(done):
                return endings.finish(hand.tx, hand.migration, hand.table, done=done, conf=self.conf)
        hand.save()
        return True

    # --- the conductor's own steps ---------------------------------------------------------------

    def _do_now(self, hand: Hand, step: BooksStep) -> None:
        now = clock.now()
        mark, facts, reason = Mark.DONE, {}, ""
        try:
            facts = step.do(StoreBooks(hand.tx), hand.case())
        except StepError as error:
            mark, facts, reason = Mark.FAILED, dict(error.facts), str(error)
        values = {"mark": mark, "facts": facts, "reason": reason, "tries": 1, "started_at": now, "ended_at": now}
        hand.write(step.name, values)
        hand.tell("step " + mark, step.name, reason=reason)

    def _undo_now(self, hand: Hand, step: BooksStep) -> None:
        assert step.undo is not None
        facts = step.undo(StoreBooks(hand.tx), hand.case())
        hand.write(step.name, {"mark": Mark.UNDONE, "undo_facts": facts, "ended_at": clock.now()})
        hand.tell("step undone", step.name)

    # --- orders to hosts -------------------------------------------------------------------------

    def _order(self, hand: Hand, step: protocols.Step, verb: Verb) -> bool:
        """Write the order and its journal row; return whether to go on, which is so when there is no such host."""
        assert isinstance(step, HostStep)
        now = clock.now()
        entry = hand.entries.get(step.name)
        host = orders.host_for(hand.migration, step.where)
        if host is None:
            hand.write(step.name, {"mark": Mark.SKIPPED, "started_at": now, "ended_at": now})
            return True
        order = self._build(hand, step, verb)
        row: dict[str, Any] = {
            "host": host,
            "mark": Mark.DOING if verb is Verb.DO else Mark.UNDOING,
            "number": order.number,
            "outstanding": msgspec.to_builtins(order),
            "heard_at": orders.last_word(hand.tx, host, now),
            "asked_at": now,
        }
        if verb is Verb.DO:
            row |= {"tries": (entry.tries if entry else 0) + 1, "started_at": now, "ended_at": None}
        else:
            row["undo_tries"] = (entry.undo_tries if entry else 0) + 1
        hand.write(step.name, row)
        hand.save(fence=None)
        send(hand.tx, order, hand.effects)
        hand.tell("step ordered" if verb is Verb.DO else "undo ordered", step.name, host)
        return False

    def _build(self, hand: Hand, step: HostStep, verb: Verb) -> Order:
        grace = self.conf.shutdown_grace
        order = orders.build(hand.tx, hand.migration, hand.table, step, verb, grace=grace, ticket_url=self._ticket_url)
        return order if self._passes is None else self._passes.give(hand.tx, order)

    def _wait(self, hand: Hand, decision: Wait) -> bool:
        """Leave the order out. At a fence a delete goes on all the same; otherwise the host is named and awaited."""
        migration = hand.migration
        fence = orders.host_for(migration, decision.step.where) if decision.fence else None
        if fence is not None and self._stand_in(hand, decision.step, fence):
            return True
        if fence is not None and migration.verdict == Verdict.DELETE and not self._is_last_segment(migration):
            return endings.next_segment(hand.tx, migration)
        if fence != migration.fence:
            hand.save(fence=fence)
            hand.tell("needs fence" if fence else "fence lifted", decision.step.name, fence)
        return False

    def _stand_in(self, hand: Hand, step: protocols.Step, host: str) -> bool:
        """Let a proof that the host cannot run the guest stand in for its word, if there is one that suffices."""
        proof = fencing.of(hand.tx, host)
        if proof is None or not proof.witness.suffices(step.proof):
            return False
        entry = hand.entries[step.name]
        facts = {"proof": proof.witness, "because": proof.reason, "proved_at": proof.at}
        forward = step.fence or (entry.mark is Mark.LOST and step.proof is Proof.ANY)
        if forward:
            values: dict[str, Any] = {"mark": Mark.DONE, "facts": facts, "reason": ""}
        else:
            values = {"mark": Mark.UNDONE, "undo_facts": {**facts, "released": False}}
        hand.write(step.name, {**values, "ended_at": clock.now()})
        hand.save(fence=None)
        hand.tell("a proof stands in for the host's word", step.name, host, proof.reason)
        return True

    def _owe(self, hand: Hand, entry: Entry, verb: Verb) -> None:
        row = journal.row_for(hand.tx, hand.key(entry.step))
        assert row is not None
        order = journal.order_of(row)
        debts.owe(hand.tx, replace(order, verb=verb), entry.step, verb)
        hand.write(entry.step, {"mark": Mark.UNDONE if verb is Verb.UNDO else Mark.OWED, "ended_at": clock.now()})
        hand.tell("step owed", entry.step, order.host, entry.reason)

    def _pass(self, hand: Hand, entry: Entry, *, undo: bool) -> None:
        if undo:
            facts = {**entry.undo_facts, "guest_down": True, "released": False}
            values = {"mark": Mark.UNDONE, "undo_facts": facts}
        else:
            values = {"mark": Mark.SKIPPED, "facts": {**entry.facts, "guest_down": True}}
        hand.write(entry.step, {**values, "ended_at": clock.now()})
        servers_core.set_values(hand.tx, hand.migration.server_id, power_state=PowerState.STOPPED)
        hand.tell("went on without it", entry.step, reason=entry.reason)

    # --- targets ---------------------------------------------------------------------------------

    def _choose_target(self, hand: Hand) -> bool:
        """Take the next host of the scheduler's list; ask for a list when there is none yet."""
        migration = hand.migration
        if migration.targets is None:
            question = placing.targets(hand.tx, migration, hand.table, same_host=self.conf.same_host_resize)
            hand.effects.select.append((migration.id, question))
            return False
        left = [target["host"] for target in migration.targets if target["host"] not in migration.tried]
        if not left or migration.attempt > self.conf.max_attempts:
            return endings.no_host(hand.tx, migration)
        hand.save(target=left[0], tried=[*migration.tried, left[0]])
        hand.tell("target chosen", "claim", left[0])
        return True


def send(tx: Connection, order: Order, effects: Effects) -> None:
    """Put an order into the outbox and among the effects."""
    queue = f"agent.{order.host}"
    metrics.orders_sent.labels(order.step, order.verb).inc()
    effects.outbox.append((outbox.put(tx, queue, order), queue, order))
