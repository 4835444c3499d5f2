"""Every test of the store runs on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import ENGINES, fresh
from whimbrel.store.engine import Store


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Name the engine."""
    return str(request.param)


@pytest.fixture
def store(engine: str, tmp_path: Path) -> Iterator[Store]:
    """Give an empty database of this release's schema to one test."""
    made = fresh(engine, tmp_path)
    yield made
    made.close()
