"""Virtual time must not leak from one test into another."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from whimbrel.ops import clock


@pytest.fixture(autouse=True)
def real_clock() -> Iterator[None]:
    """Put the real clock back after each test."""
    real = clock.now
    yield
    clock.now = real


@pytest.fixture(autouse=True)
def silent_log() -> Iterator[None]:
    """A test delivers thousands of messages, and nobody reads what the conductor logs of each."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
