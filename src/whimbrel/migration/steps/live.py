"""A guest moves while it runs: its memory follows its disks, and it is let run at the target after the hand-over only.

From the end of `move` on it runs nowhere: at the source its process is held, whole and able to go on, until the target
has it; at the target it waits. Whichever side the conductor decides for lets it run, by a grant at a newer epoch.
"""

from __future__ import annotations

from whimbrel.domain.errors import StepError
from whimbrel.domain.migration import Answer
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World
from whimbrel.migration.steps import guest
from whimbrel.ops import clock

ROUND_EVERY = 1.0
"""Seconds between two rounds of the disks while the memory crosses: what the guest writes in them fits its pause."""

LOOK_AGAIN = 0.01
"""Seconds between two looks at whether the guest is held: it waits for whoever looks."""


def describe(world: World, order: Order, control: Control) -> Facts:
    """Tell what runs here, so that the target can say whether it could take it over."""
    return world.memory.describe(order)


def check(world: World, order: Order, control: Control) -> Facts:
    """Compare processors before anything is made or sent."""
    world.memory.check(order)
    return {}


def precopy(world: World, order: Order, control: Control) -> Facts:
    """Copy the disks in rounds; a guest whose disks cannot be copied so cannot move while it runs."""
    facts = world.disks.precopy(order, control)
    if "skipped" in facts:
        raise StepError(f"Server {order.server} cannot move while it runs. {facts['skipped']} Migrate it cold.")
    return facts


def expect(world: World, order: Order, control: Control) -> Facts:
    """Make the process that is to take the guest over, and let it wait."""
    world.memory.expect(order, control)
    return {}


def forget(world: World, order: Order, control: Control) -> Facts:
    """End the process that waits; it was never let run."""
    world.memory.forget(order)
    return {}


def move(world: World, order: Order, control: Control) -> Facts:
    """Send the memory while the guest runs, hold it, send the last of its disks and of its memory, and seal."""
    gone = _gone(world, order)
    if gone is not None:
        return gone
    world.channels.take_slot(order, control)
    try:
        stopped_at = world.memory.begin(order, control)
        due = clock.monotonic()
        while stopped_at is None:
            if control.steering().hurry:
                stopped_at = world.memory.hold(order)
            elif clock.monotonic() >= due:
                world.disks.copy_on(order, control)
                due = clock.monotonic() + ROUND_EVERY
            elif world.memory.is_held(order, control):
                stopped_at = clock.now()
            else:
                control.wait(LOOK_AGAIN)
        facts = world.disks.push_held(order, control)
        facts |= world.memory.complete(order, control)
        world.grants.seal(order.server, order.attempt)
        return {**facts, "stopped_at": stopped_at, "power_state": PowerState.PAUSED}
    except StepError:
        world.memory.give_up(order)
        raise
    finally:
        world.channels.close(order)


def is_moved(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Moved means: sealed, everything sent, and the process still held."""
    facts = _gone(world, order)
    return (Answer.NOT_DONE, {}) if facts is None else (Answer.DONE, facts)


def _gone(world: World, order: Order) -> Facts | None:
    """Return what `move` told of this attempt when it was done, None if it was not."""
    facts = world.disks.pushed(order)
    if facts is None or not world.grants.is_sealed(order.server) or not world.memory.is_gone(order):
        return None
    return {**facts, "power_state": PowerState.PAUSED}


def stay(world: World, order: Order, control: Control) -> Facts:
    """The guest goes on at the source, from where it was held; if its process is gone, it starts anew."""
    definition = world.directories.saved_definition(order.server, order.attempt)
    if world.guests.state(order.server) is None and definition is not None:
        world.guests.define(order.server, definition)
    world.grants.grant(order)
    world.grants.release(order)
    world.memory.give_up(order)
    return {"power_state": guest.run(world, order)}


def arrive(world: World, order: Order, control: Control) -> Facts:
    """Let the guest run on here; one whose memory has not come whole is never started in its place.

    One that has run here and was lost with its host is started anew: its disks are the newest.
    """
    released = world.grants.was_released(order.server, order.epoch)
    try:
        if not released:
            world.memory.await_arrival(order, control)
            if world.guests.state(order.server) not in guest.ALIVE:
                raise StepError(f"The process that was to take over server {order.server} on {order.host} is gone.")
    except StepError as error:
        error.facts["released"] = released
        raise
    return guest.start(world, order, control)


def retire(world: World, order: Order, control: Control) -> Facts:
    """The guest runs at the target: end the process that was held here, and remove its files."""
    if world.grants.granted_since(order.server, int(order.results["hand_over"]["epoch"])):
        return {"freed_bytes": 0}  # it has come back since
    world.grants.seal(order.server, order.attempt)
    world.guests.destroy(order.server)
    world.guests.undefine(order.server, for_good=True)
    if world.directories.is_live(order.server):
        world.directories.seal(order.server, order.attempt)
    return {"freed_bytes": world.directories.remove_sealed(order.server, order.attempt)}
