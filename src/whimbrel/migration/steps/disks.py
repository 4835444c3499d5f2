"""The bytes: room for them, their way, and the proof that they arrived."""

from __future__ import annotations

from whimbrel.domain.migration import Answer
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World


def prepare(world: World, order: Order, control: Control) -> Facts:
    """Make the incoming directory with everything that can be made before the guest is stopped."""
    return world.disks.prepare(order, control)


def discard(world: World, order: Order, control: Control) -> Facts:
    """Remove what this attempt made at the target, and nothing else; the undo of its definition may still be owed."""
    if world.directories.is_live(order.server, order.attempt):
        world.guests.destroy(order.server)
        world.guests.undefine(order.server, for_good=True)
    return {"freed_bytes": world.directories.discard(order.server, order.attempt)}


def are_prepared(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """A directory that was made in part is made again."""
    return (Answer.DONE if world.disks.is_prepared(order) else Answer.NOT_DONE), {}


def precopy(world: World, order: Order, control: Control) -> Facts:
    """Copy the disks while the guest runs, so that little is left to be sent when it is off."""
    return world.disks.precopy(order, control)


def end_precopy(world: World, order: Order, control: Control) -> Facts:
    """Give the copy of the running guest up, and leave nothing of it at the source."""
    world.disks.end_precopy(order, control)
    return {}


def push(world: World, order: Order, control: Control) -> Facts:
    """Send the disks; the channel's copy slot is free afterwards, whatever happened."""
    try:
        world.channels.take_slot(order, control)
        return world.disks.push(order, control)
    finally:
        world.channels.close(order)


def match(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Only a copy that was finished, and recorded as such, counts."""
    facts = world.disks.pushed(order)
    return (Answer.NOT_DONE, {}) if facts is None else (Answer.DONE, facts)


def verify(world: World, order: Order, control: Control) -> Facts:
    """Read the copy back from the target's disk and compare digests."""
    return world.disks.verify(order, control)


def resize(world: World, order: Order, control: Control) -> Facts:
    """Give the copied disks the new flavor's sizes; swap is made anew."""
    return world.disks.resize(order, control)
