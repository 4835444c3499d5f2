"""What unit tests share: a small cloud behind its HTTP API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.databases import ENGINES
from tests.unit.cloud import Cloud, open_cloud


@pytest.fixture(params=ENGINES)
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloud]:
    """Give a fresh cloud to one test, once on each database engine."""
    async with open_cloud(tmp_path, request.param) as cloud:
        yield cloud
