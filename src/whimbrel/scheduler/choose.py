"""Choosing: filters first, each refusal with its reason, then weights, best host first."""

from __future__ import annotations

import numpy as np

from whimbrel.domain.migration import Refusal
from whimbrel.migration.messages import SelectTargets, Targets
from whimbrel.ops.settings import Scheduler
from whimbrel.scheduler.filters import FILTERS
from whimbrel.scheduler.table import HostTable
from whimbrel.scheduler.weighers import weigh

REFUSALS_MAX = 200
"""So many refusals are told one by one; beyond it a person reads no more."""


def choose(table: HostTable, request: SelectTargets, conf: Scheduler) -> Targets:
    """Return up to `max_targets` hosts, best first, and why each of the others was refused."""
    alive = np.ones(len(table.names), dtype=np.bool_)
    refusals: list[Refusal] = []
    for rule in FILTERS:
        keep = rule.keep(table, request)
        for index in np.flatnonzero(alive & ~keep):
            if len(refusals) < REFUSALS_MAX:
                name = str(table.names[index])
                refusals.append(Refusal(name, rule.name, rule.reason(table, request, int(index))))
        alive &= keep
    left = table.only(alive)
    weights = weigh(left, request, conf)
    # A stable order among equals: by name, which is how the table is sorted.
    best = np.argsort(-weights, kind="stable")[: conf.max_targets]
    return Targets(
        hosts=tuple(str(left.names[index]) for index in best),
        weights=tuple(round(float(weights[index]), 3) for index in best),
        refusals=tuple(refusals),
    )
