"""Weighers: each a function from (hosts, request) to a vector, scaled to 0..1 and summed with its multiplier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from whimbrel.migration.messages import SelectTargets
from whimbrel.ops.settings import Scheduler
from whimbrel.scheduler.table import HostTable

Vector = NDArray[np.float64]
Weigher = Callable[[HostTable, SelectTargets], Vector]

WEIGHERS: tuple[tuple[str, Weigher], ...] = (
    ("ram_weight", lambda table, request: table.free["ram_mb"].astype(np.float64)),
    ("cpu_weight", lambda table, request: table.free["vcpus"].astype(np.float64)),
    ("disk_weight", lambda table, request: table.free["disk_gb"].astype(np.float64)),
    ("moves_weight", lambda table, request: -table.moves.astype(np.float64)),
)
"""The setting that holds the multiplier, and the vector: more is better."""


def weigh(table: HostTable, request: SelectTargets, conf: Scheduler) -> Vector:
    """Return each host's weight; a multiplier of 0 switches a weigher off."""
    total = np.zeros(len(table.names), dtype=np.float64)
    for setting, weigher in WEIGHERS:
        total += float(getattr(conf, setting)) * _scaled(weigher(table, request))
    return total


def _scaled(vector: Vector) -> Vector:
    """Scale to 0..1 over the hosts at hand; equal hosts get 0."""
    if vector.size == 0 or vector.max() == vector.min():
        return np.zeros_like(vector)
    scaled: Vector = (vector - vector.min()) / (vector.max() - vector.min())
    return scaled
