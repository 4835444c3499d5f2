"""One host in memory: a hypervisor, the files of one server, and a guest that numbers its writes.

The guest writes each number into its TPM as well, and notices when that remembers other numbers than its disk.

It keeps the rules that the ports promise (`whimbrel.migration.ports`), and nothing more. Before and after each change
of the world it says what it is about to do, through `touch`: there a test may cut the power, kill the agent, let the
call fail, or let the hypervisor fall silent.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.ledger import Ledger
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World
from whimbrel.ops import clock

SERVER = "11111111-2222-4333-8444-555555555555"
ALIVE = (PowerState.RUNNING, PowerState.PAUSED)


KEPT = (
    "up", "boot", "live", "incoming", "sealed", "defined", "process", "open_files", "channels",
    "granted", "let_run_at", "has_memory", "gave_memory", "tpm",
)  # fmt: skip


class Broken(BaseException):
    """Something happened that must never happen. Not an Exception, because an agent outlives those."""


@dataclass
class Copy:
    """One directory of the server's files: who made it, the writes on its disk, its size, its saved definition.

    `tpm` is what the TPM remembers of a guest that is not known to the hypervisor.
    """

    attempt: str
    writes: list[int] = field(default_factory=list)
    size_mb: int = 1024
    definition: str | None = None
    arrived: Facts | None = None
    tpm: list[int] | None = None

    def digest(self) -> int:
        """Return a number that tells this content from any other."""
        return zlib.crc32(repr(self.writes).encode())


def definition_of(order: Order) -> str:
    """Return what a host makes of an order's guest."""
    return f"{order.work.guest.uuid} vcpus={order.work.guest.vcpus}"


