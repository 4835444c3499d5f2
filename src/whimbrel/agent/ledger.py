"""The host's own memory: which orders it has taken, what became of them, and who may run here.

What must hold: a call that writes returns only after the disk has it. An order is written before it is
acknowledged and before it is begun; its end and the report of it are written together. So whatever dies, the
host can say of each order that it was never heard of, or what became of it, or that it must look.

SQLite, one connection, one writer at a time; called from threads.
"""

from __future__ import annotations

import enum
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import msgspec

from whimbrel.domain.errors import Unavailable
from whimbrel.domain.migration import Answer
from whimbrel.migration.messages import Order, StepReport
from whimbrel.ops import clock, ids

SCHEMA_VERSION = 1
ORDERS_KEPT = 50
"""Ended orders kept for each server; what is older is refused by its number alone."""
DAYS_KEPT = 30

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE servers (
    server TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,           -- the greatest that an order came with; an older one is refused
    number INTEGER NOT NULL,          -- the same of order numbers
    sealed TEXT,                      -- the attempt that promised not to run it again
    grant_epoch INTEGER,
    grant_boot TEXT,
    released_epoch INTEGER            -- the greatest at which the guest was let run here
) WITHOUT ROWID;
CREATE TABLE orders (
    server TEXT NOT NULL,
    number INTEGER NOT NULL,
    body BLOB NOT NULL,
    accepted_at REAL NOT NULL,
    report BLOB,                      -- answer, facts and reason, once it has ended
    ended_at REAL,
    PRIMARY KEY (server, number)
);
CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, report BLOB NOT NULL);
CREATE TABLE children (
    pid INTEGER PRIMARY KEY, start_time INTEGER NOT NULL, boot TEXT NOT NULL, purpose TEXT NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Standing(enum.Enum):
    """How an order stands to what the ledger knows."""

    NEW = enum.auto()
    """Never heard of, and nothing newer seen."""
    SAME = enum.auto()
    """Taken before; not to be done again."""
    STALE = enum.auto()
    """A newer epoch or order number was seen."""


@dataclass(frozen=True)
class Heard:
    """The ledger's answer about an order: its standing, its report once it has ended, and the newest seen."""

    standing: Standing
    report: StepReport | None = None
    epoch: int = 0
    number: int = 0


@dataclass(frozen=True)
class OutboxRow:
    """A report that the conductor has not yet confirmed."""

    id: int
    request_id: str
    report: StepReport


@dataclass(frozen=True)
class Child:
    """A process that a step started; `start_time` (clock ticks since boot) tells it from a later one of that pid."""

    pid: int
    start_time: int
    purpose: str


@dataclass(frozen=True)
class ServerRecord:
    """The newest order of a server that this host has seen, and the right to run it."""

    server: str
    epoch: int
    number: int
    sealed: str | None = None
    grant_epoch: int | None = None
    grant_boot: str | None = None
    released_epoch: int | None = None
    at_work: bool = False
    """Its newest order has not ended."""
    was_cut_short: bool = False
    """Its newest order ended as not done: the agent itself ended in the middle of it."""

    def was_interrupted(self, boot: str) -> bool:
        """Return whether a guest that is off here may be so against its user's wish, in this boot of the host.

        The host has lost its power or its lease since the grant, it was told to stand aside, or the newest order was
        cut short, so that nobody knows how far it came.
        """
        return self.grant_boot not in (None, boot) or self.sealed is not None or self.was_cut_short


_SERVER_COLUMNS = (
    "server, epoch, number, sealed, grant_epoch, grant_boot, released_epoch, EXISTS (SELECT 1 FROM orders "
    "WHERE orders.server = servers.server AND orders.number = servers.number AND ended_at IS NULL), "
    "EXISTS (SELECT 1 FROM orders WHERE orders.server = servers.server AND orders.number = servers.number "
    f"AND json_extract(CAST(report AS TEXT), '$.answer') = '{Answer.NOT_DONE}')"
)


class Ledger:
    """The tables, opened for one agent process; a second one on the same files is refused."""

    def __init__(self, state_dir: str | Path, boot: str) -> None:
        directory = Path(state_dir)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.boot = boot
        self._owner = _own(directory / "agent.lock")
        self._lock = Lock()
        self._sent: list[int] = []
        self._connection = sqlite3.connect(
            directory / "ledger.db", isolation_level=None, check_same_thread=False, timeout=10
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self.id = self._prepare()
        self._forget_old_orders()

    def close(self) -> None:
        """Close the files, once or twice; another process may open them then."""
        with self._lock:
            self._connection.close()
            self._owner.close()

    # Orders

    def accept(self, order: Order) -> Heard:
        """Write a new order down, and with it that nothing older is obeyed any more."""
        with self.transaction() as sql:
            heard = self._look_up(sql, order)
            if heard.standing is not Standing.NEW:
                return heard
            sql.execute(
                "INSERT INTO servers (server, epoch, number) VALUES (?, ?, ?) ON CONFLICT (server) "
                "DO UPDATE SET epoch = excluded.epoch, number = excluded.number",
                (order.server, order.epoch, order.number),
            )
            sql.execute(
                "INSERT INTO orders (server, number, body, accepted_at) VALUES (?, ?, ?, ?)",
                (order.server, order.number, msgspec.json.encode(order), clock.now()),
            )
            self._forget_old_orders_of(sql, order.server)
            return heard

    def find(self, order: Order) -> Heard:
        """Say how an order stands, and change nothing."""
        with self._reading() as sql:
            return self._look_up(sql, order)

    def finish(self, order: Order, report: StepReport) -> bool:
        """Write down the end of an order together with its report; False if it had ended before."""
        body = msgspec.json.encode(report)
        with self.transaction() as sql:
            ended = sql.execute(
                "UPDATE orders SET report = ?, ended_at = ? WHERE server = ? AND number = ? AND ended_at IS NULL",
                (body, clock.now(), order.server, order.number),
            )
            if ended.rowcount != 1:
                return False
            sql.execute("INSERT INTO outbox (request_id, report) VALUES (?, ?)", (order.request_id, body))
            return True

    def unfinished(self) -> list[Order]:
        """Return each server's newest order if it has not ended; what is older was overtaken by it."""
        with self._reading() as sql:
            rows = sql.execute(
                "SELECT body FROM orders JOIN servers USING (server, number) WHERE ended_at IS NULL"
            ).fetchall()
        return [msgspec.json.decode(body, type=Order) for (body,) in rows]

    def servers(self) -> list[ServerRecord]:
        """Return what is known of every server that this host ever had to do with."""
        with self._reading() as sql:
            rows = sql.execute(f"SELECT {_SERVER_COLUMNS} FROM servers ORDER BY server").fetchall()
        return [_record(row) for row in rows]

    def server(self, server: str) -> ServerRecord | None:
        """Return what is known of one server, None if nothing."""
        with self._reading() as sql:
            return read_server(sql, server)

    def catch_up(self, standings: dict[str, tuple[int, int]]) -> None:
        """Note the epoch and order number of servers as a conductor told them: nothing up to there is obeyed."""
        with self.transaction() as sql:
            sql.executemany(
                "INSERT INTO servers (server, epoch, number) VALUES (?, ?, ?) ON CONFLICT (server) "
                "DO UPDATE SET epoch = max(epoch, excluded.epoch), number = max(number, excluded.number)",
                [(server, epoch, number) for server, (epoch, number) in standings.items()],
            )

    def suspend_grants(self) -> None:
        """Let no grant count any more, as after a reboot: each server needs a new one to run here."""
        with self.transaction() as sql:
            sql.execute("UPDATE servers SET grant_boot = '' WHERE grant_boot IS NOT NULL")

    # Reports on their way

    def outbox(self, *, after: int, limit: int) -> list[OutboxRow]:
        """Return the oldest reports with a greater id that are not known to be sent."""
        with self._reading() as sql:
            rows = sql.execute(
                "SELECT id, request_id, report FROM outbox WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
        return [OutboxRow(id, request, msgspec.json.decode(body, type=StepReport)) for id, request, body in rows]

    def sent(self, row: OutboxRow) -> None:
        """Note that a report was confirmed; its row goes with the next write, for a second report does no harm."""
        self._sent.append(row.id)  # without the lock, which may be held for as long as the disk takes

    # Processes that steps started

    def record_child(self, pid: int, start_time: int, purpose: str) -> None:
        """Write down a process that must not outlive this agent unnoticed."""
        with self.transaction() as sql:
            sql.execute(
                "INSERT OR REPLACE INTO children (pid, start_time, boot, purpose) VALUES (?, ?, ?, ?)",
                (pid, start_time, self.boot, purpose),
            )

    def forget_child(self, pid: int) -> None:
        """Note that the process has ended."""
        with self.transaction() as sql:
            sql.execute("DELETE FROM children WHERE pid = ?", (pid,))

    def children(self) -> list[Child]:
        """Return the recorded processes of this boot; those of an earlier one cannot be there any more."""
        with self._reading() as sql:
            rows = sql.execute(
                "SELECT pid, start_time, purpose FROM children WHERE boot = ? ORDER BY pid", (self.boot,)
            ).fetchall()
        return [Child(*row) for row in rows]

    # Plumbing

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable write; it also clears away the reports that were confirmed since the last one."""
        with self._lock:
            sent = [(id,) for id in self._sent]
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.executemany("DELETE FROM outbox WHERE id = ?", sent)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            del self._sent[: len(sent)]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection

    def _look_up(self, sql: sqlite3.Connection, order: Order) -> Heard:
        seen = read_server(sql, order.server)
        if seen is None:
            return Heard(Standing.NEW)
        row = sql.execute(
            "SELECT body, report FROM orders WHERE server = ? AND number = ?", (order.server, order.number)
        ).fetchone()
        if row is not None and is_same(msgspec.json.decode(row[0], type=Order), order):
            report = None if row[1] is None else msgspec.json.decode(row[1], type=StepReport)
            return Heard(Standing.SAME, report, seen.epoch, seen.number)
        newer = order.number > seen.number and order.epoch >= seen.epoch
        return Heard(Standing.NEW if newer else Standing.STALE, None, seen.epoch, seen.number)

    def _prepare(self) -> str:
        """Make the tables at the first start; return the ledger's id."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        elif version != SCHEMA_VERSION:
            raise Unavailable(f"The ledger has version {version}, this release reads {SCHEMA_VERSION}: upgrade it.")
        with self.transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('id', ?)", (ids.new_uuid(),))
            sql.execute("DELETE FROM children WHERE boot <> ?", (self.boot,))
            (identity,) = sql.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        return str(identity)

    def _forget_old_orders(self) -> None:
        """Once per start, for servers that get no orders any more; the newest order of each stays."""
        with self.transaction() as sql:
            sql.execute(
                "DELETE FROM orders WHERE accepted_at < ? AND number < "
                "(SELECT number FROM servers WHERE servers.server = orders.server)",
                (clock.now() - DAYS_KEPT * 86400,),
            )

    def _forget_old_orders_of(self, sql: sqlite3.Connection, server: str) -> None:
        sql.execute(
            "DELETE FROM orders WHERE server = ?1 AND number <= "
            "(SELECT number FROM orders WHERE server = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
            (server, ORDERS_KEPT),
        )


def boot_marker(run_dir: str | Path) -> str:
    """Return the mark of this boot of this host; it stands on a tmpfs, so that a reboot takes it away."""
    directory = Path(run_dir)
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    path = directory / "boot"
    draft = directory / f".boot-{os.getpid()}"
    draft.write_text(ids.new_uuid(), encoding="ascii")
    try:
        os.link(draft, path)  # whole or not at all, and the first one wins
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text(encoding="ascii").strip()


def _own(path: Path) -> IO[bytes]:
    """Return the locked file; Unavailable if another process holds it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise Unavailable(f"Another agent holds {path}; stop it first.") from error
    return file


def read_server(sql: sqlite3.Connection, server: str) -> ServerRecord | None:
    """Return what is known of one server, inside a transaction."""
    row = sql.execute(f"SELECT {_SERVER_COLUMNS} FROM servers WHERE server = ?", (server,)).fetchone()
    return None if row is None else _record(row)


def _record(row: tuple[Any, ...]) -> ServerRecord:
    """Make a record of the columns; SQLite has no truth values, only 0 and 1."""
    server, epoch, number, sealed, grant_epoch, grant_boot, released_epoch, at_work, was_cut_short = row
    return ServerRecord(
        server, epoch, number, sealed, grant_epoch, grant_boot, released_epoch, bool(at_work), bool(was_cut_short)
    )


def is_same(one: Order, other: Order) -> bool:
    """A number that two different orders bear (after a restored backup, say) answers for neither."""
    return _identity(one) == _identity(other)


def _identity(order: Order) -> tuple[object, ...]:
    return (order.request_id, order.migration, order.segment, order.attempt, order.step, order.verb, order.epoch)
