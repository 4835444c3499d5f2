"""The schema's versions (Alembic), brought up to date by `whimbrel db upgrade`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select, text

from whimbrel.domain.errors import SettingsError
from whimbrel.store.engine import Store

_UPGRADE_LOCK = 0x77686D61


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(store: Store) -> str:
    """Bring the database to this release's schema, from whatever version it is at; return that version."""
    config = _config()

    def run(tx: Connection) -> None:
        if tx.dialect.name == "postgresql":
            # Rewriting a large table takes its time, and two upgrades at once take turns.
            tx.execute(text("SET LOCAL statement_timeout = 0"))
            tx.execute(text("SET LOCAL lock_timeout = 0"))
            tx.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        config.attributes["connection"] = tx
        command.upgrade(config, "head")

    store.write_now(run)
    return newest()


def newest() -> str:
    """Return the version that this release needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def check(store: Store) -> None:
    """Raise SettingsError when the database is not at this release's schema."""
    current = store.read_now(lambda tx: MigrationContext.configure(tx).get_current_revision())
    if current != newest():
        raise SettingsError(
            f"The database is at schema {current or 'none'}, this release needs {newest()}; run `whimbrel db upgrade`."
        )