class Host:
    """The world of one host: what the ports Guests, Directories, Disks and Channels ask of it."""

    def __init__(self, name: str, touch: Callable[[str], None]) -> None:
        self.name = name
        self._touch = touch
        self.up = True
        self.boot = 1
        self.live: Copy | None = None
        self.incoming: dict[str, Copy] = {}
        self.sealed: dict[str, Copy] = {}
        self.defined: str | None = None
        self.process: PowerState | None = None
        self.open_files: Copy | None = None
        self.channels: set[str] = set()
        self.granted = self.let_run_at = 1
        self.has_memory = False
        """The process that waits here has all of the guest's memory."""
        self.gave_memory = False
        """The process that is held here has given all of it away."""
        self.tpm: list[int] | None = None
        """What the TPM of the guest remembers, in the hypervisor's own place."""
        self.peers: dict[str, Host] = {}

    def world(self, ledger: Ledger, may_run: Callable[[], bool]) -> World:
        """Return the ports, with the real grants over a real ledger."""
        return World(self, self, self, self, Promises(ledger, self, may_run), Crossing(self))  # type: ignore[arg-type]

    def touch(self, what: str) -> None:
        """Say what is about to happen or has just happened here."""
        self._touch(f"{self.name}.{what}")

    def save(self) -> bytes:
        """Return the state of the host."""
        return pickle.dumps({name: getattr(self, name) for name in KEPT})

    def restore(self, state: bytes) -> None:
        """Go back to a saved state."""
        self.__dict__ |= pickle.loads(state)

    @property
    def running(self) -> bool:
        """Whether the guest runs here."""
        return self.process is PowerState.RUNNING

    def copies(self) -> list[Copy]:
        """Return every directory of the server on this host."""
        return [*([self.live] if self.live else []), *self.incoming.values(), *self.sealed.values()]

    def lose_power(self) -> None:
        """Everything volatile is gone; what is on the disk stays."""
        self.process = self.open_files = None
        self.has_memory = self.gave_memory = False
        self.channels.clear()
        self.boot += 1

    def write(self, number: int) -> bool:
        """Let the guest make one durable write, if it runs; return whether it did."""
        if self.process is not PowerState.RUNNING:
            return False
        assert self.open_files is not None
        if self.tpm != self.open_files.writes:
            raise Broken(f"the TPM on {self.name} remembers {self.tpm}, the disk {self.open_files.writes}")
        self.open_files.writes.append(number)
        self.tpm.append(number)
        return True

    # --- guests ----------------------------------------------------------------------------------

    def state(self, server: str) -> PowerState | None:
        self.touch("?state")
        if self.defined is None:
            return None
        return self.process or PowerState.STOPPED

    def known(self) -> dict[str, PowerState]:
        return {server: self.state(server) or PowerState.UNKNOWN for server in self.domains}

    def compose(self, order: Order) -> tuple[str, list[str]]:
        made = definition_of(order)
        if order.from_image or order.protocol == "power":
            return made, []
        carried = order.carried_definition
        if carried is None:
            raise StepError(f"No definition of server {order.server} came from its source.")
        return made, [] if made == carried else [f"{carried} became {made}"]

    def define(self, server: str, definition: str) -> None:
        self.touch("define")
        self._put_tpm()
        self.defined = definition
        self.touch("defined")

    def _put_tpm(self) -> None:
        """Let the hypervisor have what the TPM remembers, where the server's directory says it."""
        if self.live is not None and self.live.tpm is not None:
            self.tpm = list(self.live.tpm)
            self.touch("put_tpm")
            self.live.tpm = None

    def undefine(self, server: str, *, for_good: bool = False) -> None:
        self.touch("undefine")
        if self.process in ALIVE:
            raise StepError("it runs; stop it before it is forgotten")
        if not for_good and self.live is not None and self.live.tpm is None and self.tpm is not None:
            self.live.tpm = list(self.tpm)
            self.touch("take_tpm")
        self.tpm = None
        self.touch("drop_tpm")
        self.defined = None

    def definition(self, server: str) -> str | None:
        return self.defined

    def create_paused(self, server: str) -> None:
        self.touch("create_paused")
        if self.process in ALIVE:
            raise StepError("it has a process already")
        if self.defined is None or self.live is None:
            raise StepError("there is nothing to start")
        self._put_tpm()
        self.process, self.open_files = PowerState.PAUSED, self.live
        self.touch("created")

    def resume(self, server: str) -> None:
        self.touch("resume")
        if self.process not in ALIVE:
            raise StepError("there is no process to let run")
        if self.process is PowerState.PAUSED:
            self.let_run_at = self.granted
        self.process = PowerState.RUNNING
        self.has_memory = self.gave_memory = False
        self.touch("resumed")

    def shut_down(self, server: str, grace: float, control: Control) -> bool:
        self.touch("shut_down")
        self.process = self.open_files = None
        return False

    def destroy(self, server: str) -> None:
        self.touch("destroy")
        self.process = self.open_files = None

    # --- directories -----------------------------------------------------------------------------

    def adopt(self, server: str, attempt: str) -> None:
        self.touch("adopt")
        if attempt in self.incoming:
            if self.live is not None:
                raise StepError("another live directory is in the way")
            self.live = self.incoming.pop(attempt)
        elif not self.is_live(server, attempt):
            raise StepError(f"attempt {attempt} was not prepared here")

    def disown(self, server: str, attempt: str) -> None:
        if self.is_live(server, attempt):
            self.touch("disown")
            assert self.live is not None
            self.incoming[attempt], self.live = self.live, None

    def is_live(self, server: str, attempt: str | None = None) -> bool:
        return self.live is not None and attempt in (None, self.live.attempt)

    def seal(self, server: str, attempt: str) -> None:
        if attempt in self.sealed:
            return
        self.touch("rename")
        if self.live is None or self.live.attempt == attempt:
            raise StepError("there is nothing to seal")
        self.sealed[attempt], self.live = self.live, None
        self.touch("renamed")

    def unseal(self, server: str, attempt: str) -> None:
        if attempt in self.sealed:
            self.disown(server, attempt)
            self.touch("rename_back")
            if self.live is not None:
                raise StepError("another live directory is in the way")
            self.live = self.sealed.pop(attempt)
        elif self.live is None or self.live.attempt == attempt:
            raise StepError("there is nothing to go back to")

    def bring_back(self, server: str) -> None:
        if self.live is None and len(self.sealed) == 1:
            self.touch("bring_back")
            self.live = self.sealed.popitem()[1]

    def is_sealed(self, server: str, attempt: str) -> bool:
        return attempt in self.sealed

    def save_definition(self, server: str, definition: str) -> None:
        self.touch("save_definition")
        if self.live is None:
            raise StepError("there is no live directory")
        self.live.definition = definition

    def saved_definition(self, server: str, attempt: str) -> str | None:
        for place in (self.live, self.sealed.get(attempt)):
            if place is not None and place.definition is not None:
                return place.definition
        return None

    def discard(self, server: str, attempt: str) -> int:
        self.touch("discard")
        self.incoming.pop(attempt, None)
        if self.is_live(server, attempt):
            self._remove(self.live)
            self.live = None
        return 0

    def remove_sealed(self, server: str, attempt: str) -> int:
        self.touch("remove_sealed")
        self._remove(self.sealed.pop(attempt, None))
        return 0

    def remove_all(self, server: str) -> int:
        self.touch("remove_all")
        for place in self.copies():
            self._remove(place)
        self.live, self.incoming, self.sealed = None, {}, {}
        return 0

    def _remove(self, place: Copy | None) -> None:
        if place is not None and place is self.open_files:
            raise Broken(f"{self.name} removes the files under a guest's process")

    # --- disks and channel -----------------------------------------------------------------------

    def prepare(self, order: Order, control: Control) -> Facts:
        if self.is_live(order.server, order.attempt):
            return {}
        self.incoming.pop(order.attempt, None)
        self.touch("prepare")
        tpm: list[int] | None = [] if order.from_image else None
        self.incoming[order.attempt] = Copy(order.attempt, size_mb=self._size(order), tpm=tpm)
        self.touch("prepared")
        return {}

    @staticmethod
    def _size(order: Order) -> int:
        """What is made from an image has its full size, what is copied that of its source."""
        return (order.work.guest if order.from_image else order.work.old).disks[0].size_mb

    def is_prepared(self, order: Order) -> bool:
        return order.attempt in self.incoming

    def open(self, order: Order, control: Control) -> Facts:
        self.touch("open_channel")
        assert order.work.target is not None
        peer = self.peers[order.work.target.host]
        if not peer.up or order.attempt not in peer.incoming:
            raise StepError(f"{peer.name} does not receive")
        self.channels.add(order.attempt)
        return {"shared": False}

    def close(self, order: Order) -> None:
        self.channels.discard(order.attempt)

    def is_open(self, order: Order) -> bool:
        return order.attempt in self.channels

    def reserve_slot(self, order: Order, control: Control) -> None:
        self.touch("reserve_slot")

    def take_slot(self, order: Order, control: Control) -> None:
        self.touch("take_slot")

    def precopy(self, order: Order, control: Control) -> Facts:
        self.touch("precopy")
        return {}

    def close_log(self, order: Order, control: Control) -> None:
        self.touch("close_log")

    def end_precopy(self, order: Order, control: Control) -> None:
        self.touch("end_precopy")

    def push(self, order: Order, control: Control) -> Facts:
        self.touch("copy_disks")
        assert order.work.target is not None
        peer = self.peers[order.work.target.host]
        if not peer.up or order.attempt not in peer.incoming:
            raise StepError(f"{peer.name} does not receive")
        if order.attempt not in self.sealed:
            raise StepError("the disks may change")
        sealed, received = self.sealed[order.attempt], peer.incoming[order.attempt]
        sealed.arrived = None
        received.writes = sealed.writes[: len(sealed.writes) // 2]
        self.touch("copying")
        received.writes = list(sealed.writes)
        if sealed.tpm is None:
            raise Broken(f"what the TPM remembered is not beside the sealed disks on {self.name}")
        received.tpm = list(sealed.tpm)
        self.touch("copied")
        sealed.arrived = {"disks": {"disk-0": sealed.digest()}}
        return sealed.arrived

    def copy_on(self, order: Order, control: Control) -> None:
        self.touch("copy_on")

    def push_held(self, order: Order, control: Control) -> Facts:
        self.touch("push_held")
        if self.process is not PowerState.PAUSED:
            raise StepError("the disks may change")
        peer = self._target(order)
        found = peer.arriving(order.attempt)
        if found is None or self.live is None:
            raise StepError(f"{peer.name} does not receive")
        found.writes = list(self.live.writes)
        self.touch("pushed_held")
        self.live.arrived = {"disks": {"disk-0": self.live.digest()}, "attempt": order.attempt}
        return self.live.arrived

    def _target(self, order: Order) -> Host:
        assert order.work.target is not None
        peer = self.peers[order.work.target.host]
        if not peer.up:
            raise StepError(f"{peer.name} is away")
        return peer

    def arriving(self, attempt: str) -> Copy | None:
        """Return the directory into which an attempt's copy comes."""
        return self.live if self.live is not None and self.live.attempt == attempt else self.incoming.get(attempt)

    def pushed(self, order: Order) -> Facts | None:
        held = self.sealed.get(order.attempt) or self.live
        arrived = held.arrived if held is not None else None
        return arrived if arrived and arrived.get("attempt", order.attempt) == order.attempt else None

    def verify(self, order: Order, control: Control) -> Facts:
        self.touch("verify_disks")
        found = self.arriving(order.attempt)
        sent = order.results.get("copy_disks") or order.results["move_memory"]
        if found is None or found.digest() != sent["disks"]["disk-0"]:
            raise StepError("the copy differs from what was sent")
        return {}

    def resize(self, order: Order, control: Control) -> Facts:
        self.touch("resize_disks")
        self.incoming[order.attempt].size_mb = order.work.guest.disks[0].size_mb
        self.touch("resized")
        return {}


class Crossing:
    """The memory of a guest that moves while it runs: all of it, or nothing."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def describe(self, order: Order) -> Facts:
        self._host.touch("describe")
        if self._host.process is not PowerState.RUNNING:
            raise StepError("it does not run")
        return {"definition": definition_of(order)}

    def check(self, order: Order) -> None:
        self._host.touch("check_processor")

    def expect(self, order: Order, control: Control) -> None:
        if self._host.process not in ALIVE:
            self._host.create_paused(order.server)
        self._host.has_memory = False
        self._host.touch("expected")

    def forget(self, order: Order) -> None:
        self._host.destroy(order.server)

    def begin(self, order: Order, control: Control) -> float | None:
        self._host.touch("begin_memory")
        if self._host.process is not PowerState.RUNNING:
            raise StepError("it does not run any more")
        if order.holds_first:
            self._host.process = PowerState.PAUSED
            return clock.now()
        return None

    def is_held(self, order: Order, control: Control) -> bool:
        self._host.touch("hold")
        if self._host.process is not PowerState.RUNNING:
            raise StepError("its process ended")
        self._host.process = PowerState.PAUSED
        self._host.touch("held")
        return True

    def complete(self, order: Order, control: Control) -> Facts:
        self._host.touch("complete")
        peer = self._host._target(order)
        if peer.process is not PowerState.PAUSED or self._host.process is not PowerState.PAUSED:
            raise StepError("nobody waits for it")
        assert self._host.tpm is not None
        peer.tpm = list(self._host.tpm)
        peer.has_memory = self._host.gave_memory = True
        self._host.touch("completed")
        return {"memory_bytes": 1}

    def is_gone(self, order: Order) -> bool:
        return self._host.process is PowerState.PAUSED and self._host.gave_memory

    def give_up(self, order: Order) -> None:
        self._host.touch("give_up")
        if self._host.process is PowerState.PAUSED and not self._host.gave_memory:
            self._host.process = PowerState.RUNNING

    def await_arrival(self, order: Order, control: Control) -> None:
        self._host.touch("await_arrival")
        if not self._host.has_memory:
            raise StepError("its memory has not come")


class Promises(LedgerGrants):
    """The real grants, with a boundary before and after each promise."""

    def __init__(self, ledger: Ledger, host: Host, may_run: Callable[[], bool]) -> None:
        super().__init__(ledger, may_run)
        self._host = host
        self._touch = host.touch

    def grant(self, order: Order) -> None:
        self._touch("grant")
        super().grant(order)
        self._host.granted = order.epoch
        self._touch("granted")

    def release(self, order: Order) -> None:
        self._touch("release")
        super().release(order)
        self._touch("released")

    def seal(self, server: str, attempt: str) -> None:
        self._touch("promise")
        super().seal(server, attempt)
        self._touch("promised")
