"""What all tests share, and the lab of the tests that move real guests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cloud import Cloud


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, which is what the roles run on."""
    return "asyncio"


@pytest.fixture(scope="session")
def lab_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One lab of two hosts for each process that runs tests, quick to notice what does not answer."""
    from tests.cloud import Cloud
    from whimbrel.lab import Lab

    quick = {
        "agent": {"heartbeat_interval": 1, "stall_timeout": 5},
        "conductor": {"ask_after": 1.0, "shutdown_grace": 8},
    }
    lab = Lab.up(tmp_path_factory.mktemp("lab"), hosts=2, split=True, settings=quick)
    try:
        cloud = Cloud(lab)
        yield cloud
        cloud.close()
    finally:
        lab.down()


@pytest.fixture
def lab_guests(lab_cloud: Cloud) -> Iterator[Cloud]:
    """The lab for one test; afterwards it is mended, and must be as empty as before."""
    yield lab_cloud
    lab_cloud.heal()
