"""Guests with a TPM: what it remembers is where they are, however they moved, and nowhere else."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.cloud import Cloud, Server, wait_for
from tests.fault.midway import assert_back
from tests.fault.test_guests import qemu_replaced
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


def asked_again(server: Server, host: str) -> list[int]:
    """Return what the TPM said on the guest's ways down on a host, after whatever had been done to it meanwhile."""
    return [int(number) for number in re.findall(r"WRITER TPM still=(\d+)", server.console(host))]


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
    assert counted(server, "h1") == [3] and asked_again(server, "h1") == [2], "its memory brought it along"
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


def test_a_tpm_outlives_reboots_power_cuts_and_moves_that_fail(cloud: Cloud) -> None:
    """This one by the words of its flavor, in a guest with UEFI, whose firmware uses the TPM too."""
    flavor = cloud.flavor("with-tpm", vcpus=1, ram=256, disk=1)
    cloud.post(
        f"/flavors/{flavor}/os-extra_specs", {"extra_specs": {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-tis"}}
    )
    image = cloud.upload("uefi", guest.image("uefi").read_bytes(), hw_firmware_type="uefi")
    server = cloud.create(flavor="with-tpm", image=image)
    assert "<tpm model='tpm-tis'>" in cloud.lab.host("h1").exec(["virsh", "dumpxml", server.id]).stdout
    with qemu_replaced(cloud, "h2", "exit 1"):
        server.migrate()
        assert_back(cloud, server)
    assert counted(server, "h1") == [1, 2] and held(cloud, server) == {"h1": ["tpm2"], "h2": []}
    cloud.lab.limit("h2", "40mbit")
    server.migrate_live()
    server.at_step("move_memory", "doing")
    cloud.lab.kill("libvirtd", "h2")
    cloud.lab.start("libvirtd", "h2")
    cloud.lab.limit("h2", None)
    server.wait("ACTIVE")
    home = server.show()["OS-EXT-SRV-ATTR:host"]
    goes_on(server, home)
    cloud.assert_tidy({server: home})
    boots = len(server.boots(home))
    server.act("reboot", {"type": "HARD"})
    server.wait_to_write(home, boots + 1)
    assert counted(server, home)[-1] == 3
    cloud.lab.host(home).crash()
    cloud.lab.host(home).boot()
    server.wait_to_write(home, boots + 2)
    server.assert_nothing_lost(home)
    assert counted(server, home)[-1] == 4
    server.delete()
    cloud.delete_image(image)
    cloud.delete(f"/flavors/{flavor}")


def test_a_live_move_that_fails_when_all_of_the_memory_has_crossed_leaves_the_tpm_in_use(cloud: Cloud) -> None:
    image = cloud.upload("tpm", guest.image().read_bytes(), hw_tpm_version="2.0")
    server = cloud.create(image=image)
    target = cloud.lab.host("h2")
    cloud.lab.limit("h2", "40mbit")
    server.migrate_live()
    server.at_step("move_memory", "doing")
    agent = target.find("agent")
    assert agent is not None
    os.kill(agent, signal.SIGSTOP)
    cloud.lab.limit("h2", None)
    server.at_step("move_memory", "done")
    target.kill_guests(server.id)
    os.kill(agent, signal.SIGCONT)
    server.wait("ACTIVE")
    assert server.migration()["outcome"] == "error" and server.steps()["hand_over"]["mark"] == "undone", server.told()
    goes_on(server, "h1")
    cloud.assert_tidy({server: "h1"})
    verify_at_next_boot(server, "h1")
    assert counted(server, "h1") == [1, 2] and asked_again(server, "h1") == [1]
    server.delete()
    cloud.delete_image(image)


def test_a_tpm_that_is_lost_is_not_made_anew(cloud: Cloud) -> None:
    image = cloud.upload("tpm", guest.image().read_bytes(), hw_tpm_version="2.0")
    server = cloud.create(image=image)
    server.act("os-stop")
    server.wait("SHUTOFF")
    file = cloud.tpms("h1") / server.id / "tpm2" / "tpm2-00.permall"
    backup = file.read_bytes()
    file.unlink()
    server.act("os-start")
    wait_for("the start to fail", lambda: "would have lost its keys" in server.told())
    server.wait("SHUTOFF")
    (cloud.instances("h1") / server.id / TPM_STATE).write_bytes(backup)
    server.act("os-start")
    server.wait("ACTIVE")
    server.wait_to_write("h1", boots=2)
    assert counted(server, "h1") == [1, 2] and held(cloud, server) == {"h1": ["tpm2"], "h2": []}
    server.delete()
    cloud.delete_image(image)
