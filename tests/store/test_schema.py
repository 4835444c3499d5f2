"""The versions, run one after the other, make what `store/tables.py` says, on both engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from tests.databases import empty_url
from whimbrel.domain.errors import SettingsError
from whimbrel.store import schema
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata


def test_the_versions_make_the_tables(store: Store) -> None:
    def differences(tx: Connection) -> list[object]:
        context = MigrationContext.configure(tx, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    assert store.read_now(differences) == []


def test_an_upgrade_of_what_is_new_changes_nothing(store: Store) -> None:
    assert schema.upgrade(store) == schema.upgrade(store) == schema.newest()
    schema.check(store)


def test_a_database_without_a_schema_is_refused(engine: str, tmp_path: Path) -> None:
    store = Store(empty_url(engine, tmp_path))
    with pytest.raises(SettingsError, match="run `whimbrel db upgrade`"):
        schema.check(store)
    schema.upgrade(store)
    schema.check(store)
    store.close()
