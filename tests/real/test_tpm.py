"""Guests with a TPM: what it remembers is where they are, however they moved, and nowhere else."""

from __future__ import annotations

import re

import pytest

from tests.cloud import Cloud, Server
from tests.real.test_live import goes_on, verify_at_next_boot
from whimbrel.agent.disks.frames import TPM_STATE
from whimbrel.lab import guest

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def counted(server: Server, host: str) -> list[int]:
    """Return how often the guest had booted by the counter in its TPM, at each boot on a host."""
    return [int(number) for number in re.findall(r"WRITER TPM boots=(\d+)", server.console(host))]


def held(cloud: Cloud, server: Server) -> dict[str, list[str]]:
    """Return where what the TPM remembers lies, on each host: with libvirt, or in a directory of the server."""
    return {
        host: [path.parent.name for path in cloud.tpms(host).glob(f"{server.id}/tpm2/*.permall")]
        + [path.parent.name.removeprefix(server.id) for path in cloud.instances(host).glob(f"*/{TPM_STATE}")]
        for host in cloud.lab.hosts
    }


def test_what_the_tpm_remembers_goes_where_the_guest_goes_and_stays_nowhere_else(cloud: Cloud) -> None:
    image = cloud.upload("tpm", guest.image().read_bytes(), hw_tpm_version="2.0")
    server = cloud.create(image=image)
    assert counted(server, "h1") == [1] and held(cloud, server) == {"h1": ["tpm2"], "h2": []}
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    assert counted(server, "h2") == [2]
    assert server.steps()["precopy"]["mark"] == "done" and TPM_STATE in server.fact("copy_disks", "disks")
    sealed = held(cloud, server)
    assert sealed["h2"] == ["tpm2"] and len(sealed["h1"]) == 1 and sealed["h1"][0].startswith(".sealed-")
    server.confirm()
    cloud.assert_tidy({server: "h2"})
    server.migrate_live()
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "completed", server.told()
    goes_on(server, "h1")
    cloud.assert_tidy({server: "h1"})
    assert held(cloud, server) == {"h1": ["tpm2"], "h2": []}
    verify_at_next_boot(server, "h1")
    assert counted(server, "h1") == [3], "its memory brought it along"
    server.stop_first()
    server.migrate()
    server.wait("VERIFY_RESIZE")
    server.wait_to_write("h2")
    assert counted(server, "h2") == [4]
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert counted(server, "h1") == [3, 4], "the target's went with the target's copy"
    cloud.assert_tidy({server: "h1"})
    assert held(cloud, server) == {"h1": ["tpm2"], "h2": []}
    server.delete()
    cloud.assert_tidy({})
    cloud.delete_image(image)
