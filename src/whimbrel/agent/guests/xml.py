"""A guest's definition for libvirt: made anew in a build or a hard reboot, carried with declared rewrites in a move.

The whole chain of each disk is written out with its formats, so that QEMU probes nothing.
"""

from __future__ import annotations

import platform
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whimbrel.agent.console import CONSOLE
from whimbrel.agent.disks.frames import CONFIG_DRIVE, VARIABLES
from whimbrel.agent.disks.qcow2 import BASE
from whimbrel.agent.guests.borders import refuse_reach
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Disk, Guest, Image, Nic
from whimbrel.domain.tpm import VERSION
from whimbrel.ops.settings import Agent


@dataclass(frozen=True)
class Host:
    """What a definition takes from the host: settings, the server's directory, and which files bypass its cache."""

    settings: Agent
    directory: Path
    is_direct: Callable[[Path], bool]


def domain_name(server: str) -> str:
    """Return the name under which the hypervisor knows a server."""
    return f"whimbrel-{server}"


def new_definition(guest: Guest, image: Image | None, host: Host) -> str:
    """Return the definition of a guest that is made anew."""
    settings = host.settings
    domain = ET.Element("domain", type=settings.virt_type)
    _text(domain, "name", domain_name(guest.uuid))
    _text(domain, "uuid", guest.uuid)
    _text(domain, "memory", str(guest.ram_mb), unit="MiB")
    _text(domain, "vcpu", str(guest.vcpus))
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch=platform.machine(), machine=settings.machine)
    ET.SubElement(system, "boot", dev="hd")
    if guest.uefi:
        ET.SubElement(system, "boot", dev="cdrom")  # or OVMF leaves its controller off, and with it the config drive
        _give_firmware(domain, host)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    domain.append(_cpu(settings.cpu_model))
    ET.SubElement(domain, "clock", offset="utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    power = ET.SubElement(domain, "pm")
    ET.SubElement(power, "suspend-to-mem", enabled="no")  # a sleeping guest hears no request to stop
    ET.SubElement(power, "suspend-to-disk", enabled="no")
    domain.append(_devices(guest, image, host))
    return _written(domain)


def carried_definition(
    definition: str, old: Guest, new: Guest, image: Image | None, host: Host
) -> tuple[str, list[str]]:
    """Return the definition that came with a move, fitted to this host, and each rewrite in words.

    Raise StepError if it cannot be read, is another server's, or reaches for what is not the server's.
    """
    domain = _parsed(definition, new.uuid)
    rewrites: list[str] = []
    kind = domain.get("type")
    if kind != host.settings.virt_type:
        domain.set("type", host.settings.virt_type)
        rewrites.append(f"domain type {kind} -> {host.settings.virt_type}")
    rewrites += _resize(domain, new)
    rewrites += _change_disks(domain, old, new, image, host)
    rewrites += _move_files(domain, new.uuid, host)
    for source in domain.findall("devices/interface[@type='bridge']/source"):
        bridge = source.get("bridge")
        if bridge != host.settings.bridge:
            source.set("bridge", host.settings.bridge)
            rewrites.append(f"bridge {bridge} -> {host.settings.bridge}")
    rewrites += _fit_cache(domain, host)
    came_with = _take_firmware(domain) if new.uefi else None
    had = _take_tpms(domain) if new.tpm else []
    refuse_reach(domain, host.directory, host.settings.host)
    _refuse_chains(domain, new, image, host)
    if new.uefi:
        _give_firmware(domain, host)
        if came_with != host.settings.firmware:
            rewrites.append(f"firmware {came_with} -> {host.settings.firmware}")
    if new.tpm:
        _devices_of(domain).append(_tpm(new.tpm))
        if had != [new.tpm]:
            rewrites.append(f"TPM {', '.join(had) or 'none'} -> {new.tpm}")
    return _written(domain), rewrites


def at_once(definition: str) -> str:
    """Return the definition of a process that takes all of its guest's memory as it starts, if it says nothing else."""
    domain = ET.fromstring(definition)
    if domain.find("memoryBacking") is None:
        ET.SubElement(ET.SubElement(domain, "memoryBacking"), "allocation", mode="immediate")
    return _written(domain)


def as_kept(running: str, kept: str) -> str:
    """Return a running guest's definition without what only its process got from `at_once`."""
    domain = ET.fromstring(running)
    backing = domain.find("memoryBacking")
    if backing is not None and ET.fromstring(kept).find("memoryBacking") is None:
        domain.remove(backing)
    return _written(domain)


def _devices(guest: Guest, image: Image | None, host: Host) -> ET.Element:
    devices = ET.Element("devices")
    for disk in guest.disks:
        devices.append(_disk(disk, image, host))
    if (host.directory / CONFIG_DRIVE).exists():
        devices.append(_config_drive(host))
    for nic in guest.nics:
        devices.append(_interface(nic, host.settings.bridge))
    ET.SubElement(devices, "controller", type="usb", index="0", model="none")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(host.directory / CONSOLE), append="on")
    ET.SubElement(serial, "target", port="0")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    entropy = ET.SubElement(devices, "rng", model="virtio")
    _text(entropy, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "panic", model="isa")
    ET.SubElement(devices, "memballoon", model="none")
    if guest.tpm:
        devices.append(_tpm(guest.tpm))
    return devices


def _disk(disk: Disk, image: Image | None, host: Host) -> ET.Element:
    path = host.directory / disk.name
    element = ET.Element("disk", type="file", device="disk")
    driver = ET.SubElement(element, "driver", name="qemu", type=disk.format, discard="unmap")
    _set_cache(driver, host.is_direct(path))
    ET.SubElement(element, "source", file=str(path))
    chain = ET.SubElement(element, "backingStore")
    if disk.base is not None:
        if image is None:
            raise StepError(f"{disk.name} stands on base image {disk.base[:12]}..., which the order does not name.")
        chain.set("type", "file")
        ET.SubElement(chain, "format", type=image.format)
        ET.SubElement(chain, "source", file=str(host.directory / BASE))
        ET.SubElement(chain, "backingStore")
    ET.SubElement(element, "target", dev=f"vd{chr(ord('a') + disk.index)}", bus="virtio")
    return element


def _config_drive(host: Host) -> ET.Element:
    bus = "sata" if "q35" in host.settings.machine else "ide"
    element = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", file=str(host.directory / CONFIG_DRIVE))
    ET.SubElement(element, "backingStore")
    ET.SubElement(element, "target", dev="sda" if bus == "sata" else "hda", bus=bus)
    ET.SubElement(element, "readonly")
    return element


def _interface(nic: Nic, bridge: str) -> ET.Element:
    element = ET.Element("interface", type="bridge")
    ET.SubElement(element, "mac", address=nic.mac)
    ET.SubElement(element, "source", bridge=bridge)
    ET.SubElement(element, "model", type="virtio")
    ET.SubElement(element, "mtu", size=str(nic.mtu))
    return element


def _tpm(model: str) -> ET.Element:
    element = ET.Element("tpm", model=model)
    # Else libvirt would remove what it remembers whenever somebody undefines the guest by hand.
    ET.SubElement(element, "backend", type="emulator", version=VERSION, persistent_state="yes")
    return element


def has_tpm(definition: str | None) -> bool:
    """Return whether the guest of this definition has a TPM."""
    return definition is not None and ET.fromstring(definition).find("devices/tpm") is not None


def _take_tpms(domain: ET.Element) -> list[str]:
    """Take the TPMs out of a definition, whatever stands behind them on the source; return their models."""
    devices = _devices_of(domain)
    found = devices.findall("tpm")
    for element in found:
        devices.remove(element)
    return [element.get("model", "one without a model")[:80] for element in found]


def _cpu(model: str) -> ET.Element:
    if model.startswith("host-"):
        return ET.Element("cpu", mode=model)
    element = ET.Element("cpu", mode="custom", match="exact", check="none")
    _text(element, "model", model, fallback="forbid")
    return element


def _resize(domain: ET.Element, new: Guest) -> list[str]:
    """Give the definition the guest's processors and memory."""
    rewrites = []
    vcpu = domain.find("vcpu")
    if vcpu is not None and vcpu.text != str(new.vcpus):
        rewrites.append(f"vcpus {vcpu.text} -> {new.vcpus}")
        vcpu.text = str(new.vcpus)
        vcpu.attrib.pop("current", None)
    memory = domain.find("memory")
    if memory is not None and _mib(memory) != new.ram_mb:
        rewrites.append(f"memory {_mib(memory):g} MiB -> {new.ram_mb} MiB")
        for element in (memory, domain.find("currentMemory")):
            if element is not None:
                element.set("unit", "MiB")
                element.text = str(new.ram_mb)
    return rewrites


def _change_disks(domain: ET.Element, old: Guest, new: Guest, image: Image | None, host: Host) -> list[str]:
    """Add and take away the disks in which the new flavor differs."""
    devices = _devices_of(domain)
    rewrites = []
    before = {disk.name: (disk.role, disk.format) for disk in old.disks}
    after = {disk.name: (disk.role, disk.format) for disk in new.disks}
    for element in devices.findall("disk"):
        name = _file_name(element)
        if name in before and before[name] != after.get(name):
            devices.remove(element)
            rewrites.append(f"{name} removed")
    for disk in new.disks:
        if before.get(disk.name) != after[disk.name]:
            devices.append(_disk(disk, image, host))
            rewrites.append(f"{disk.name} ({disk.role}) added")
    return rewrites


