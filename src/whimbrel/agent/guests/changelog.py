"""What a running guest writes to its disks: libvirt checkpoints, whose bitmaps QEMU keeps, read over NBD.

A cut begins a new checkpoint and, in the same moment, a backup job that shows the bitmap of the one before; the job is
only looked at and ended, nothing is read of the disks through it. The guest never waits for it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import Any

from whimbrel.agent.disks.frames import LOG, Range
from whimbrel.agent.guests.connection import Hypervisor, binding
from whimbrel.domain.errors import StepError
from whimbrel.ops.settings import Agent

_DIRTY = "dirty"
_SPAN = 1 << 30
"""Bytes of a disk about which NBD is asked at once."""


class ChangeLog:
    """The checkpoints of this host's guests."""

    def __init__(self, settings: Agent, hypervisor: Hypervisor) -> None:
        self._directory = Path(settings.run_dir)
        self._hypervisor = hypervisor

    def begin(self, server: str) -> None:
        """Note from now on what the guest writes; StepError when its hypervisor or its disks cannot.

        A first cut is tried, so that a host that could not be asked later is known before anything is copied.
        """
        _nbd()
        self.end(server)

        def start(connection: Any) -> None:
            domain = connection.lookupByUUIDString(server)
            domain.checkpointCreateXML(_checkpoint(1, _disks(domain)), 0)

        self._hypervisor.call(f"note the writes of server {server}", start)
        try:
            self.cut(server)
        except StepError:
            self.end(server)
            raise

    def cut(self, server: str) -> dict[str, list[Range]]:
        """Return by its file's name which parts of each disk were written since the last cut, and begin anew."""
        libvirt = binding()
        socket, scratch = self._directory / f"{server}.nbd", self._directory / f"{server}.scratch"

        def look(connection: Any) -> dict[str, list[Range]]:
            domain = connection.lookupByUUIDString(server)
            disks = _disks(domain)
            last = max(_numbers(domain))
            job = _backup(last, disks, socket, scratch)
            domain.backupBegin(job, _checkpoint(last + 1, disks), 0)
            try:
                return {name: _read_bitmap(socket, target) for target, name in disks.items()}
            finally:
                domain.abortJob()
                with suppress(libvirt.libvirtError):  # one that stays is removed with the others
                    domain.checkpointLookupByName(f"{LOG}{last}").delete(0)

        try:
            return self._hypervisor.call(f"tell what server {server} has written", look)
        finally:
            self._sweep(server)

    def end(self, server: str) -> bool:
        """Note no longer; return whether the guest's process is there, and so nothing is left in the disk files.

        One that is not under way is accepted.
        """
        libvirt = binding()

        def stop(connection: Any) -> bool:
            try:
                domain = connection.lookupByUUIDString(server)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return False
                raise
            active = bool(domain.isActive())
            if active:
                with suppress(libvirt.libvirtError):  # there is no job
                    if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                        domain.abortJob()
            for number in sorted(_numbers(domain), reverse=True):
                checkpoint = domain.checkpointLookupByName(f"{LOG}{number}")
                try:
                    checkpoint.delete(0)
                except libvirt.libvirtError:  # its bitmap went with the process, or there is no process
                    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            return active

        active = self._hypervisor.call(f"end the log of server {server}", stop)
        self._sweep(server)
        return active

    def _sweep(self, server: str) -> None:
        for path in self._directory.glob(f"{server}.*"):
            if path.name.startswith((f"{server}.nbd", f"{server}.scratch")):
                path.unlink(missing_ok=True)


def _disks(domain: Any) -> dict[str, str]:
    """Return the qcow2 disks that the guest writes to: the file's name by the target's."""
    found = {}
    for disk in ET.fromstring(domain.XMLDesc(0)).iter("disk"):
        driver, source, target = disk.find("driver"), disk.find("source"), disk.find("target")
        if driver is None or source is None or target is None or disk.find("readonly") is not None:
            continue
        if driver.get("type") == "qcow2":
            found[target.get("dev", "")] = Path(source.get("file", "")).name
    return found


def _numbers(domain: Any) -> list[int]:
    names = [checkpoint.getName() for checkpoint in domain.listAllCheckpoints(0)]
    return [int(name.removeprefix(LOG)) for name in names if name.startswith(LOG)]


def _checkpoint(number: int, disks: dict[str, str]) -> str:
    rows = "".join(f"<disk name='{target}' checkpoint='bitmap'/>" for target in disks)
    return f"<domaincheckpoint><name>{LOG}{number}</name><disks>{rows}</disks></domaincheckpoint>"


def _backup(since: int, disks: dict[str, str], socket: Path, scratch: Path) -> str:
    rows = "".join(
        f"<disk name='{target}' backup='yes' type='file' exportname='{target}' exportbitmap='{_DIRTY}'>"
        f"<scratch file='{scratch}.{target}'/></disk>"
        for target in disks
    )
    return (
        f"<domainbackup mode='pull'><incremental>{LOG}{since}</incremental>"
        f"<server transport='unix' socket='{socket}'/><disks>{rows}</disks></domainbackup>"
    )


def _read_bitmap(socket: Path, export: str) -> list[Range]:
    nbd = _nbd()
    context = f"qemu:dirty-bitmap:{_DIRTY}"
    handle = nbd.NBD()
    handle.add_meta_context(context)
    handle.set_export_name(export)
    handle.connect_unix(str(socket))
    found: list[Range] = []
    place, size = 0, handle.get_size()

    def take(name: str, offset: int, entries: list[int], error: Any) -> int:
        nonlocal place
        if name == context:
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                if flags:
                    found.append((offset, length))
                offset += length
            place = offset
        return 0

    while place < size:
        before = place
        handle.block_status(min(_SPAN, size - place), place, take)
        if place <= before:
            raise StepError(f"QEMU tells nothing of disk {export} from byte {place} on.")
    handle.shutdown()
    return found


def _nbd() -> Any:
    try:
        import nbd
    except ImportError as error:
        raise StepError("This agent has no NBD binding. Install python3-libnbd.") from error
    return nbd
