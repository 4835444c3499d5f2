"""A guest's definition: QEMU must probe nothing, and a move must change nothing that is not declared."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from whimbrel.agent.guests.xml import Host, as_kept, at_once, carried_definition, new_definition
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Disk, DiskRole, Guest, Image, Nic
from whimbrel.ops.settings import Agent

UUID = "0c5a6d1e-7b1c-4f67-9a55-1f9d2a4b8c10"
IMAGE = Image("image-1", "a" * 64, "qcow2", 1 << 20, 100)
DISKS = (Disk(0, DiskRole.ROOT, "qcow2", 1024, IMAGE.sha256), Disk(1, DiskRole.EPHEMERAL, "qcow2", 512))
GUEST = Guest(UUID, "a <server> & more", 1, 128, DISKS, (Nic("fa:16:3e:11:22:33", "10.0.0.7", 24, "net", mtu=1400),))


def host(instances: str = "/servers", *, direct: bool = True, **settings: str) -> Host:
    agent = Agent("h1", "192.0.2.1", instances, virt_type="qemu", cpu_model="qemu64", **settings)
    return Host(agent, Path(instances) / UUID, lambda path: direct)


def flat(definition: str) -> list[tuple[str, str | None, dict[str, str]]]:
    return [(element.tag, (element.text or "").strip(), element.attrib) for element in ET.fromstring(definition).iter()]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_every_disk_declares_its_format_and_its_whole_chain(format: str) -> None:
    definition = ET.fromstring(new_definition(GUEST, replace(IMAGE, format=format), host()))
    root, ephemeral = definition.findall("devices/disk")
    for disk in (root, ephemeral):
        driver = disk.find("driver")
        assert driver is not None and driver.get("type") == "qcow2"
    base = root.find("backingStore")
    assert base is not None and base.find("format").get("type") == format  # type: ignore[union-attr]
    assert base.find("source").get("file") == f"/servers/{UUID}/base-0"  # type: ignore[union-attr]
    for end in (base.find("backingStore"), ephemeral.find("backingStore")):
        assert end is not None and len(end) == 0 and not end.attrib


def test_a_root_disk_whose_base_is_not_named_is_refused() -> None:
    with pytest.raises(StepError, match="base image"):
        new_definition(GUEST, None, host())


def test_memory_that_is_taken_at_once_is_no_part_of_the_guest() -> None:
    made = new_definition(GUEST, IMAGE, host())
    running = at_once(made)
    assert ET.fromstring(running).find("memoryBacking/allocation[@mode='immediate']") is not None
    assert flat(as_kept(running, made)) == flat(made)
    own = made.replace("<vcpu>", "<memoryBacking><hugepages /></memoryBacking><vcpu>")
    assert flat(at_once(own)) == flat(own) == flat(as_kept(own, own))


def test_a_move_to_an_equal_host_changes_nothing() -> None:
    made = new_definition(GUEST, IMAGE, host())
    carried, rewrites = carried_definition(made, GUEST, GUEST, IMAGE, host())
    assert rewrites == [] and flat(carried) == flat(made)


def test_each_difference_of_the_target_host_is_rewritten_and_recorded() -> None:
    made = new_definition(GUEST, IMAGE, host())
    target = host("/elsewhere", direct=False, bridge="br1")
    carried, rewrites = carried_definition(made, GUEST, GUEST, IMAGE, target)
    assert rewrites == [
        f"directory /servers/{UUID} -> /elsewhere/{UUID}",
        "bridge br-guests -> br1",
        "disk-0 cache -> writeback",
        "disk-1 cache -> writeback",
    ]
    expected = made.replace("/servers/", "/elsewhere/").replace("br-guests", "br1")
    expected = expected.replace('cache="none" io="native"', 'cache="writeback"')
    assert sorted(map(str, flat(carried))) == sorted(map(str, flat(expected)))


def test_a_resize_changes_processors_memory_and_disks_and_says_so() -> None:
    old = replace(GUEST, disks=(*DISKS[:1], Disk(1, DiskRole.SWAP, "raw", 64)))
    new = replace(GUEST, vcpus=2, ram_mb=256, disks=(*DISKS, Disk(2, DiskRole.SWAP, "raw", 64)))
    carried, rewrites = carried_definition(new_definition(old, IMAGE, host()), old, new, IMAGE, host())
    assert rewrites == [
        "vcpus 1 -> 2",
        "memory 128 MiB -> 256 MiB",
        "disk-1 removed",
        "disk-1 (ephemeral) added",
        "disk-2 (swap) added",
    ]
    domain = ET.fromstring(carried)
    names = [(source.get("file") or "").rpartition("/")[2] for source in domain.findall("devices/disk/source")]
    assert names == ["disk-0", "disk-1", "disk-2"]
    assert domain.findtext("vcpu") == "2" and domain.findtext("memory") == "256"


def test_the_definition_of_another_server_is_refused() -> None:
    made = new_definition(GUEST, IMAGE, host()).replace(UUID, "11111111-2222-3333-4444-555555555555")
    with pytest.raises(StepError, match="not of server"):
        carried_definition(made, GUEST, GUEST, IMAGE, host())


def test_a_guest_with_uefi_gets_each_hosts_firmware_and_keeps_its_own_variables() -> None:
    guest = replace(GUEST, uefi=True)
    made = new_definition(guest, IMAGE, host())
    assert ET.fromstring(made).findtext("os/nvram") == f"/servers/{UUID}/firmware.vars"
    carried, rewrites = carried_definition(made, guest, guest, IMAGE, host())
    assert rewrites == [] and flat(carried) == flat(made)
    target = host("/elsewhere", firmware="/usr/share/edk2/code.fd")
    carried, rewrites = carried_definition(made, guest, guest, IMAGE, target)
    assert "firmware /usr/share/OVMF/OVMF_CODE_4M.fd -> /usr/share/edk2/code.fd" in rewrites
    assert flat(carried) == flat(new_definition(guest, IMAGE, target))
    bare = re.sub(r"<(loader|nvram)\b.*?</\1>", "", made)
    assert bare != made
    assert flat(carried_definition(bare, guest, guest, IMAGE, host())[0]) == flat(made), "whatever came with it"


def test_a_guest_with_uefi_boots_from_its_cdrom_too_so_that_ovmf_switches_on_what_its_config_drive_hangs_on() -> None:
    made = ET.fromstring(new_definition(replace(GUEST, uefi=True), IMAGE, host()))
    assert [boot.get("dev") for boot in made.findall("os/boot")] == ["hd", "cdrom"]


@pytest.mark.parametrize(
    "hostile",
    [
        "<nvram template='/etc/shadow'>/etc/passwd</nvram>",
        "<loader readonly='no' type='pflash'>/etc/shadow</loader>",
        "<nvram type='network'><source protocol='nbd' name='x'/></nvram>",
        "<firmware><feature enabled='no' name='secure-boot'/></firmware>",
    ],
)
def test_what_firmware_a_source_names_is_not_looked_at(hostile: str) -> None:
    guest = replace(GUEST, uefi=True)
    made = new_definition(guest, IMAGE, host())
    reach = made.replace("<os>", f"<os firmware='efi'>{hostile}")
    assert reach != made
    carried, _ = carried_definition(reach, guest, guest, IMAGE, host())
    assert flat(carried) == flat(made)


@pytest.mark.parametrize("model", ["tpm-crb", "tpm-tis"])
def test_a_guest_gets_the_tpm_that_was_asked_for_and_each_host_says_what_stands_behind_it(model: str) -> None:
    guest = replace(GUEST, tpm=model)
    made = new_definition(guest, IMAGE, host())
    (found,) = ET.fromstring(made).findall("devices/tpm")
    (backend,) = found
    assert (found.attrib, backend.attrib) == (
        {"model": model},
        {"type": "emulator", "version": "2.0", "persistent_state": "yes"},
    )
    carried, rewrites = carried_definition(made, guest, guest, IMAGE, host())
    assert flat(carried) == flat(made) and rewrites == []
    _, rewrites = carried_definition(new_definition(GUEST, IMAGE, host()), GUEST, guest, IMAGE, host())
    assert rewrites == [f"TPM none -> {model}"], "a resize may give it one"


@pytest.mark.parametrize(
    "hostile",
    [
        "<tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        "<tpm model='tpm-crb'><backend type='external'><source type='unix' path='/run/x'/></backend></tpm>",
        "<tpm model='tpm-tis'><backend type='emulator' version='1.2'><encryption secret='x'/></backend></tpm>",
        "<tpm/><tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='no'/></tpm>",
    ],
)
def test_what_tpm_a_source_names_is_not_looked_at(hostile: str) -> None:
    guest = replace(GUEST, tpm="tpm-crb")
    made = new_definition(guest, IMAGE, host())
    bare = new_definition(GUEST, IMAGE, host())
    reach = bare.replace("</devices>", f"{hostile}</devices>")
    carried, _ = carried_definition(reach, guest, guest, IMAGE, host())
    assert flat(carried) == flat(made)
    with pytest.raises(StepError, match=r"which (no server may|stays at its host)"):
        carried_definition(reach, GUEST, GUEST, IMAGE, host())


REACHES = {
    "another server's disk": ("disk-1", "../11111111-2222-3333-4444-555555555555/disk-0"),
    "a file of the host": (f"/servers/{UUID}/disk-1", "/etc/shadow"),
    "a console that overwrites a file": (f"/servers/{UUID}/console.log", "/etc/cron.d/x"),
    "another program": ("<devices>", "<devices><emulator>/tmp/qemu-x</emulator>"),
    "a program of another name": ("<devices>", "<devices><emulator>/usr/bin/python3</emulator>"),
    "QEMU's own command line": (
        "<devices>",
        '<c:commandline xmlns:c="http://libvirt.org/schemas/domain/qemu/1.0"><c:arg/></c:commandline><devices>',
    ),
    "a device of the host": ("<devices>", '<devices><hostdev mode="subsystem" type="pci"/>'),
    "a directory of the host": ("<devices>", '<devices><filesystem><source dir="/"/></filesystem>'),
    "a disk that is no file": ("<devices>", '<devices><disk type="block"><source dev="/dev/sda"/></disk>'),
    "a disk from anywhere": ("<devices>", '<devices><disk type="network"><source protocol="nbd" name="x"/></disk>'),
    "the host's network": ("<devices>", '<devices><interface type="direct"><source dev="eth0"/></interface>'),
    "a script": ('<interface type="bridge">', '<interface type="bridge"><script path="/tmp/x"/>'),
    "a kernel of the host": ("<os>", "<os><kernel>/boot/vmlinuz</kernel>"),
    "no confinement": ("<devices>", '<seclabel type="none"/><devices>'),
    "entropy that is none": ("/dev/urandom", "/dev/mem"),
    "a chain that its own header would name": ("<backingStore />", ""),
    "another layer": (f"/servers/{UUID}/base-0", f"/servers/{UUID}/disk-1"),
    "another format": ('type="qcow2" discard', 'type="raw" discard'),
    "a disk that the order does not have": (f"/servers/{UUID}/disk-1", f"/servers/{UUID}/disk-7"),
    "a console whose path begins where the hypervisor was started": (f"/servers/{UUID}/console.log", "etc/cron.d/x"),
    "a kernel that is found from there": ("<os>", "<os><kernel>boot/vmlinuz</kernel>"),
    "a program that is found from there": ("<devices>", "<devices><emulator>tmp/qemu-x</emulator>"),
    "a screen that anybody may look at": ("<devices>", '<devices><graphics type="vnc" port="5900"/>'),
    "a screen by its listener": (
        "<devices>",
        '<devices><graphics type="spice"><listen type="address" address="0.0.0.0"/></graphics>',
    ),
    "a way to another host": (
        "/dev/urandom</backend>",
        '<source mode="connect" host="10.0.0.9" service="5432"/></backend>',
    ),
    "a port that is opened on the host": (
        "/dev/urandom</backend>",
        '<source mode="bind" host="0.0.0.0" service="1234"/></backend>',
    ),
    "entropy from elsewhere": ('<backend model="random">/dev/urandom</backend>', '<backend model="egd" type="tcp"/>'),
    "a TPM, whose state would stay behind": ("<devices>", "<devices><tpm><backend type='emulator'/></tpm>"),
    "the host's firmware, to be written": (
        "<os>",
        '<os><loader readonly="no" type="pflash">/usr/share/OVMF/OVMF_CODE.fd</loader>',
    ),
    "firmware that the host is to choose": ("<os>", "<os firmware='efi'>"),
    "firmware's variables, which its order does not declare": ("<os>", f"<os><nvram>/servers/{UUID}/vars.fd</nvram>"),
    "the host's firmware, as its variables": ("<os>", "<os><nvram>/usr/share/OVMF/OVMF_CODE.fd</nvram>"),
    "another server's directory by its own name": (f"/servers/{UUID}/console.log", f"/servers/{UUID}"),
    "whatever an address names": ("<os>", "<os><nvram type='network'><source protocol='nbd' name='x'/></nvram>"),
}


@pytest.mark.parametrize("what", REACHES)
def test_a_definition_that_reaches_beyond_its_server_is_refused(what: str) -> None:
    made = "".join(line.strip() for line in new_definition(GUEST, IMAGE, host()).splitlines())
    reach = made.replace(*REACHES[what])
    assert reach != made
    with pytest.raises(StepError, match="definition that came to h1"):
        carried_definition(reach, GUEST, GUEST, IMAGE, host())


def test_what_libvirt_and_firmware_add_to_a_definition_comes_along() -> None:
    more = (
        '<metadata><x:y xmlns:x="urn:z">/etc/motd</x:y></metadata><resource><partition>/machine</partition></resource>'
        '<seclabel type="dynamic" model="apparmor" relabel="yes"/>'
        "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><input type='mouse' bus='ps2'/>"
    )
    made = new_definition(GUEST, IMAGE, host()).replace("<devices>", more)
    made = made.replace("<os>", "<os><loader>/usr/share/seabios/bios.bin</loader>")
    carried, rewrites = carried_definition(made, GUEST, GUEST, IMAGE, host())
    assert rewrites == [] and "bios.bin" in carried and "/etc/motd" in carried
