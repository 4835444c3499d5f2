"""Guests that boot by UEFI: what their firmware remembers is where they are, however they moved."""

from __future__ import annotations

import re

import pytest

from tests.cloud import Cloud, Server
from tests.real.test_live import goes_on, verify_at_next_boot
from whimbrel.agent.disks.frames import VARIABLES
from whimbrel.lab import guest

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def counted(server: Server, host: str) -> list[int]:
    """Return how often the guest had booted by its firmware's variables, at each boot on a host."""
    return [int(number) for number in re.findall(r"WRITER FIRMWARE uefi boots=(\d+)", server.console(host))]


def test_what_the_firmware_remembers_goes_where_the_guest_goes(cloud: Cloud) -> None:
    image = cloud.upload("uefi", guest.image("uefi").read_bytes(), hw_firmware_type="uefi")
    server = cloud.create(flavor="medium", image=image)
    assert counted(server, "h1") == [1] and "WRITER NET" in server.console("h1"), "it found its config drive"
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    assert counted(server, "h2") == [2]
    assert server.steps()["precopy"]["mark"] == "done" and VARIABLES in server.fact("copy_disks", "disks")
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert counted(server, "h1") == [1, 2], "the target's variables went with the target's copy"
    server.migrate_live()
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "completed", server.told()
    goes_on(server, "h2")
    cloud.assert_tidy({server: "h2"})
    verify_at_next_boot(server, "h2")
    assert counted(server, "h2") == [3]
    cloud.delete_image(image)
