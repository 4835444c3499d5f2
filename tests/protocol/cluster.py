"""A cluster to be driven by hand: the real conductor's transactions, real ledgers and steps, hosts in memory.

Messages are delivered when the test says so, so a test can lose them, double them or delay them; and at each boundary
(before and after each durable change at a host, after each transaction of the conductor) a test may cut the power,
kill a process or let a call fail. A guest that runs makes a numbered write at each boundary, and the auditor looks.
"""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from tests.protocol.agent import Agent, Rows, put_rows, rows
from tests.protocol.audit import Books, audit, read
from tests.protocol.host import SERVER, Broken, Copy, Host
from tests.unit.orders import order
from whimbrel.agent.grants import LedgerGrants
from whimbrel.conductor import hosts as host_books
from whimbrel.conductor import reports, restore, timers
from whimbrel.conductor.drive import Driver, Effects
from whimbrel.domain.claim import Resources
from whimbrel.domain.migration import Kind, Verdict, Witness
from whimbrel.domain.server import Flavor, PowerState
from whimbrel.migration import protocols
from whimbrel.migration.messages import MESSAGES, Ask, Order, SelectTargets, StepReport, Targets, Wake
from whimbrel.migration.presence import Welcome
from whimbrel.ops import clock, settings
from whimbrel.store import claims, evacuations, fencing, migrations
from whimbrel.store.actions import Asked
from whimbrel.store.engine import Store
from whimbrel.store.tables import debts, journal, metadata, servers
from whimbrel.store.tables import hosts as hosts_table
from whimbrel.store.tables import migrations as migrations_table

SMALL = {"number": 1, **msgspec.to_builtins(Flavor("small", "small", 1, 128, 1))}
LARGE = {"number": 2, **msgspec.to_builtins(Flavor("large", "large", 2, 256, 2))}
IDENTITY = {"request_id": "req-1", "user_id": "u", "project_id": "p"}
TYPES = {kind.__name__: kind for kind in MESSAGES}
LONGEST = 1500.0
"""Seconds of virtual time after which a cluster should have come to rest."""
AWAY = 150.0
"""Seconds that a host stays down which is away for a while: longer than any host is waited for."""
FOR_GOOD = float("inf")
PAUSE, LONGEST_PAUSE = 6.0, 48.0
"""Seconds of virtual time between two looks of the conductor's timers when nothing is in flight."""


class PowerCut(BaseException):
    """The host lost its power here; it boots at once, or after so many seconds."""

    def __init__(self, away: float = 0.0) -> None:
        self.away = away


class AgentKilled(BaseException):
    """The agent's process died here; the guest runs on."""


class ConductorKilled(BaseException):
    """The conductor's process died here."""


TABLES = ("hosts", "servers", "migrations", "journal", "claims", "debts", "outbox")
SCALARS = (
    "time", "last_ran", "longest_down", "_writes", "_pause", "given_up", "cut_while_it_ran", "taken_back", "made_anew",
    "returns",
)  # fmt: skip
LISTS = ("queue", "sent", "history", "trace", "later")


@dataclass(frozen=True)
class State:
    """A cluster between two messages, from which it can go on more than once."""

    scalars: dict[str, Any]
    lists: dict[str, list[Any]]
    published: set[int]
    rows: Rows
    agents: list[Any]


