"""The guests port under libvirt and QEMU."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whimbrel.agent import firmware, tpm
from whimbrel.agent.directories import HostDirectories
from whimbrel.agent.guests import xml
from whimbrel.agent.guests.changelog import ChangeLog
from whimbrel.agent.guests.connection import Hypervisor, binding
from whimbrel.domain.errors import CannotTell, StepError
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Order
from whimbrel.migration.ports import Control
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

ASK_AGAIN = 4.0
"""Seconds between two requests to shut down: a guest that is still booting does not hear the first."""

LOOK_AGAIN = 0.05

LOOK_LIMIT = 6.0
"""Seconds for a mere look at a guest: a heartbeat must not be late because libvirtd hangs."""

ALIVE = (PowerState.RUNNING, PowerState.PAUSED)

_UUID_ARGUMENT = re.compile(rb"\0-uuid\0([0-9a-f-]{36})\0")


class LibvirtGuests:
    """The guests of this host. Nothing is kept in memory: libvirt is asked each time."""

    def __init__(self, settings: Agent) -> None:
        self._settings = settings
        self._directories = HostDirectories(settings.instances_dir)
        self.hypervisor = Hypervisor(settings.libvirt_uri)
        self.log = ChangeLog(settings, self.hypervisor)
        self.tpms = tpm.TpmStates(settings)

    def state(self, server: str) -> PowerState | None:
        """Return the guest's state, None when it is not defined here. STOPPED means that no process holds its disks."""

        def look(connection: Any) -> tuple[int, bool] | None:
            domain = _find(connection, server)
            return None if domain is None else (domain.state()[0], bool(domain.isActive()))

        found = self.hypervisor.call(f"tell the state of server {server}", look, LOOK_LIMIT)
        if found is not None and found[1]:
            return _power_state(found[0])
        holders = list(qemu_processes(server))
        if holders:
            raise CannotTell(
                f"libvirtd says that server {server} does not run, but QEMU process {holders[0]} holds its disks. "
                f"End that process, or restart libvirtd."
            )
        return None if found is None else PowerState.STOPPED

    def known(self) -> dict[str, PowerState]:
        """Return every guest on this host by its UUID, whoever made it; UNKNOWN for one whose process only is here."""
        processes = set(running_guests())  # before the list, because a guest may start in between
        libvirt = binding()

        def read(connection: Any) -> dict[str, int]:
            rows = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
            return {domain.UUIDString(): int(stats["state.state"]) for domain, stats in rows}

        states = self.hypervisor.call("list the guests", read, LOOK_LIMIT)
        off = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
        found = {
            server: PowerState.STOPPED if state in off else _power_state(state) for server, state in states.items()
        }
        for server in processes:
            if found.get(server) not in ALIVE and any(qemu_processes(server)):  # else it ended while we looked
                found[server] = PowerState.UNKNOWN
        return found

    def starved(self) -> list[str]:
        """Return the guests that QEMU has paused because a write of theirs found no room."""
        libvirt = binding()
        wanted = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)

        def read(connection: Any) -> list[str]:
            paused = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED)
            return [domain.UUIDString() for domain in paused if tuple(domain.state()) == wanted]

        return self.hypervisor.call("list the paused guests", read, LOOK_LIMIT)

    def ready(self, order: Order) -> None:
        """Raise StepError when this host could not run the guest: libvirtd, firmware, TPM or bridge are missing."""
        self.version()
        if order.work.guest.uefi:
            firmware.refuse_missing(self._settings)
        if order.work.guest.tpm:
            tpm.refuse_missing(self._settings)
        if order.work.guest.nics:
            self._require_bridge()

    def version(self) -> int:
        """Return QEMU's version as libvirt counts it, 7002022 for 7.2.22."""
        version: int = self.hypervisor.call(
            "tell QEMU's version", lambda connection: connection.getVersion(), LOOK_LIMIT
        )
        return version

    def compose(self, order: Order) -> tuple[str, list[str]]:
        """Return the definition for this host, and the rewrites that made it differ from the one it came with."""
        work = order.work
        if work.guest.nics:
            self._require_bridge()
        host = xml.Host(self._settings, self._directories.live(order.server), is_direct)
        carried = order.carried_definition
        if order.from_image or order.protocol == "power":
            return xml.new_definition(work.guest, work.image, host), []
        if carried is None:
            raise StepError(f"No definition of server {order.server} came from its source.")
        return xml.carried_definition(carried, work.old, work.guest, work.image, host)

    def define(self, server: str, definition: str) -> None:
        """Make the guest known, stopped; the same definition again is accepted."""
        self.tpms.put(server, self._directories.live(server))
        self.hypervisor.call(f"define server {server}", lambda connection: connection.defineXML(definition))

    def undefine(self, server: str, *, for_good: bool = False) -> None:
        """Forget a stopped guest; one that is not known is accepted, one that runs is refused.

        What its TPM remembers is laid beside its disks or, when those go as well, is removed.
        """
        libvirt = binding()
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        )

        def refuse_running(connection: Any) -> None:
            domain = _find(connection, server)
            if domain is not None and domain.isActive():  # libvirt would forget it and let it run on
                raise StepError(f"Server {server} runs on {self._settings.host}; stop it before it is forgotten.")

        def forget(connection: Any) -> None:
            refuse_running(connection)
            domain = _find(connection, server)
            if domain is not None:
                domain.undefineFlags(flags)

        self.hypervisor.call(f"look at server {server}", refuse_running)
        if for_good:
            self.tpms.drop(server)
        else:
            self.tpms.take(server, self._directories.live(server))
        self.hypervisor.call(f"undefine server {server}", forget)

    def definition(self, server: str) -> str | None:
        """Return the guest's definition, None when it is not defined here."""
        libvirt = binding()
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE

        def read(connection: Any) -> str | None:
            domain = _find(connection, server)
            return None if domain is None else str(domain.XMLDesc(flags))

        return self.hypervisor.call(f"tell the definition of server {server}", read)

    def create_paused(self, server: str) -> None:
        """Make the guest's process without letting it run; raise StepError with the hypervisor's own words."""
        paused = binding().VIR_DOMAIN_START_PAUSED
        home = self._directories.live(server)
        self.tpms.put(server, home)
        if xml.has_tpm(self.definition(server)):
            self.tpms.refuse_lost(server, home)
        self._with_domain("start", server, lambda domain: domain.createWithFlags(paused))

    def resume(self, server: str) -> None:
        """Let a paused guest run."""
        running = binding().VIR_DOMAIN_RUNNING
        self._with_domain("resume", server, lambda domain: domain.state()[0] == running or domain.resume())

    def shut_down(self, server: str, grace: float, control: Control) -> bool:
        """Ask the guest to stop, and stop it by force after `grace` seconds; return whether force was needed."""
        deadline = clock.monotonic() + grace
        ask_at = 0.0
        while True:
            now = clock.monotonic()
            try:
                state = self.state(server)
                if state not in ALIVE:
                    return False
                if state is PowerState.PAUSED or now >= deadline:
                    self._end(server)
                    return True
                if now >= ask_at:
                    self._ask_to_stop(server)
                    ask_at = now + ASK_AGAIN
            except CannotTell:  # libvirtd may be restarted meanwhile; the guest goes on stopping
                if now >= deadline:
                    raise
                control.wait(1.0)
            control.wait(LOOK_AGAIN)

    def destroy(self, server: str) -> None:
        """Stop the guest at once; one that is stopped or unknown is accepted."""
        if self.state(server) in ALIVE:
            self._end(server)

    def _end(self, server: str) -> None:
        """Stop the guest as pulling its plug does: QEMU closes the disk files in order, the guest is not asked."""

        def pull(connection: Any) -> None:
            domain = _find(connection, server)
            if domain is not None and domain.isActive():
                _unless_stopped(lambda: domain.destroyFlags(0))

        self.hypervisor.call(f"stop server {server}", pull, seconds=40.0)
        if self.state(server) in ALIVE:
            raise CannotTell(f"libvirtd was told to stop server {server}, and it still runs.")

    def _ask_to_stop(self, server: str) -> None:
        button = binding().VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        self._with_domain("shut down", server, lambda domain: _unless_stopped(lambda: domain.shutdownFlags(button)))

    def _with_domain(self, action: str, server: str, work: Any) -> None:
        def act(connection: Any) -> None:
            domain = _find(connection, server)
            if domain is None:
                raise StepError(f"Server {server} is not defined on this host.")
            work(domain)

        self.hypervisor.call(f"{action} server {server}", act)

    def _require_bridge(self) -> None:
        bridge = self._settings.bridge
        try:
            socket.if_nametoindex(bridge)
        except OSError as error:
            raise StepError(
                f"Host {self._settings.host} has no bridge {bridge}, which its servers' networks need. Make it "
                f"(ip link add {bridge} type bridge) or name another one as `bridge` in the agent's settings."
            ) from error


