"""The protocols, each a table of steps. The table is the code: this is the whole migration.

Read a row as: who does it, how it is done, how it is undone, how one finds out whether it is really so, and how
long it may take. Rows are done from top to bottom and undone from bottom to top. After a crash a row that was
being done is asked about, not done again.

Words after the limit say what a row is special in:

* `word`: its undo must be answered by the host itself, because only that host can run the guest or say that it
  does not. Any other undo that finds its host silent becomes a debt of that host.
* `proof`: what may stand in for that word when the host is silent.
* `fence`: its silence turns nothing back: the host's word is awaited, or the proof. Its undo is never owed, because
  a host that comes back is told by then who runs the server.
* `raises`: its undo lets another host run the server, so it is ordered at a new epoch.
* `owed`: doing it may become a debt of a silent host: nobody waits for it.
* `no_return`: once it was begun, the protocol only goes forward.
* `turns`: the server changes hosts here, so a cancel comes too late from here on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whimbrel.domain.migration import Answer, Proof, Where
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Books, Case, Control, World
from whimbrel.migration.steps import again, channel, claim, disks, guest, handover, live, retire

HostAction = Callable[[World, Order, Control], Facts]
HostProbe = Callable[[World, Order, Control], tuple[Answer, Facts]]
BooksAction = Callable[[Books, Case], Facts]

SECOND = 1.0
MINUTE = 60.0
DAY = 86400.0


@dataclass(frozen=True)
class Limit:
    """How long a step may work, in seconds. `grace` adds the guest's shutdown time; `stall` is without a byte moved."""

    seconds: float
    grace: bool = False
    stall: float | None = None

    def of(self, grace: float) -> float:
        """Return the limit for a guest that has `grace` seconds to shut down."""
        return self.seconds + (grace if self.grace else 0.0)


@dataclass(frozen=True)
class HostStep:
    """A row done by the agent of the source or of the target."""

    name: str
    where: Where
    do: HostAction
    undo: HostAction | None
    probe: HostProbe
    limit: Limit
    word: bool = False
    raises: bool = False
    owed: bool = False
    no_return: bool = False
    turns: bool = False
    proof: Proof = Proof.NONE
    fence: bool = False
    why: str = ""


@dataclass(frozen=True)
class BooksStep:
    """A row done by the conductor inside its own transaction, so it is done or not done, and never in between."""

    name: str
    do: BooksAction
    undo: BooksAction | None
    no_return: bool = False
    turns: bool = False
    why: str = ""
    where: Where = Where.CONDUCTOR
    word: bool = False
    raises: bool = False
    owed: bool = False
    proof: Proof = Proof.NONE
    fence: bool = False


Step = HostStep | BooksStep


@dataclass(frozen=True)
class Protocol:
    """A named, versioned table. A migration's record names the version that it follows."""

    name: str
    version: int
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        """Return the row of this name; KeyError when there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"protocol {self.name} has no step {name}")

    def position(self, name: str) -> int:
        """Return the row's number from the top, beginning at 0."""
        return [step.name for step in self.steps].index(name)


def limit(seconds: float) -> Limit:
    """Return a plain limit."""
    return Limit(seconds)


GRACE = Limit(50 * SECOND, grace=True)
S, T = Where.SOURCE, Where.TARGET
NOTHING = None


def STALL(seconds: float) -> Limit:  # it stands in the tables beside GRACE
    """Return the limit of a copy: as long as bytes move, but no longer than a day."""
    return Limit(DAY, stall=seconds)


# fmt: off
CLAIM = BooksStep("claim", claim.take, claim.give_back,
    why="Room is set aside in the same transaction that chooses the target, so two moves never take the same room.")
PREPARE = HostStep("prepare", T, disks.prepare, disks.discard, disks.are_prepared, limit(10 * MINUTE),
    why="All that can fail or take long without touching the guest is done while it still runs.")
OPEN_CHANNEL = HostStep("open_channel", S, channel.open, channel.close, channel.is_open, limit(20 * SECOND),
    why="Keys, names, room at the target and shared storage are proved before the guest is stopped.")
