"""The way to the other host, proved and opened while the guest still runs."""

from __future__ import annotations

from whimbrel.domain.migration import Answer
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World


def open(world: World, order: Order, control: Control) -> Facts:  # the step's verb
    """Open the channel; the facts say whether storage is shared and how much is to be sent."""
    return world.channels.open(order, control)


def close(world: World, order: Order, control: Control) -> Facts:
    """Close it and give the copy slot back."""
    world.channels.close(order)
    return {}


def is_open(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """After a restart of the agent the channel is gone, and opened anew."""
    return (Answer.DONE if world.channels.is_open(order) else Answer.NOT_DONE), {}