def qemu_processes(server: str) -> Iterator[int]:
    """Find the QEMU processes of a server by their command lines, whatever libvirtd knows of them."""
    wanted = server.encode()
    return (pid for pid, line in _qemu_command_lines() if wanted in line)


def running_guests() -> Iterator[str]:
    """Find the UUIDs of all guests that a QEMU process runs, whatever libvirtd knows of them."""
    for _, line in _qemu_command_lines():
        if (named := _UUID_ARGUMENT.search(line)) is not None:
            yield named[1].decode()


def _qemu_command_lines() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_bytes().startswith(b"qemu-"):
                yield int(entry.name), (entry / "cmdline").read_bytes()
        except OSError:  # it ended while we looked
            continue


def is_direct(path: Path) -> bool:
    """Return whether the file system under this file takes I/O that bypasses the host's cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def _find(connection: Any, server: str) -> Any:
    libvirt = binding()
    try:
        return connection.lookupByUUIDString(server)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _unless_stopped(work: Any) -> None:
    """Accept that the guest has stopped by itself in between."""
    libvirt = binding()
    try:
        work()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            raise


def _power_state(state: int) -> PowerState:
    """Translate the state of a guest that has a process."""
    libvirt = binding()
    if state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
        return PowerState.PAUSED
    return PowerState.RUNNING
