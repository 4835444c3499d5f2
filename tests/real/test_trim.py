"""What a guest has trimmed away of its image reads as zeros, and not as the image again, however the server moves."""

from __future__ import annotations

import re

import pytest

from tests.cloud import Cloud, Server
from tests.real.test_live import goes_on, verify_at_next_boot

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def found(server: Server, host: str) -> list[str]:
    """Return what the guest found in the trimmed place, at each boot on a host."""
    looks = re.findall(r"WRITER TRIM before=(\w+) after=(\w+)", server.console(host))
    assert {after for _, after in looks} == {"zeros"}, looks
    return [before for before, _ in looks]


def test_what_a_guest_has_trimmed_of_its_image_stays_zeros_however_it_moves(cloud: Cloud) -> None:
    server = cloud.create("trim=1")
    assert found(server, "h1") == ["image"]
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    assert server.steps()["precopy"]["mark"] == "done"
    assert found(server, "h2") == ["zeros"]
    server.confirm()
    server.migrate_live()
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "completed", server.told()
    goes_on(server, "h1")
    verify_at_next_boot(server, "h1")
    assert found(server, "h1") == ["zeros"]
    server.stop_first()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    assert found(server, "h2") == ["zeros"]
    server.revert()
    server.wait_to_write("h1", boots=2)
    assert found(server, "h1") == ["zeros", "zeros"]
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})
