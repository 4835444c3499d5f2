"""Orders to try agents with: one small server, two hosts."""

from __future__ import annotations

from typing import Any

from whimbrel.domain.migration import Verb
from whimbrel.domain.server import Disk, DiskRole, Guest, Nic
from whimbrel.migration.messages import Order, Place, Work
from whimbrel.migration.protocols import PROTOCOLS

SERVER = "6f1c2a52-54c1-4f8a-9d6e-6b8f2f2b7d10"
GUEST = Guest(
    SERVER, "vm", 1, 128, (Disk(0, DiskRole.ROOT, "raw", 64),), (Nic("fa:16:3e:00:00:01", "10.0.0.2", 24, "net"),)
)
WORK = Work(GUEST, GUEST, None, Place("h1", "h1"), Place("h2", "h2"), was_running=True, grace=1)


def order(step: str, number: int, **changes: Any) -> Order:
    """Return an order of the cold protocol for host h1 at epoch 1, with these changes."""
    fields: dict[str, Any] = {
        "host": "h1",
        "server": SERVER,
        "migration": 7,
        "segment": 0,
        "attempt": "7-1",
        "protocol": "cold",
        "step": step,
        "verb": Verb.DO,
        "epoch": 1,
        "number": number,
        "limit": 30.0,
        "work": WORK,
        "request_id": "req-1",
    }
    made = {**fields, **changes}
    table = PROTOCOLS.get(made["protocol"])
    return Order(**{"version": table.version if table else 1, **made})
