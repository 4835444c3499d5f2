"""The way to the database: one writer thread on SQLite, a pool on PostgreSQL, functions over a connection.

SQLite runs in WAL mode with `synchronous=FULL`, and a writing transaction begins with BEGIN IMMEDIATE, because one
that reads first and writes later fails at once when another has written in between, whatever the busy timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from whimbrel.domain.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
READERS = 4

_encode = msgspec.json.Encoder().encode


class Store:
    """One database. `write` and `read` run `function(connection, ...)` in a thread and return its result."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._sqlite = url.startswith("sqlite")
        json = {
            "json_serializer": lambda value: _encode(value).decode(),
            "json_deserializer": msgspec.json.decode,
        }
        self._engine = self._make_engine(json)
        self._writers = ThreadPoolExecutor(1 if self._sqlite else READERS, thread_name_prefix="store-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    def _make_engine(self, json: dict[str, Any]) -> Engine:
        if not self._sqlite:
            return create_engine(self.url, pool_size=2 * READERS, pool_pre_ping=True, **json)
        connect = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
        engine = create_engine(self.url, pool_size=READERS + 2, connect_args=connect, **json)
        event.listen(engine, "connect", _sqlite_pragmas)
        return engine

    def write_now(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a writing transaction in this thread; it is on the disk when this returns."""
        with self._engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                result = function(connection, *args, **kwargs)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return result

    def read_now(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a reading transaction in this thread."""
        with self._engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN")
            result = function(connection, *args, **kwargs)
            connection.rollback()
            return result

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a writing transaction in a writer thread; raise Unavailable when the database does not answer."""
        return await self._hop(self._writers, lambda: self.write_now(function, *args, **kwargs))

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a reading transaction in a reader thread; raise Unavailable when the database does not answer."""
        return await self._hop(self._readers, lambda: self.read_now(function, *args, **kwargs))

    async def _hop(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except OperationalError as error:
            raise Unavailable(f"The database does not answer: {error.orig}. Try again.") from error

    def close(self) -> None:
        """Finish what runs and close every connection."""
        self._writers.shutdown()
        self._readers.shutdown()
        self._engine.dispose()


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    """Leave BEGIN to us, and choose durability over speed."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
