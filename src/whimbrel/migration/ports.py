"""What a step may ask of the world. Synchronous; each long call gets a Control and must heed it.

The agent's ports have a real and a fake implementation under one contract suite; Books is the conductor's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from whimbrel.domain.migration import Where
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Facts, Foresee, Foresight, Order, Outlook, Phase, Steering


class Control(Protocol):
    """How a running step is told to stop, and how it says how far it is."""

    def check(self) -> None:
        """Raise Cancelled when the step was told to stop, TimedOut when its deadline has passed."""

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than the deadline and not after a cancel; then `check`."""

    def left(self) -> float:
        """Return the seconds that are left until the step's deadline."""

    def restart_limit(self) -> None:
        """Count the limit from now: waiting for a copy slot was not work."""

    def restart_stall(self) -> None:
        """Count the stall limit from now: something moved that the figure does not show."""

    def steering(self) -> Steering:
        """Return how fast to copy and whether to hurry, as it was said last."""

    def report(self, done: int, total: int, phase: Phase = Phase.DISKS) -> None:
        """Say how far the step is, in bytes; cheap, sent at most once a second."""

    def expect(self, outlook: Outlook) -> None:
        """Say what is to be expected of the copy of a guest that runs; it goes with the next report."""


class Guests(Protocol):
    """The hypervisor. Each call raises CannotTell when the hypervisor does not answer."""

    def state(self, server: str) -> PowerState | None:
        """Return the guest's state, None when it is not defined here. STOPPED means that no process holds its disks."""

    def known(self) -> dict[str, PowerState]:
        """Return every guest on this host by its UUID, whoever made it; UNKNOWN for one whose process only is here.

        That is a process that holds a guest's disks while the hypervisor does not know that it runs.
        """

    def compose(self, order: Order) -> tuple[str, list[str]]:
        """Return the definition for this host, and the rewrites that made it differ from the one it came with."""

    def define(self, server: str, definition: str) -> None:
        """Make the guest known, stopped; the same definition again is accepted."""

    def undefine(self, server: str, *, for_good: bool = False) -> None:
        """Forget a stopped guest; one that is not known is accepted, one that runs is refused.

        What its TPM remembers is laid beside its disks or, when those go as well, is removed.
        """

    def definition(self, server: str) -> str | None:
        """Return the guest's definition, None when it is not defined here."""

    def create_paused(self, server: str) -> None:
        """Make the guest's process without letting it run; raise StepError with the hypervisor's own words."""

    def resume(self, server: str) -> None:
        """Let a paused guest run."""

    def shut_down(self, server: str, grace: float, control: Control) -> bool:
        """Ask the guest to stop, and stop it by force after `grace` seconds; return whether force was needed.

        A paused guest cannot heed, so it is stopped at once.
        """

    def destroy(self, server: str) -> None:
        """Stop the guest at once; one that is stopped or unknown is accepted."""


class Directories(Protocol):
    """The names under which a server's files stand: live, incoming (at a target), sealed (at a source)."""

    def adopt(self, server: str, attempt: str) -> None:
        """Rename incoming to live; accepted when it is done already."""

    def disown(self, server: str, attempt: str) -> None:
        """Rename live, if this attempt made it, back to incoming."""

    def is_live(self, server: str, attempt: str | None = None) -> bool:
        """Return whether the live directory is there (and was made by this attempt)."""

    def seal(self, server: str, attempt: str) -> None:
        """Rename live to sealed; accepted when it is done already."""

    def unseal(self, server: str, attempt: str) -> None:
        """Rename sealed back to live; accepted when it is done already."""

    def bring_back(self, server: str) -> None:
        """Rename the only sealed copy to live when there is no live one: an unseal was given up after errors."""

    def is_sealed(self, server: str, attempt: str) -> bool:
        """Return whether the copy that this attempt sealed is there."""

    def save_definition(self, server: str, definition: str) -> None:
        """Keep the guest's definition in the live directory, synced."""

    def saved_definition(self, server: str, attempt: str) -> str | None:
        """Return the definition kept in the live or sealed directory."""

    def discard(self, server: str, attempt: str) -> int:
        """Remove what this attempt made here, incoming or live; return the bytes freed."""

    def remove_sealed(self, server: str, attempt: str) -> int:
        """Remove the copy that this attempt sealed; return the bytes freed."""

    def remove_all(self, server: str) -> int:
        """Remove everything of a server that is closed; return the bytes freed."""