@cache
def _workplace() -> tuple[Path, Store, sqlite3.Connection]:
    """One database for all clusters of this process, because compiling the statements anew costs the most."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="whimbrel-test-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    store = Store(f"sqlite:///{path}/whimbrel.db")
    store.write_now(lambda tx: metadata.create_all(tx))
    past = sqlite3.connect(path / "whimbrel.db", isolation_level=None)
    past.row_factory = sqlite3.Row
    return path, store, past


class Cluster:
    """Hosts, one server on the first of them, the conductor's database, and the messages in flight."""

    def __init__(self, names: tuple[str, ...] = ("h1", "h2", "h3"), *, built: bool = True, **conf: Any) -> None:
        self.time = self.last_ran = 1_000_000.0
        self.longest_down = 0.0
        self._rule_time()
        workplace, self.store, self._past = _workplace()
        self._directory = Path(tempfile.mkdtemp(dir=workplace))
        put_rows(self._past, {name: [] for name in TABLES})
        self._books: Books | None = None
        self.conf = settings.Conductor(**conf)
        self.driver = Driver(self.conf, lambda image: "")
        self.queue: deque[object] = deque()
        self.sent: list[object] = []
        self.later: list[Callable[[Cluster], None]] = []
        self._published: set[int] = set()
        self.history: list[int] = []
        self._writes = 0
        self.given_up = 0
        self.taken_back: set[tuple[int, int]] = set()
        self.made_anew: dict[tuple[int, int], list[int]] = {}
        self._pause = PAUSE
        self.cut_while_it_ran: str | None = None
        self.returns: dict[str, float] = {}
        self.same_host = len(names) == 1
        self._watched = False
        self.trace: list[str] = []
        self.fault: Callable[[str], None] = lambda what: None
        self.hosts = {name: Host(name, self.boundary) for name in names}
        self.agents: dict[str, Agent] = {}
        for host in self.hosts.values():
            host.peers = self.hosts
            self.agents[host.name] = Agent(host, self._directory / host.name, self._send)
            self._at(host, lambda host=host: self._beat(host))  # type: ignore[misc]
        self.drain()
        self._place_server(self.hosts[names[0]] if built else None)
        self.trace.clear()
        self._watched = True

    def _rule_time(self) -> None:
        clock.now = lambda: self.time

    def close(self) -> None:
        """Let go of the ledgers."""
        for agent in self.agents.values():
            agent.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _place_server(self, host: Host | None) -> None:
        """Make the server's row; with a host, as a build would have left it: running there."""
        row = {
            "id": SERVER, "name": "vm", "project_id": "p", "user_id": "u", "reservation_id": "r", "flavor": SMALL,
            "root_disk": "qcow2", "created_at": 0.0, "updated_at": 0.0,
        }  # fmt: skip
        if host is not None:
            row |= {"host": host.name, "epoch": 1, "order_number": 1, "power_state": "running", "launched_at": 0.0}
        self.store.write_now(lambda tx: tx.execute(servers.insert().values(**row)))
        if host is None:
            return
        self.store.write_now(claims.take, host.name, SERVER, "0-1", Resources(1, 128, 1))
        host.defined = f"{SERVER} vcpus=1"
        host.live = host.open_files = Copy("0-1", definition=host.defined)
        host.process, host.tpm = PowerState.RUNNING, []
        grants = LedgerGrants(self.agents[host.name].ledger, lambda: True)
        built = order("start_guest", 1, host=host.name, server=SERVER)
        grants.grant(built)
        grants.release(built)

    # --- boundaries ------------------------------------------------------------------------------

    def boundary(self, what: str) -> None:
        """Let the guest write, let the auditor look, and let the test strike here."""
        for host in self.hosts.values():
            if host.write(self._writes + 1):
                self._writes += 1
                self.history.append(self._writes)
                self.longest_down = max(self.longest_down, self.time - self.last_ran)
                self.last_ran = self.time
        if self._watched:
            audit(self)
        self.trace.append(what)
        self.fault(what)

    def books(self) -> Books:
        """What the database says now."""
        if self._books is None:
            self._books = read(self._past)
        return self._books

    def transact(self, function: Callable[..., Any], *args: Any, cause: object = None, **kwargs: Any) -> None:
        """One transaction of the conductor, then what it left is sent. `cause` is the message not yet acknowledged."""
        try:
            effects = self._write(function, *args, **kwargs)
            self.boundary("conductor.committed" if effects.outbox or effects.select else "conductor.?idle")
            self._publish(effects)
        except ConductorKilled:
            self._restart_conductor(cause)

    def _write(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = self.store.write_now(function, *args, **kwargs)
        self._books = None
        return result

    def _publish(self, effects: Effects) -> None:
        for number, _, message in effects.outbox:
            self._published.add(number)
            self._send(message)
        for _, message in effects.passing:
            self._send(message)
        for migration_id, question in effects.select:
            self.transact(timers.keep_targets, self.driver, migration_id, self._choose(question))

    def _choose(self, question: SelectTargets) -> Targets:
        names = [n for n in self.hosts if n not in question.exclude and (self.same_host or n != question.source)]
        names = [question.forced_host] if question.forced_host else names
        return Targets(tuple(names), tuple(0.0 for _ in names), ())

    def _restart_conductor(self, cause: object) -> None:
        """A new process: the message comes again, so does all that the outbox holds, and open migrations go on."""
        if cause is not None:
            self.queue.appendleft(cause)
        for row in self._past.execute("SELECT id, type, body FROM outbox ORDER BY id").fetchall():
            self._published.add(row["id"])
            self._send(msgspec.convert(msgspec.json.decode(row["body"]), TYPES[row["type"]]))
        for migration_id in self.store.read_now(migrations.open_ids):
            self.transact(self.driver.advance, migration_id)

    def _send(self, message: object) -> None:
        self.queue.append(message)
        self.sent.append(message)

    # --- what users ask --------------------------------------------------------------------------

    def start(self, kind: Kind = Kind.MIGRATION, table: protocols.Protocol = protocols.COLD, **more: Any) -> None:
        """Begin a migration as the API does."""
        self._begun(self._write(migrations.begin, SERVER, kind, table, **IDENTITY, **more))

    def verdict(self, verdict: Verdict) -> None:
        """Confirm or revert as the API does."""
        self._begun(self._write(migrations.give_verdict, SERVER, verdict, request_id="req-2"))

    def cancel(self) -> None:
        """Cancel the newest migration as the API does."""
        self._begun(self._write(migrations.request_cancel, self.migration().id))

    def evacuate(self, target: str | None = None, *, leave_stopped: bool = False) -> None:
        """Evacuate as the API does."""
        asked = Asked(IDENTITY["request_id"], "u", "p")
        self._begun(self._write(evacuations.begin, SERVER, asked, "p", target=target, leave_stopped=leave_stopped))

    def prove(self, name: str, witness: Witness = Witness.ADMINISTRATOR) -> None:
        """Prove that the boot of a host, as it was last heard of, is over."""
        row = next(row for row in self.rows(hosts_table) if row.name == name)
        silent = self.time - 20
        outbox = self._write(fencing.give, name, witness, "seen", boot=row.boot, silent_since=silent)
        self._publish(Effects(outbox=outbox))

    def delete(self) -> None:
        """Delete as the API does."""
        self._begun(self._write(migrations.request_delete, SERVER, **IDENTITY))

    def _begun(self, begun: migrations.Begun) -> None:
        self._publish(Effects(outbox=begun.outbox))

    # --- messages and time -----------------------------------------------------------------------

    def step(self, which: int = 0) -> None:
        """Deliver one message: the oldest, or another one."""
        message = self.queue[which]
        del self.queue[which]
        self.deliver(message)

    def deliver(self, message: object) -> None:
        """Deliver this message."""
        self.time += 0.01
        if not isinstance(message, Ask | Welcome):
            self._pause = PAUSE
        match message:
            case Wake(migration):
                self.transact(self.driver.advance, migration, cause=message)
            case StepReport():
                self.transact(reports.take, self.driver, message, cause=message)
            case Order():
                self._at(self.hosts[message.host], lambda: self.agents[message.host].obey(message))
            case Ask(order):
                self._at(self.hosts[order.host], lambda: self.agents[order.host].ask(order))
            case Welcome():
                self._at(self.hosts[message.host], lambda: self.agents[message.host].admission.welcome(message))
        audit(self)

    def tick(self, later: float | None = None) -> None:
        """Let time pass: heartbeats, and what the conductor does because time has passed.

        The longer nothing happens, the longer the pauses get, but never so long that a host seems silent.
        """
        self.time += self._pause if later is None else later
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        for name in [name for name, when in self.returns.items() if when <= self.time]:
            self.boot(self.hosts[name])
        for host in self.hosts.values():
            self._at(host, lambda host=host: self._beat(host))  # type: ignore[misc]
        self._past.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in self._published])
        self._published.clear()
        due = self.store.read_now(timers.look, self.conf)
        for key in due.silent:
            self.transact(timers.call_silent, self.driver, key)
        for server in due.windows:
            self.transact(timers.close_window, server)
        for migration_id in due.unplaced:
            self.transact(timers.place_again, self.driver, migration_id)
        for migration_id in due.asleep:
            self.transact(self.driver.advance, migration_id)
        self.transact(timers.collect_debts, self.conf)
        self.transact(restore.settle, self.conf)
        self._write(timers.note_asked, [key for key, _ in due.asks])
        for _, ask in due.asks:
            self._send(ask)
        audit(self)

    def run(self, before: Callable[[], None] = lambda: None) -> None:
        """Go on until nothing is under way: no message, no host away, no open migration but one that waits.

        Whenever nothing is, the next of the user's `later` wishes is asked for. `before` is called before each message
        and each tick.
        """
        until = self.time + LONGEST
        heard = False
        while self.later or not (heard and self.at_rest()):
            if self.later and self.at_rest():
                self.later.pop(0)(self)
            if self.time > until:
                raise Broken(f"L1: it does not come to rest\n{self.story()}")
            heard = self.at_rest()
            before()
            self.turn()

    def turn(self) -> None:
        """Deliver the oldest message, or let time pass when there is none."""
        if self.queue:
            self.step()
        else:
            self.tick()

    def drain(self) -> None:
        """Deliver what is in flight, and let no time pass."""
        while self.queue:
            self.step()

    def at_rest(self) -> bool:
        """Whether nothing would happen by itself any more, heartbeats apart."""
        books = self.books()
        for_good = {name for name, when in self.returns.items() if when == FOR_GOOD}
        waiting = all(
            not row["open"] or (row["window_open"] and not row["verdict"]) or row["fence"] in for_good
            for row in books.migrations
        )
        owing = {row["host"] for row in books.debts}
        return not self.queue and waiting and self.returns.keys() == for_good and owing <= for_good

    # --- hosts -----------------------------------------------------------------------------------

    def _beat(self, host: Host) -> None:
        """One heartbeat, delivered at once."""
        self.transact(host_books.hear, self.agents[host.name].beat(), self.conf)

    def _at(self, host: Host, call: Callable[[], None]) -> None:
        """Let something happen at a host, and let it come back from whatever strikes it there."""
        if not host.up:
            return
        try:
            call()
        except PowerCut as cut:
            self.cut(host, away=cut.away)
        except AgentKilled:
            self.agents[host.name].kill()
            self._at(host, self.agents[host.name].start)

    def cut(self, host: Host, *, away: float = 0.0) -> None:
        """Cut the host's power. It boots at once, or after `away` seconds."""
        if not host.up:
            return
        if host.process is PowerState.RUNNING:
            self.cut_while_it_ran = host.name
        self.agents[host.name].kill()
        host.lose_power()
        host.up = False
        if away:
            self.returns[host.name] = self.time + away
        else:
            self.boot(host)

    def boot(self, host: Host) -> None:
        """The host comes back in a new boot, and tells the conductor."""
        self.returns.pop(host.name, None)
        host.up = True
        self._at(host, self.agents[host.name].start)
        self._at(host, lambda: self._beat(host))

    # --- states ----------------------------------------------------------------------------------

    def save(self) -> State:
        """Return all of it, between two messages."""
        return State(
            {name: copy(getattr(self, name)) for name in SCALARS},
            {name: list(getattr(self, name)) for name in LISTS},
            set(self._published),
            rows(self._past, TABLES),
            [agent.save() for agent in self.agents.values()],
        )

    def restore(self, state: State) -> None:
        """Go back to a saved state."""
        self._rule_time()
        for name, value in state.scalars.items():
            setattr(self, name, value)
        for name, values in state.lists.items():
            setattr(self, name, values.copy())
        self.queue = deque(self.queue)
        self._published = set(state.published)
        self.taken_back, self.returns, self.made_anew = map(copy, (self.taken_back, self.returns, self.made_anew))
        put_rows(self._past, state.rows)
        self._books = None
        for agent, saved in zip(self.agents.values(), state.agents, strict=True):
            agent.restore(saved)
        self.fault = lambda what: None

    # --- what a test looks at --------------------------------------------------------------------

    def settled(self, home: str, *, running: bool = True) -> None:
        """Check that nothing is under way and that the server is at `home`, running or not."""
        for host in self.hosts.values():
            self._at(host, lambda host=host: self._beat(host))  # type: ignore[misc]
        self.drain()
        audit(self, at_rest=True)
        assert self.server().host == home, self.story()
        assert (self.hosts[home].process is PowerState.RUNNING) is running, self.story()

    def world(self) -> tuple[Any, ...]:
        """All that must not change by itself: processes, files but for what the guest writes, promises, books."""
        books = self.books()
        hosts = [
            (h.process, h.defined, h.live and h.live.attempt, list(h.incoming), list(h.sealed), h.boot)
            for h in self.hosts.values()
        ]
        records = [agent.record() for agent in self.agents.values()]
        claimed = [tuple(row) for row in books.claims]
        ends = [
            (row["id"], row["segment"], row["attempt"], row["outcome"], row["window_open"]) for row in books.migrations
        ]
        return hosts, records, claimed, ends, books.server["epoch"], books.server["power_state"]

    def server(self) -> Any:
        """The server's row."""
        return self.store.read_now(lambda tx: tx.execute(select(servers)).one())

    def migration(self) -> Any:
        """The newest migration that is no start of a guest after a power cut."""
        wanted = migrations_table.c.request_id == IDENTITY["request_id"]
        query = select(migrations_table).where(wanted).order_by(migrations_table.c.id.desc()).limit(1)
        return self.store.read_now(lambda tx: tx.execute(query).one())

    def rows(self, table: Any) -> list[Any]:
        """All rows of a table."""
        return self.store.read_now(lambda tx: tx.execute(select(table)).all())

    def marks(self) -> dict[str, str]:
        """The journal of the newest migration: step to mark, later segments and attempts over earlier ones."""
        query = select(journal).order_by(journal.c.segment, journal.c.attempt)
        return {row.step: row.mark for row in self.store.read_now(lambda tx: tx.execute(query).all())}

    def story(self) -> str:
        """What happened, for a failing test's message."""
        rows = "\n".join(
            f"  {r.migration_id}:{r.segment}.{r.attempt} {r.step:14} {r.mark:12} on={r.host} no={r.number} {r.reason}"
            for r in self.rows(journal)
        )
        ends = "\n".join(
            f"  {m.id} {m.kind}: open={m.open} window={m.window_open} outcome={m.outcome} fence={m.fence} {m.reason}"
            for m in self.rows(migrations_table)
        )
        owed = [f"{d.host}:{d.step}:{d.verb}:{'paid' if d.paid_at else 'due'}" for d in self.rows(debts)]
        places = "\n".join(
            f"  {h.name} up={h.up} {h.process} live={h.live} in={h.incoming} sealed={h.sealed}"
            for h in self.hosts.values()
        )
        return f"{ends}\n{rows}\n{places}\ndebts={owed}\n{' '.join(self.trace[-60:])}"
