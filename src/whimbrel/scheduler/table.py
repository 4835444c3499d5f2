"""All hosts as columns of arrays, read from the store; what is free is what may be claimed less what is claimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, or_, select

from whimbrel.domain.claim import NOTHING
from whimbrel.store import claims
from whimbrel.store.tables import hosts, migrations

Strings = NDArray[np.object_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class HostTable:
    """One row per host, in every column the same order."""

    names: Strings
    up: NDArray[np.bool_]
    down_reason: list[str]
    enabled: NDArray[np.bool_]
    disabled_reason: list[str | None]
    protocols: list[dict[str, int]]
    architecture: Strings
    uefi: NDArray[np.bool_]
    tpm: NDArray[np.bool_]
    limit: dict[str, Integers]
    free: dict[str, Integers]
    moves: Integers

    def only(self, mask: NDArray[np.bool_]) -> HostTable:
        """Return the rows at which the mask is set."""
        chosen = np.flatnonzero(mask)
        return HostTable(
            names=self.names[mask],
            up=self.up[mask],
            down_reason=[self.down_reason[i] for i in chosen],
            enabled=self.enabled[mask],
            disabled_reason=[self.disabled_reason[i] for i in chosen],
            protocols=[self.protocols[i] for i in chosen],
            architecture=self.architecture[mask],
            uefi=self.uefi[mask],
            tpm=self.tpm[mask],
            limit={name: column[mask] for name, column in self.limit.items()},
            free={name: column[mask] for name, column in self.free.items()},
            moves=self.moves[mask],
        )


def read(tx: Connection, now: float, down_after: float) -> HostTable:
    """Read every host, its claims and the moves in flight at it."""
    rows = tx.execute(select(hosts).order_by(hosts.c.name)).all()
    used = claims.claimed(tx)
    moves = _moves(tx)
    limits = [claims.capacity_of(row).limit() for row in rows]
    columns = ("vcpus", "ram_mb", "disk_gb")
    limit = {name: np.array([getattr(room, name) for room in limits], dtype=np.int64) for name in columns}
    taken = {
        name: np.array([getattr(used.get(row.name, NOTHING), name) for row in rows], dtype=np.int64) for name in columns
    }
    return HostTable(
        names=np.array([row.name for row in rows], dtype=object),
        up=np.array([not row.forced_down and now - row.heard_at <= down_after for row in rows], dtype=np.bool_),
        down_reason=[_down(row, now) for row in rows],
        enabled=np.array([row.enabled for row in rows], dtype=np.bool_),
        disabled_reason=[row.disabled_reason for row in rows],
        protocols=[row.protocols for row in rows],
        architecture=np.array([row.architecture for row in rows], dtype=object),
        uefi=np.array([row.uefi for row in rows], dtype=np.bool_),
        tpm=np.array([row.tpm for row in rows], dtype=np.bool_),
        limit=limit,
        free={name: limit[name] - taken[name] for name in columns},
        moves=np.array([moves.get(row.name, 0) for row in rows], dtype=np.int64),
    )


def _moves(tx: Connection) -> dict[str, int]:
    """Count, per host, the open migrations that it is the source or the target of."""
    counts: dict[str, int] = {}
    for column in (migrations.c.source, migrations.c.target):
        query = (
            select(column, func.count())
            .where(migrations.c.open, migrations.c.window_open.is_(False), or_(column.is_not(None)))
            .group_by(column)
        )
        for host, count in tx.execute(query):
            counts[host] = counts.get(host, 0) + count
    return counts


def _down(row: Any, now: float) -> str:
    if row.forced_down:
        return "it was forced down"
    return f"its agent was last heard {int(now - row.heard_at)} s ago"