PRECOPY = HostStep("precopy", S, disks.precopy, disks.end_precopy, again.is_simple, STALL(60),
    why="The disks cross while the guest runs, so its downtime does not depend on their size; where that cannot be, "
        "the row says why.")
STOP_GUEST = HostStep("stop_guest", S, guest.seal, guest.unseal, guest.is_sealed, GRACE, word=True, raises=True,
    why="The source promises durably not to run the guest again, then stops it, so that nothing can start it twice.")
COPY_DISKS = HostStep("copy_disks", S, disks.push, NOTHING, disks.match, STALL(60),
    why="The guest is stopped, so its files are opaque bytes; what arrives belongs to the incoming directory.")
VERIFY_DISKS = HostStep("verify_disks", T, disks.verify, NOTHING, again.is_simple, STALL(60),
    why="The target reads its disk back and compares digests: a copy counts when it was seen to be whole.")
DEFINE_GUEST = HostStep("define_guest", T, guest.define, guest.undefine, guest.is_defined, limit(30 * SECOND),
    why="The same machine: what differs from the source's definition is declared and recorded.")
HAND_OVER = BooksStep("hand_over", handover.commit, handover.take_back, turns=True,
    why="The runner changes in one transaction, at a new epoch; every older order is powerless from here.")
START_GUEST = HostStep("start_guest", T, guest.start, guest.revoke, guest.is_running, limit(60 * SECOND),
    word=True, raises=True, proof=Proof.GIVEN,
    why="Made paused, recorded as released, then let run: whether it ever ran here can always be asked.")
RESIZE_DISKS = HostStep("resize_disks", T, disks.resize, NOTHING, again.is_simple, limit(60 * SECOND),
    why="The verified copy grows to the new flavor; the source's copy keeps its size for a revert.")

COLD = Protocol("cold", 2, (
    CLAIM, PREPARE, OPEN_CHANNEL, PRECOPY, STOP_GUEST, COPY_DISKS, VERIFY_DISKS, DEFINE_GUEST, HAND_OVER, START_GUEST,
))  # ends with the undo window open

RESIZE = Protocol("resize", 2, (
    CLAIM, PREPARE, OPEN_CHANNEL, PRECOPY, STOP_GUEST, COPY_DISKS, VERIFY_DISKS, RESIZE_DISKS, DEFINE_GUEST, HAND_OVER,
    START_GUEST,
))

MEMORY_ROWS = (
    CLAIM,
    HostStep("describe_guest", S, live.describe, NOTHING, again.is_simple, limit(20 * SECOND),
        why="What runs is asked first, so that nothing is made where it could not run on."),
    HostStep("check_processor", T, live.check, NOTHING, again.is_simple, limit(20 * SECOND),
        why="A guest that has seen a processor's features must find them at the target."),
    PREPARE, OPEN_CHANNEL,
    HostStep("precopy", S, live.precopy, disks.end_precopy, again.is_simple, STALL(60),
        why="The disks cross first, while the guest runs; what it writes meanwhile follows with its memory."),
    DEFINE_GUEST,
    HostStep("expect_guest", T, live.expect, live.forget, again.is_simple, limit(60 * SECOND),
        why="The process that takes the guest over is made before the guest is held, so that only memory is to come."),
    HostStep("move_memory", S, live.move, live.stay, live.is_moved, STALL(30), word=True, raises=True,
        why="The guest runs until the last of its memory, or is held for all of it (suspended); then it is whole at "
            "the source, and sealed."),
    VERIFY_DISKS, HAND_OVER,
    HostStep("resume_guest", T, live.arrive, guest.revoke, guest.is_running, limit(30 * SECOND),
        word=True, raises=True, proof=Proof.GIVEN,
        why="All of it has come and the hand-over is written: recorded as released, then let run."),
)

SUSPENDED = Protocol("suspended", 1, (
    *MEMORY_ROWS,
    HostStep("put_aside", S, guest.put_aside, NOTHING, again.is_simple, limit(60 * SECOND), owed=True, no_return=True,
        why="What was held at the source ends, and its files are kept for a revert; a source that is away owes it."),
))  # ends with the undo window open

