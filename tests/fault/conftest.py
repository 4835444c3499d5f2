"""What the fault tests share: a lab that is mended after each of them."""

from __future__ import annotations

import pytest

from tests.cloud import Cloud


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests
