"""What a definition that another host has sent may not reach for on this one.

The source's agent hands its guest's definition over, and libvirt would do whatever stands in it: open another server's
disk, hand a device of this host to the guest, start another program, open a port. So a definition is carried only while
it stays within the server's own directory and the kinds of devices that a guest can have without a piece of its host.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from whimbrel.domain.errors import StepError

TYPES: dict[str, tuple[str, ...] | None] = {
    "emulator": None,
    "disk": ("file",),
    "controller": None,
    "interface": ("bridge",),
    "serial": ("file", "pty"),
    "console": ("file", "pty"),
    "channel": ("unix", "spicevmc"),
    "input": None,
    "graphics": ("egl-headless",),
    "video": None,
    "sound": None,
    "audio": ("none", "spice"),
    "watchdog": None,
    "rng": None,
    "panic": None,
    "memballoon": None,
    "vsock": None,
}
"""The devices that may come along, with the types that they may have (None: any). A TPM is none: which
one there is, and where what it remembers lies, this host says itself."""

PASSIVE = ("metadata", "resource")
"""Parts that name no file of the host, whatever stands in them."""
NAMING = frozenset({"file", "path", "dir"})
"""Attributes that name a file; one without a leading slash begins where the hypervisor was started."""
HOLDING = frozenset({"emulator", "loader", "kernel", "initrd", "dtb", "table", "shim"})
"""Parts whose text names a file."""
CALLING = frozenset({"host", "service", "protocol"})
"""Attributes of a source that lies behind a network, or is reached over one."""
ENTROPY = ("/dev/urandom", "/dev/random")
PROGRAMS = ("/usr/bin", "/usr/local/bin", "/usr/libexec")
FIRMWARE = Path("/usr/share")


def refuse_reach(domain: ET.Element, directory: Path, host: str) -> None:
    """Raise StepError, naming the part, if the definition reaches beyond the server's own directory on this host."""
    for part in _parts(domain):
        reason = _beyond(part, directory)
        if reason is not None:
            raise StepError(
                f"The definition that came to {host} {reason}, which no server may; a hard reboot mends it."
            )
    for device in domain.findall("devices/*"):
        if device.tag not in TYPES:
            raise StepError(f"The definition that came to {host} has a device {device.tag}, which stays at its host.")
        types = TYPES[device.tag]
        if types is not None and device.get("type") not in types:
            kind = f"{device.tag} of type {device.get('type')}"
            raise StepError(f"The definition that came to {host} has a {kind}, which stays at its host.")


def _parts(domain: ET.Element) -> Iterator[ET.Element]:
    """Yield every element that may mean something to libvirt."""
    yield domain
    for child in domain:
        if child.tag not in PASSIVE:
            yield from child.iter()


def _beyond(part: ET.Element, directory: Path) -> str | None:
    """Return in words what this one element reaches for, None if it stays where it belongs."""
    if part.tag.startswith("{"):
        return f"has {part.tag.partition('}')[2]} of a language that is not libvirt's own"
    if part.tag == "seclabel" and part.get("type", "dynamic") != "dynamic":
        return "changes how this host confines it"
    if part.tag == "source" and CALLING & part.attrib.keys():
        return "opens a connection or a port"
    if part.tag == "backend" and part.get("model", "random") not in ("random", "builtin"):
        return f"takes its entropy from {part.get('model', '')[:80]}"
    if part.tag == "nvram":
        return "has firmware's variables, which its order does not declare"
    if part.tag == "os" and part.get("firmware"):
        return "lets this host choose its firmware"
    if part.tag == "loader" and part.get("type") == "pflash" and part.get("readonly") != "yes":
        return "could write to its firmware"
    named = {name: value for name, value in part.attrib.items() if name in NAMING}
    if part.tag in HOLDING:
        named[part.tag] = (part.text or "").strip()
    for name, value in named.items():
        if value and not value.startswith("/"):
            return f"names {value[:200]} in {name}, which is no whole path"
    for value in ((part.text or "").strip(), *part.attrib.values()):
        if value.startswith("/") and not _allowed(part.tag, Path(os.path.normpath(value)), directory):
            return f"names {value[:200]} in {part.tag}"
    return None


def _allowed(tag: str, path: Path, directory: Path) -> bool:
    match tag:
        case "emulator":
            return str(path.parent) in PROGRAMS and path.name.startswith("qemu-")
        case "backend":
            return str(path) in ENTROPY
        case "loader":
            return path.is_relative_to(FIRMWARE)
        case _:
            return path != directory and path.is_relative_to(directory)
