"""The memory of a guest that moves with it, between two QEMUs that trust only their own host.

libvirt's own migration wants a connection to the other host's libvirtd, and who has that is root there. So each side
does its half alone. At the target libvirt restores the guest from what it takes for a saved one: a pipe, into which
this agent writes the head, with the definition that it has composed itself, and the receiver of a channel what comes
behind it. At the source QEMU is told to send exactly that stream, through a socket of this agent. It holds the guest
when all but the last has crossed (`pause-before-switchover`), which is when the disks are at rest.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whimbrel.agent.directories import HostDirectories, in_words
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.disks.checks import base_of, refuse_disk
from whimbrel.agent.disks.frames import MEMORY
from whimbrel.agent.disks.session import TURN
from whimbrel.agent.guests.connection import Hypervisor, binding
from whimbrel.agent.guests.holding import crosses_once, holds_first, takes_at_once
from whimbrel.agent.guests.libvirt import ALIVE, LibvirtGuests
from whimbrel.agent.guests.opened import refuse_opened
from whimbrel.agent.guests.outflow import Outflow
from whimbrel.agent.guests.xml import as_kept, at_once
from whimbrel.domain.errors import CannotTell, StepError
from whimbrel.domain.server import DiskRole, PowerState
from whimbrel.migration.messages import Facts, Order, Outlook, Phase
from whimbrel.migration.ports import Control
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

LOOK_AGAIN = 0.02
LOOK_AGAIN_HELD = 0.005
"""Seconds between two looks at what goes on: it is shorter while the guest is held and waits for it."""
PIPE_BYTES = 1 << 20
LONGEST = 86400.0
"""Seconds that the target's hypervisor may wait for the memory; the steps have limits of their own, far below."""

HOLD_MS = 100
"""Milliseconds that sending the last of the memory may take, at the speed of the rounds before."""

NO_ROUNDS = 0
"""In place of it, if QEMU is to hold the guest when all of the memory has crossed once."""

UNBOUNDED = 1 << 40
"""Bytes a second. QEMU's own limit would be far below a fast link's; the channel holds it back where that is slow."""

ENDED = ("completed", "failed", "cancelled", "none")

_HEAD = struct.Struct("=16sIIIII14I")
"""libvirt's head of a saved guest: magic, version, length of the definition, was it running, compression, cookie."""


@dataclass
class _Expected:
    """A guest whose process waits at this target."""

    pipe: int
    thread: threading.Thread | None = None
    failure: StepError | None = None
    arrived: threading.Event = field(default_factory=threading.Event)


