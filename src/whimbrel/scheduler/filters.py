"""Filters: each a function from (hosts, request) to a mask of hosts that may stay, and a sentence for the others.

To add one, write the function and put it into FILTERS; the refusals and the counts fall out of the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whimbrel.migration.messages import SelectTargets
from whimbrel.scheduler.table import HostTable

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Filter:
    """A named rule; `reason` says, for the host at an index, why it was refused."""

    name: str
    keep: Callable[[HostTable, SelectTargets], Mask]
    reason: Callable[[HostTable, SelectTargets, int], str]


def _room(column: str, unit: str) -> Filter:
    label = {"vcpus": "CPU", "ram_mb": "RAM", "disk_gb": "disk"}[column]

    def keep(table: HostTable, request: SelectTargets) -> Mask:
        mask: Mask = table.free[column] >= getattr(request, column)
        return mask

    def reason(table: HostTable, request: SelectTargets, index: int) -> str:
        need, have = getattr(request, column), int(table.free[column][index])
        return f"{need}{unit} {label} needed, {have}{unit} free of {int(table.limit[column][index])}{unit}"

    return Filter(label, keep, reason)


def _named(table: HostTable, names: tuple[str, ...]) -> Mask:
    return np.isin(table.names, np.array(names, dtype=object)) if names else np.zeros(len(table.names), dtype=np.bool_)


def _not_source(table: HostTable, request: SelectTargets) -> Mask:
    if request.source is None or request.same_host_allowed:
        return np.ones(len(table.names), dtype=np.bool_)
    return ~_named(table, (request.source,))


def _forced(table: HostTable, request: SelectTargets) -> Mask:
    if request.forced_host is None:
        return np.ones(len(table.names), dtype=np.bool_)
    return _named(table, (request.forced_host,))


def _speaks(table: HostTable, request: SelectTargets) -> Mask:
    return np.array([held.get(request.protocol) == request.version for held in table.protocols], dtype=np.bool_)


def _architecture(table: HostTable, request: SelectTargets) -> Mask:
    if not request.architecture:
        return np.ones(len(table.names), dtype=np.bool_)
    same: Mask = table.architecture == request.architecture
    return same


def _firmware(table: HostTable, request: SelectTargets) -> Mask:
    return table.uefi if request.uefi else np.ones(len(table.names), dtype=np.bool_)


def _tpm(table: HostTable, request: SelectTargets) -> Mask:
    return table.tpm if request.tpm else np.ones(len(table.names), dtype=np.bool_)


FILTERS: tuple[Filter, ...] = (
    Filter("forced host", _forced, lambda t, r, i: f"host {r.forced_host} was asked for"),
    Filter("not the source", _not_source, lambda t, r, i: "the server is there already"),
    Filter("not tried before", lambda t, r: ~_named(t, r.exclude), lambda t, r, i: "it was tried in this migration"),
    Filter("up", lambda t, r: t.up, lambda t, r, i: t.down_reason[i]),
    Filter("enabled", lambda t, r: t.enabled, lambda t, r, i: t.disabled_reason[i] or "the service is disabled"),
    Filter("protocol", _speaks, lambda t, r, i: f"its agent does not hold {r.protocol} version {r.version}"),
    Filter("architecture", _architecture, lambda t, r, i: f"{r.architecture} needed, it is {t.architecture[i]}"),
    Filter("firmware", _firmware, lambda t, r, i: "UEFI needed, it has no such firmware"),
    Filter("TPM", _tpm, lambda t, r, i: "a TPM needed, it lacks swtpm and swtpm_setup, or their user"),
    _room("vcpus", ""),
    _room("ram_mb", " MiB"),
    _room("disk_gb", " GiB"),
)
