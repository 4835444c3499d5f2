"""What unit tests share: a small cloud behind its HTTP API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.cloud import Cloud, open_cloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    """Give a fresh cloud to one test."""
    async with open_cloud(tmp_path) as cloud:
        yield cloud
