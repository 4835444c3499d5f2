"""A fresh database for a test, on either engine; one PostgreSQL serves all tests of a process."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.fakecloud import free_port
from whimbrel.lab.database import Database
from whimbrel.store import schema
from whimbrel.store.engine import Store

ENGINES = ("sqlite", "postgresql")
TEMPLATE = "whimbrel_template"

_numbers = itertools.count(1)


@cache
def server() -> Database:
    """Start PostgreSQL at the first call; it ends with this process."""
    home = Path(tempfile.mkdtemp(prefix="whimbrel-test-"))
    home.chmod(0o711)  # PostgreSQL's own user passes through
    database = Database(home / "pg", "127.0.0.1", free_port(), user="whimbrel", password="w", durable=False)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    atexit.register(database.stop)
    database.start()
    return database


@cache
def _template() -> str:
    """Make a database at the newest schema once; each test then gets a copy."""
    store = Store(server().create(TEMPLATE))
    schema.upgrade(store)
    store.close()
    return TEMPLATE


@cache
def _template_file() -> Path:
    """Make a SQLite file at the newest schema once."""
    home = Path(tempfile.mkdtemp(prefix="whimbrel-test-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    store = Store(f"sqlite:///{home}/template.db")
    schema.upgrade(store)
    store.close()
    return home / "template.db"


def empty_url(engine: str, folder: Path) -> str:
    """Return the address of a database without tables."""
    if engine == "sqlite":
        return f"sqlite:///{folder}/whimbrel-{next(_numbers)}.db"
    return server().create(f"t{next(_numbers)}")


def fresh(engine: str, folder: Path) -> Store:
    """Open a database at the newest schema with nothing in it."""
    if engine == "postgresql":
        return Store(server().create(f"t{next(_numbers)}", _template()))
    file = folder / f"whimbrel-{next(_numbers)}.db"
    shutil.copy(_template_file(), file)
    return Store(f"sqlite:///{file}")
