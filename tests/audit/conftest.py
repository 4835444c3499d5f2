"""One cloud of real processes without hypervisors for the tests that make it drift."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.audit.drifting import Drifting
from tests.fakecloud import FakeCloud


@pytest.fixture(scope="module")
def cloud() -> Iterator[Drifting]:
    """Start a cloud of three hosts."""
    with FakeCloud(hosts=3) as fake:
        yield Drifting(fake)