LIVE = Protocol("live", 1, (
    *MEMORY_ROWS,
    HostStep("retire_source", S, live.retire, NOTHING, again.is_simple, limit(60 * SECOND),
        owed=True, no_return=True,
        why="The guest runs at the target; what was held at the source goes, and a source that is away owes it."),
    BooksStep("settle_claims", claim.settle_target, NOTHING,
        why="The target's claim becomes the server's; the source's room is free when its files are."),
))  # there is no undo window: the guest never stopped, and a way back is another live move

CONFIRM = Protocol("confirm", 1, (
    HostStep("retire_source", S, retire.source, NOTHING, again.is_simple, limit(60 * SECOND),
        owed=True, no_return=True,
        why="The user said yes, so the source's copy may go; a source that is away owes it."),
    BooksStep("settle_claims", claim.settle_target, NOTHING,
        why="The target's claim becomes the server's; the source's room is free when its files are."),
))

REVERT = Protocol("revert", 1, (
    HostStep("check_source", S, guest.check_source, NOTHING, again.is_simple, limit(20 * SECOND),
        why="When the source cannot be reached, the revert refuses here and the target runs on."),
    HostStep("stop_target", T, guest.stop_target, guest.restart, guest.is_stopped, limit(60 * SECOND),
        word=True, raises=True, proof=Proof.ANY,
        why="The target promises not to run the guest again before the source may."),
    BooksStep("take_back", handover.take_back, NOTHING, no_return=True, turns=True,
        why="The runner changes back in one transaction, at a new epoch."),
    HostStep("start_source", S, guest.unseal, NOTHING, guest.is_unsealed, limit(60 * SECOND), word=True,
        why="The sealed copy gets its name back and runs, if it ran before."),
    HostStep("discard_target", T, disks.discard, NOTHING, again.is_simple, limit(60 * SECOND), owed=True,
        why="Only when the source has its guest back is the target's copy given up."),
    BooksStep("settle_claims", claim.settle_source, NOTHING,
        why="The source's claim was kept all the time; the target's is given back."),
))

BUILD = Protocol("build", 1, (
    CLAIM, PREPARE, DEFINE_GUEST, HAND_OVER, START_GUEST,
))

EVACUATE = Protocol("evacuate", 1, (
    CLAIM, PREPARE,
    HostStep("fence_source", S, guest.fence, guest.restart, guest.is_fenced, limit(30 * SECOND),
        raises=True, proof=Proof.ANY, fence=True,
        why="The old host says that it does not run the guest any more, or a proof says so in its place."),
    DEFINE_GUEST, HAND_OVER, START_GUEST,
    HostStep("remove_stale", S, retire.stale, NOTHING, again.is_simple, limit(60 * SECOND),
        owed=True, no_return=True,
        why="The old copy goes only once the server runs elsewhere; a host that is away owes it."),
    BooksStep("settle_claims", claim.settle_target, NOTHING,
        why="The new claim becomes the server's; the old host's room is free when its files are."),
))  # without shared storage the disks are made anew from the image: what was on the old host's is not there

DELETE = Protocol("delete", 1, (
    HostStep("remove_guest", T, retire.everything, NOTHING, again.is_simple, limit(60 * SECOND),
        owed=True, no_return=True,
        why="Deleting ends for the user at once; a host that is away owes the clean-up."),
    HostStep("remove_source", S, retire.everything, NOTHING, again.is_simple, limit(60 * SECOND),
        owed=True,
        why="In the undo window there is a second copy at the source."),
    BooksStep("release_claims", claim.release_all, NOTHING,
        why="Claims, addresses and the name are free again."),
))

POWER = Protocol("power", 1, (
    HostStep("set_power", T, guest.set_power, NOTHING, guest.is_powered, GRACE,
        why="Start, stop and reboot are orders like any other: numbered, written down, answered."),
))
# fmt: on

PROTOCOLS = {
    table.name: table for table in (COLD, RESIZE, SUSPENDED, LIVE, CONFIRM, REVERT, BUILD, EVACUATE, DELETE, POWER)
}


def protocol(name: str, version: int) -> Protocol:
    """Return the table that a record names; KeyError when this release does not hold it."""
    table = PROTOCOLS.get(name)
    if table is None or table.version != version:
        raise KeyError(f"this release does not hold protocol {name} version {version}")
    return table