class Disks(Protocol):
    """The disk files and the bytes in them."""

    def prepare(self, order: Order, control: Control) -> Facts:
        """Make the incoming directory with base image, room and (in a build) new disks and config drive."""

    def is_prepared(self, order: Order) -> bool:
        """Return whether the incoming directory of this attempt is whole."""

    def foresee(self, question: Foresee) -> Foresight:
        """Say how a server would be moved that lives here, and change nothing."""

    def precopy(self, order: Order, control: Control) -> Facts:
        """Copy the disks while the guest runs, in rounds; what is left is sent by `push`.

        The facts say `skipped`, and why, where the guest or its disks cannot be copied so.
        """

    def close_log(self, order: Order, control: Control) -> None:
        """Take what the guest wrote last from its files, now that it is off, and leave nothing of the log in them."""

    def end_precopy(self, order: Order, control: Control) -> None:
        """Give a copy of a running guest up, and leave nothing of it here; one that is not under way is accepted."""

    def push(self, order: Order, control: Control) -> Facts:
        """Send every disk's bytes to the target; return bytes and the digest of each disk."""

    def pushed(self, order: Order) -> Facts | None:
        """Return what `push` returned, when the target holds everything that it sent."""

    def verify(self, order: Order, control: Control) -> Facts:
        """Read the disks back from the target's disk and compare with the digests in the order's results."""

    def copy_on(self, order: Order, control: Control) -> None:
        """Do one more round of a copy that `precopy` has begun; the guest runs."""

    def push_held(self, order: Order, control: Control) -> Facts:
        """Send what the guest wrote last; it is held and its disks are at rest. Facts as those of `push`."""

    def resize(self, order: Order, control: Control) -> Facts:
        """Give the incoming disks their new sizes; a root disk grows and never shrinks."""


class Memory(Protocol):
    """The memory and the devices of a guest that moves while it runs."""

    def describe(self, order: Order) -> Facts:
        """Return `definition` of the running guest and the processor that it sees; StepError if it cannot move so."""

    def check(self, order: Order) -> None:
        """Raise StepError when the processor of this host cannot take over the guest that was described."""

    def expect(self, order: Order, control: Control) -> None:
        """Make the guest's process at the target, waiting for its memory; it is not let run."""

    def forget(self, order: Order) -> None:
        """Expect it no longer, and end the process; one that is not expected is accepted."""

    def begin(self, order: Order, control: Control) -> float | None:
        """Begin to send the memory; return None when the guest runs meanwhile, or the time at which it was held."""

    def is_held(self, order: Order, control: Control) -> bool:
        """Return whether all but the last of it has crossed, and the guest is held, with its disks at rest."""

    def hold(self, order: Order) -> float:
        """Hold the guest now, so that no page of it changes any more; return the time."""

    def complete(self, order: Order, control: Control) -> Facts:
        """Send the last of it; afterwards the guest does not run again by itself. Facts: `memory_bytes`."""

    def is_gone(self, order: Order) -> bool:
        """Return whether all of it was sent, and the process that gave it away is still held."""

    def give_up(self, order: Order) -> None:
        """Send no more of it; a guest that is held then runs on. One that is not under way is accepted."""

    def await_arrival(self, order: Order, control: Control) -> None:
        """Wait at the target until all of it has come, and the guest could be let run."""


class Channels(Protocol):
    """The way to the other host: OpenSSH with one forced command, opened before anything is stopped."""

    def open(self, order: Order, control: Control) -> Facts:
        """Open the channel, ask the target for room and whether the storage is shared."""

    def close(self, order: Order) -> None:
        """Close the channel and give its copy slot back; one that is closed is accepted."""

    def is_open(self, order: Order) -> bool:
        """Return whether the channel is open now."""

    def reserve_slot(self, order: Order, control: Control) -> None:
        """Wait until this host may run one more copy, which is to begin soon."""

    def take_slot(self, order: Order, control: Control) -> None:
        """Hold the copy's slot until the channel is closed; one that was reserved too long ago is waited for again."""


class Grants(Protocol):
    """The host's durable word on who may run here. Each call returns after the ledger is on the disk."""

    def grant(self, order: Order) -> None:
        """Record that this boot of this host may run the server at the order's epoch; lifts a seal.

        Raises StepError when the order was overtaken, or the host may not run guests now.
        """

    def release(self, order: Order) -> None:
        """Record that the guest is let run at the order's epoch, before it is; refused as a grant is."""

    def was_released(self, server: str, epoch: int) -> bool:
        """Return whether the guest was ever let run here at this epoch or a later one."""

    def granted_since(self, server: str, epoch: int) -> bool:
        """Return whether this host was ever allowed to run the server at this epoch or a later one."""

    def seal(self, server: str, attempt: str) -> None:
        """Promise not to run the server again without a newer grant."""

    def is_sealed(self, server: str) -> bool:
        """Return whether that promise stands."""


@dataclass(frozen=True)
class World:
    """All that a step on a host may touch."""

    guests: Guests
    directories: Directories
    disks: Disks
    channels: Channels
    grants: Grants
    memory: Memory


@dataclass(frozen=True)
class Case:
    """What a conductor's step is about."""

    migration: int
    server: str
    attempt: str
    source: str | None
    target: str | None


class Books(Protocol):
    """The conductor's own ledgers, inside its transaction."""

    def take_claim(self, case: Case) -> Facts:
        """Set the new flavor's room aside at the target; raise StepError with the figures when it is not there."""

    def give_back_claim(self, case: Case) -> None:
        """Give back what this attempt claimed at the target."""

    def settle_claims(self, case: Case, *, keep: Where | None) -> Facts:
        """Keep the server's claim at the target (this attempt's) or at the source, and give the others back."""

    def place(self, case: Case, *, at: Where) -> Facts:
        """Record that the server belongs to the source or the target now, at a new epoch, with that side's flavor."""

    def close_server(self, case: Case) -> None:
        """Record that the server is deleted; its addresses are free."""