def _refuse_chains(domain: ET.Element, new: Guest, image: Image | None, host: Host) -> None:
    """Raise StepError unless each disk is the server's and names its whole chain, as the order declares it.

    Where a chain is not named to its end, the rest would be what a header says that another host has written.
    """
    declared = {disk.name: _chain(_disk(disk, image, host)) for disk in new.disks}
    declared[CONFIG_DRIVE] = _chain(_config_drive(host))
    for element in _devices_of(domain).findall("disk"):
        name = _file_name(element) or "one without a file"
        if _chain(element) != declared.get(name):
            raise StepError(
                f"The definition that came to {host.settings.host} has a disk, {name}, that is not as its order "
                f"declares it: {_chain(element)}; a hard reboot mends it."
            )


def _chain(disk: ET.Element) -> list[tuple[str | None, str | None]]:
    """Return format and file of each layer of a disk, top first; a layer of None ends a chain that is left open."""
    driver, source = disk.find("driver"), disk.find("source")
    layers = [(_get(driver, "type"), _get(source, "file"))]
    below = disk.find("backingStore")
    while below is not None and len(below):
        layers.append((_get(below.find("format"), "type"), _get(below.find("source"), "file")))
        below = below.find("backingStore")
    return layers if below is not None else [*layers, (None, None)]


def _get(element: ET.Element | None, attribute: str) -> str | None:
    return None if element is None else element.get(attribute)


def _move_files(domain: ET.Element, server: str, host: Host) -> list[str]:
    """Point every file of the server's directory to where that directory is on this host."""
    moved = set()
    for element in domain.iter("source"):
        for attribute in ("file", "path"):
            path = Path(element.get(attribute, ""))
            if path.parent.name == server and path.parent != host.directory:
                element.set(attribute, str(host.directory / path.name))
                moved.add(f"directory {path.parent} -> {host.directory}")
    return sorted(moved)


def _take_firmware(domain: ET.Element) -> str | None:
    """Take the firmware and its variables out of a definition; return the path of the former."""
    system = _system_of(domain)
    code = system.findtext("loader")
    system.attrib.pop("firmware", None)
    for element in [child for child in system if child.tag in ("firmware", "loader", "nvram")]:
        system.remove(element)
    return code


def _give_firmware(domain: ET.Element, host: Host) -> None:
    """Let the guest boot by this host's UEFI firmware, with its own variables."""
    system = _system_of(domain)
    _text(system, "loader", host.settings.firmware, readonly="yes", type="pflash")
    _text(system, "nvram", str(host.directory / VARIABLES))


def _system_of(domain: ET.Element) -> ET.Element:
    system = domain.find("os")
    if system is None:
        raise StepError("The definition that came with the server does not say what boots; a hard reboot mends it.")
    return system


def _fit_cache(domain: ET.Element, host: Host) -> list[str]:
    """Bypass the host's cache where this host's file system allows it."""
    rewrites = []
    for element in _devices_of(domain).findall("disk[@device='disk']"):
        driver, name = element.find("driver"), _file_name(element)
        if driver is None or name is None:
            continue
        direct = host.is_direct(host.directory / name)
        if (driver.get("cache") == "none") != direct:
            _set_cache(driver, direct)
            rewrites.append(f"{name} cache -> {driver.get('cache')}")
    return rewrites


def _set_cache(driver: ET.Element, direct: bool) -> None:
    if direct:
        driver.set("cache", "none")
        driver.set("io", "native")
    else:
        driver.set("cache", "writeback")
        driver.attrib.pop("io", None)


def _file_name(disk: ET.Element) -> str | None:
    source = disk.find("source")
    return None if source is None else Path(source.get("file", "")).name


def _devices_of(domain: ET.Element) -> ET.Element:
    devices = domain.find("devices")
    if devices is None:
        raise StepError("The definition that came with the server has no devices; a hard reboot makes it anew.")
    return devices


def _parsed(definition: str, server: str) -> ET.Element:
    try:
        domain = ET.fromstring(definition)
    except ET.ParseError as error:
        raise StepError(f"The definition of server {server} cannot be read: {error}.") from error
    if domain.findtext("uuid") != server:
        raise StepError(f"The definition that came is of {domain.findtext('uuid')}, not of server {server}.")
    return domain


def _mib(element: ET.Element) -> float:
    """Return libvirt's amount of memory in MiB."""
    scale = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0, "b": 1 / 2**20, "bytes": 1 / 2**20}
    unit = element.get("unit", "KiB")
    if unit not in scale:
        raise StepError(f"The definition gives its memory in {unit!r}, which is not understood.")
    try:
        return int(element.text or 0) * scale[unit]
    except ValueError as error:
        raise StepError(f"The definition gives its memory as {element.text!r:.80}, which is no number.") from error


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _written(domain: ET.Element) -> str:
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")