class LibvirtMemory:
    """The memory port under libvirt and QEMU."""

    def __init__(self, settings: Agent, guests: LibvirtGuests, channels: SshChannels) -> None:
        self._settings, self._guests, self._channels = settings, guests, channels
        self._hypervisor = guests.hypervisor
        self._waiting = Hypervisor(settings.libvirt_uri)
        """For the calls that last as long as a guest's memory needs; they must not hold the others up."""
        self._directories = HostDirectories(settings.instances_dir)
        self._expected: dict[str, _Expected] = {}
        self._sent: dict[str, Outflow] = {}

    def describe(self, order: Order) -> Facts:
        """Return `definition` of the running guest and the processor that it sees; StepError if it cannot move so."""
        if self._guests.state(order.server) is not PowerState.RUNNING:
            raise StepError(
                f"Server {order.server} does not run on {order.host}, so its memory cannot move. Migrate it cold."
            )
        for disk in order.work.old.disks:
            if disk.role is DiskRole.SWAP:
                raise StepError(
                    f"{disk.name} of server {order.server} is swap, which moves only cold. Migrate it cold."
                )
        libvirt = binding()
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE

        def read(connection: Any) -> tuple[str, str]:
            definition = str(connection.lookupByUUIDString(order.server).XMLDesc(flags))
            return definition, _processor(definition, connection.getCapabilities())

        definition, processor = self._hypervisor.call(f"describe server {order.server}", read)
        kept = self._guests.definition(order.server)
        return {"definition": as_kept(definition, kept) if kept else definition, "processor": processor}

    def check(self, order: Order) -> None:
        """Raise StepError when the processor of this host cannot take over the guest that was described."""
        processor = order.results["describe_guest"]["processor"]
        if not processor:
            return
        libvirt = binding()
        kind = self._settings.virt_type

        def compare(connection: Any) -> int:
            return int(connection.compareHypervisorCPU(None, None, None, kind, processor, 0))

        result = self._hypervisor.call("compare processors", compare)
        if result == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE:
            raise StepError(
                f"The processor of {order.host} lacks what server {order.server} has seen at its source. Choose "
                f"another host, migrate it cold, or give both hosts the same `cpu_model`."
            )

    def expect(self, order: Order, control: Control) -> None:
        """Make the guest's process at the target, waiting for its memory; it is not let run.

        It opens the disks, so what came of them is looked at before.
        """
        self.forget(order)
        home = self._directories.live(order.server)
        for disk in order.work.old.disks:
            with in_words("check", home / disk.name):
                refuse_disk(home / disk.name, disk, base_of(disk, order.work.image), at_rest=False)
        definition = self._guests.definition(order.server)
        if definition is None:
            raise StepError(f"Server {order.server} is not defined on {order.host}; the move must begin anew.")
        if takes_at_once(self._settings, order):
            definition = at_once(definition)
        path = home / MEMORY
        with in_words("make the pipe", path):
            os.mkfifo(path, 0o600)
            pipe = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        expected = _Expected(pipe)
        self._expected[order.server] = expected
        head = definition.encode() + b"\0"
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(pipe, False)
        try:
            os.write(pipe, _HEAD.pack(b"LibvirtQemudSave", 2, len(head), 0, 0, 0, *[0] * 14))
            if os.write(pipe, head) != len(head):
                raise StepError(f"The definition of server {order.server} is longer than a pipe holds.")
        except BlockingIOError as error:
            raise StepError(f"The definition of server {order.server} is longer than a pipe holds.") from error
        expected.thread = threading.Thread(target=self._restore, args=(order.server, path, expected), daemon=True)
        expected.thread.start()
        while self._guests.state(order.server) not in ALIVE:
            if expected.failure is not None:
                raise expected.failure
            control.wait(LOOK_AGAIN)

    def forget(self, order: Order) -> None:
        """Expect it no longer, and end the process; one that is not expected is accepted."""
        self._guests.destroy(order.server)
        (self._directories.live(order.server) / MEMORY).unlink(missing_ok=True)
        self._let_go(order.server)

    def await_arrival(self, order: Order, control: Control) -> None:
        """Wait at the target until all of it has come, and the guest could be let run with no files but its own."""
        expected = self._expected.get(order.server)
        if expected is None:
            raise StepError(f"The agent of {order.host} was started anew while server {order.server} was on its way.")
        while not expected.arrived.wait(TURN):
            control.check()
        self._let_go(order.server)
        if expected.failure is not None:
            raise expected.failure
        nodes = self._monitor(order.server, "query-named-block-nodes", flat=True)
        firmware = self._settings.firmware if order.work.old.uefi else None
        refuse_opened(nodes, self._directories.live(order.server), order.server, firmware)
        if order.work.old.tpm:
            self._guests.tpms.sync(order.server)

    def begin(self, order: Order, control: Control) -> float | None:
        """Begin to send the memory; return None when the guest runs meanwhile, or the time at which it was held."""
        self.give_up(order)
        if self._guests.state(order.server) is not PowerState.RUNNING:
            raise StepError(f"Server {order.server} does not run on {order.host} any more, so its memory cannot move.")
        path = Path(self._settings.run_dir) / f"{order.server}.memory"
        sent = Outflow(order.server, self._channels.open_for_memory(order, control), path)
        self._sent[order.server] = sent
        sent.begin(self._channels.paces.of(order), control)
        capabilities = [{"capability": name, "state": True} for name in ("pause-before-switchover", "auto-converge")]
        self._monitor(order.server, "migrate-set-capabilities", capabilities=capabilities)
        once = crosses_once(self._settings)
        bounds = {"max-bandwidth": UNBOUNDED, "downtime-limit": NO_ROUNDS if once else HOLD_MS}
        self._monitor(order.server, "migrate-set-parameters", **bounds)
        stays_held = holds_first(self._settings, order) or control.steering().hurry
        if stays_held or once:
            self.hold(order)
        self._monitor(order.server, "migrate", uri=f"unix:{path}")
        if once and not stays_held:
            while self._status(order, control)["status"] == "setup":
                control.wait(LOOK_AGAIN_HELD)
            self._guests.resume(order.server)
            sent.held_at = None
        return sent.held_at

    def is_held(self, order: Order, control: Control) -> bool:
        """Return whether all but the last of it has crossed, and the guest is held, with its disks at rest."""
        found = self._status(order, control)
        return bool(found["status"] == "pre-switchover")

    def hold(self, order: Order) -> float:
        """Hold the guest now, so that no page of it changes any more; return the time."""
        sent = self._sent[order.server]
        sent.held_at = sent.held_at or clock.now()
        self._hypervisor.call(
            f"hold server {order.server}", lambda connection: connection.lookupByUUIDString(order.server).suspend()
        )
        return sent.held_at

    def complete(self, order: Order, control: Control) -> Facts:
        """Send the last of it; afterwards the guest does not run again by itself. Facts: `memory_bytes`."""
        while not self.is_held(order, control):
            control.wait(LOOK_AGAIN_HELD)
        self._monitor(order.server, "migrate-continue", state="pre-switchover")
        while self._status(order, control)["status"] != "completed":
            control.wait(LOOK_AGAIN_HELD)
        sent = self._sent[order.server]
        sent.end(control)
        self._end(order.server)
        return {"memory_bytes": sent.bytes}

    def is_gone(self, order: Order) -> bool:
        """Return whether all of it was sent, and the process that gave it away is still held."""
        held = self._guests.state(order.server) is PowerState.PAUSED
        return held and self._query(order.server)["status"] == "completed"

    def give_up(self, order: Order) -> None:
        """Send no more of it; a guest that is held then runs on. One that is not under way is accepted."""
        if self._guests.state(order.server) in ALIVE:
            try:
                if self._query(order.server)["status"] not in ENDED:
                    self._monitor(order.server, "migrate_cancel")
                for _ in range(500):
                    if self._query(order.server)["status"] in ENDED:
                        break
                    threading.Event().wait(LOOK_AGAIN)
            except CannotTell:
                raise
            except StepError:  # its process ended meanwhile, and with it what it sent
                if self._guests.state(order.server) in ALIVE:
                    raise
            if order.server in self._sent and self._sent[order.server].held_at is not None:
                self._guests.resume(order.server)
        self._end(order.server)

    def _restore(self, server: str, path: Path, expected: _Expected) -> None:
        paused = binding().VIR_DOMAIN_SAVE_PAUSED
        try:
            self._waiting.call(
                f"take over server {server}",
                lambda connection: connection.restoreFlags(str(path), None, paused),
                LONGEST,
            )
        except StepError as error:
            expected.failure = error
        expected.arrived.set()

    def _let_go(self, server: str) -> None:
        expected = self._expected.pop(server, None)
        if expected is not None:
            os.close(expected.pipe)

    def _end(self, server: str) -> None:
        sent = self._sent.pop(server, None)
        if sent is not None:
            sent.close()

    def _status(self, order: Order, control: Control) -> dict[str, Any]:
        """Return QEMU's word on what it sends; raise StepError when it has given up."""
        control.check()
        sent = self._sent[order.server]
        found = self._query(order.server)
        sent.check(moving=found["status"] == "active")
        if found["status"] in ("failed", "cancelled", "cancelling", "none"):
            why = found.get("error-desc", found["status"])
            raise StepError(f"QEMU could not send the memory of server {order.server}: {why}.")
        memory = found.get("ram", {})
        control.expect(_outlook(found, memory))
        control.report(sent.bytes, sent.bytes + int(memory.get("remaining", 0)), Phase.MEMORY)
        return found

    def _query(self, server: str) -> dict[str, Any]:
        found = self._monitor(server, "query-migrate")
        return {"status": "none"} | (found if isinstance(found, dict) else {})

    def _monitor(self, server: str, command: str, **arguments: Any) -> Any:
        """Tell a guest's QEMU something for which libvirt has no call."""
        import libvirt_qemu

        said = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})

        def ask(connection: Any) -> str:
            return str(libvirt_qemu.qemuMonitorCommand(connection.lookupByUUIDString(server), said, 0))

        answer = json.loads(self._hypervisor.call(f"tell QEMU of server {server}: {command}", ask))
        if "error" in answer:
            raise StepError(f"QEMU of server {server} refuses {command}: {answer['error'].get('desc')}.")
        return answer.get("return")


def _outlook(found: dict[str, Any], memory: dict[str, Any]) -> Outlook:
    """Return what QEMU expects (MigrationInfo of the QEMU QMP reference: pages, milliseconds)."""
    dirty = int(memory.get("dirty-pages-rate", 0)) * int(memory.get("page-size", 0))
    expected = found.get("expected-downtime")
    return Outlook(max(1, int(memory.get("dirty-sync-count", 1))), dirty, None if expected is None else expected / 1000)


def _processor(definition: str, capabilities: str) -> str:
    """Return the processor that a guest sees as libvirt writes it; that of the host where the guest has just that."""
    cpu = ET.fromstring(definition).find("cpu")
    if cpu is None:
        return ""
    if cpu.get("mode") in ("host-passthrough", "maximum"):
        host = ET.fromstring(capabilities).find("host/cpu")
        return "" if host is None else ET.tostring(host, encoding="unicode")
    return ET.tostring(cpu, encoding="unicode")
