"""How long a guest is held while its memory crosses, and what its target then does beforehand."""

from __future__ import annotations

from whimbrel.migration.messages import Order
from whimbrel.ops.settings import Agent

AT_ONCE_MB = 16 << 10
"""MiB of memory that a process takes as it starts; more might last longer than the limit of its step (at 0.3 GiB/s,
where the kernel gives it page by page)."""


def holds_first(settings: Agent, order: Order) -> bool:
    """Return whether a guest is held before its memory crosses: where the host's settings or the protocol say so."""
    return settings.live_memory == "held" or order.holds_first


def crosses_once(settings: Agent) -> bool:
    """Return whether the memory of a guest that runs crosses once only; what it wrote since follows when it is held.

    QEMU before 9.0 clears its log of changed pages without telling an emulated processor, which goes on to write to a
    page that it takes for logged (mended there by 03bfc2188f, "physmem: Fix migration dirty bitmap coherency with TCG
    memory access"). So the log of such a guest is begun, and read again, only while the guest is held.
    """
    return settings.virt_type == "qemu"


def takes_at_once(settings: Agent, order: Order) -> bool:
    """Return whether the process at the target takes all of the guest's memory before the guest is held.

    A held guest waits for every page that the target's kernel has yet to give. Where memory is not overcommitted
    the claim has kept room for all of it.
    """
    return holds_first(settings, order) and settings.ram_ratio <= 1 and order.work.old.ram_mb <= AT_ONCE_MB
