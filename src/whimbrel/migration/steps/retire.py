"""Removing what is no longer needed: only what this attempt made, or what the server's end names."""

from __future__ import annotations

from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World
from whimbrel.migration.steps import guest


def source(world: World, order: Order, control: Control) -> Facts:
    """Delete the copy that was sealed at the source."""
    guest.put_aside(world, order, control)  # it may still be owed
    return {"freed_bytes": world.directories.remove_sealed(order.server, order.attempt)}


def everything(world: World, order: Order, control: Control) -> Facts:
    """Stop and forget a deleted server and remove all of its files on this host."""
    world.grants.seal(order.server, order.attempt)
    world.guests.destroy(order.server)
    world.guests.undefine(order.server, for_good=True)
    return {"freed_bytes": world.directories.remove_all(order.server)}


def stale(world: World, order: Order, control: Control) -> Facts:
    """Remove what a server left behind when it was evacuated, unless it has come back to this host since."""
    if world.grants.granted_since(order.server, int(order.results["hand_over"]["epoch"])):
        return {"freed_bytes": 0}
    return everything(world, order, control)
