"""Virtual time must not leak from one test into another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from whimbrel.ops import clock


@pytest.fixture(autouse=True)
def real_clock() -> Iterator[None]:
    """Put the real clock back after each test."""
    real = clock.now
    yield
    clock.now = real
