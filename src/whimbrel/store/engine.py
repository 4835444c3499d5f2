"""The way to the database: one writer thread on SQLite, a pool on PostgreSQL, functions over a connection.

SQLite runs in WAL mode with `synchronous=FULL`, and a writing transaction begins with BEGIN IMMEDIATE, because one
that reads first and writes later fails at once when another has written in between, whatever the busy timeout.

PostgreSQL writes at READ COMMITTED under row locks, which every writing function takes before it reads what it
decides on, and reads from one snapshot. No wait is without a bound there: for a lock, for a statement, for a client
that has died in a transaction, for a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from whimbrel.domain.errors import Invalid, Unavailable
from whimbrel.ops import clock
from whimbrel.ops.metrics import store_lock_wait, store_retries
from whimbrel.store.retries import TRIES, LostRace, pause_before, reason_of

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
READERS = 4
POOL_WAIT = 10.0

LOCK_TIMEOUT_MS = 3_000
STATEMENT_TIMEOUT_MS = 15_000
IDLE_TIMEOUT_MS = 15_000
CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "options": f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS} "
    f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}",
}
"""PostgreSQL's bounds for every session, in seconds and, in the options, milliseconds."""

_encode = msgspec.json.Encoder().encode


class Store:
    """One database. `write` and `read` run `function(connection, ...)` in a thread and return its result.

    A writing function may be run several times, so it changes nothing but the database.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._sqlite = url.startswith("sqlite")
        json = {
            "json_serializer": lambda value: _encode(value).decode(),
            "json_deserializer": msgspec.json.decode,
        }
        self._engine = self._make_engine(json)
        self._reading = self._engine if self._sqlite else _snapshots(self._engine)
        self._writers = ThreadPoolExecutor(1 if self._sqlite else READERS, thread_name_prefix="store-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    def _make_engine(self, json: dict[str, Any]) -> Engine:
        if not self._sqlite:
            pool = {"pool_size": 2 * READERS, "pool_timeout": POOL_WAIT, "pool_pre_ping": True}
            engine = create_engine(self.url, connect_args=CONNECT, **pool, **json)
            event.listen(engine, "before_cursor_execute", _note_begin)
            event.listen(engine, "after_cursor_execute", _note_lock_wait)
            return engine
        connect = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
        engine = create_engine(self.url, pool_size=READERS + 2, connect_args=connect, **json)
        event.listen(engine, "connect", _sqlite_pragmas)
        return engine

    def write_now(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a writing transaction in this thread; it is on the disk when this returns.

        What two writers do to each other (a deadlock, a lock that is held too long, a race that was lost) is run
        again, TRIES times at most; then, and when the database is away, it is Unavailable.
        """
        return self._write(lambda tx: function(tx, *args, **kwargs), clock.monotonic())

    def read_now(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a reading transaction in this thread; everything that it reads is of one moment."""
        try:
            with self._reading.connect() as connection:
                if self._sqlite:
                    connection.exec_driver_sql("BEGIN")
                result = function(connection, *args, **kwargs)
                connection.rollback()
                return result
        except (DBAPIError, PoolTimeout) as error:
            raise _in_words(error) from error

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a writing transaction in a writer thread, as `write_now` does."""
        asked = clock.monotonic()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._writers, lambda: self._write(lambda tx: function(tx, *args, **kwargs), asked)
        )

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a reading transaction in a reader thread, as `read_now` does."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self.read_now(function, *args, **kwargs))

    def close(self) -> None:
        """Finish what runs and close every connection."""
        self._writers.shutdown()
        self._readers.shutdown()
        self._engine.dispose()

    def _write(self, function: Callable[[Connection], T], asked: float) -> T:
        """Run it, and again as long as that makes sense; `asked` is since when it waits for its turn."""
        for run in range(TRIES):
            if run:
                Event().wait(pause_before(run))
            attempt = _Attempt(self._engine, begin_immediate=self._sqlite)
            try:
                return attempt.run(function, asked)
            except (DBAPIError, LostRace, PoolTimeout) as error:
                reason = reason_of(error, committing=attempt.committing)
                if reason is None:
                    raise _in_words(error) from error
                store_retries.labels(reason).inc()
                last = error
        raise Unavailable(f"Other writers were first {TRIES} times in a row ({reason}). Try again.") from last


class _Attempt:
    """One run of a writing transaction, and whether it had come to its COMMIT."""

    def __init__(self, engine: Engine, *, begin_immediate: bool) -> None:
        self._engine = engine
        self._begin_immediate = begin_immediate
        self.committing = False

    def run(self, function: Callable[[Connection], T], asked: float) -> T:
        with self._engine.connect() as connection:
            if self._begin_immediate:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            store_lock_wait.labels("turn").observe(clock.monotonic() - asked)
            try:
                result = function(connection)
                self.committing = True
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return result


def _in_words(error: Exception) -> Exception:
    """Return what the caller is to be told; an error that can only be a defect of ours stays as it is."""
    if isinstance(error, PoolTimeout):
        return Unavailable(f"No connection to the database was free for {POOL_WAIT:g} s. Try again.")
    if isinstance(error, OperationalError | InterfaceError):
        return Unavailable(f"The database does not answer: {error.orig}. Try again.")
    if isinstance(error, DataError):
        return Invalid(f"The database cannot hold a value of this request: {str(error.orig).splitlines()[0]}")
    return error


def _snapshots(engine: Engine) -> Engine:
    """Return the same pool for reading: what one function reads is of one moment, and it cannot write."""
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _note_begin(
    connection: Connection, cursor: object, statement: str, parameters: object, context: Any, many: bool
) -> None:
    connection.info["statement began"] = clock.monotonic()


def _note_lock_wait(
    connection: Connection, cursor: object, statement: str, parameters: object, context: Any, many: bool
) -> None:
    """Measure the statements that wait for rows; without a rival they take well under the smallest bucket."""
    if statement.startswith(("UPDATE", "DELETE")) or " FOR UPDATE" in statement:
        store_lock_wait.labels("rows").observe(clock.monotonic() - connection.info["statement began"])


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    """Leave BEGIN to us, and choose durability over speed."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
