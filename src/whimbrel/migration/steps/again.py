"""The probe of every step that may be repeated without harm: nobody needs to find out whether it was done."""

from __future__ import annotations

from whimbrel.domain.migration import Answer
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World


def is_simple(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Answer that it is not done: reading, growing to a size and removing are the same twice as once."""
    return Answer.NOT_DONE, {}
