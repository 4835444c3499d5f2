"""Every course of things with one fault or two, each begun from the last state before it, not from the start."""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.protocol import faults
from tests.protocol.cluster import Cluster, State
from tests.protocol.faults import Fault
from tests.protocol.host import Broken
from tests.protocol.scenarios import Scenario

THIN = int(os.environ.get("WHIMBREL_THIN", "1"))
"""Only every so many courses are gone: for mutants, which need to be noticed soon and not by every test."""
VARIANTS = 5
"""Of a scenario that is a variant of another one, every fifth course is gone."""
Plan = tuple[tuple[int, Fault], ...]
EXHAUSTIVE = os.environ.get("WHIMBREL_EXHAUSTIVE", "") not in ("", "0")
"""Set for `make proof`: nothing is left to a sample."""


@dataclass(frozen=True)
class Course:
    """How things went from one state on, under a plan of faults: its boundaries, and a state before each turn."""

    plan: Plan
    boundaries: list[str]
    states: list[tuple[int, State]]

    def before(self, number: int) -> tuple[int, State]:
        """Return the last state before this boundary, and how many boundaries had been passed there."""
        return self.states[bisect_right(self.states, number, key=lambda entry: entry[0]) - 1]


class Explorer:
    """One scenario's cluster, used again for every course."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.cluster = scenario.cluster()
        scenario.begin(self.cluster)
        self._start = self.cluster.save()
        self.plain = self.go(self._start, (), keep=True)

    def go(self, state: State, plan: Plan, *, keep: bool = False) -> Course:
        """Go on from this state under these faults until nothing is under way."""
        cluster = self.cluster
        cluster.restore(state)
        passed = len(cluster.trace)
        faults.at(cluster, plan)
        states: list[tuple[int, State]] = []
        if keep:
            cluster.run(before=lambda: states.append((len(cluster.trace) - passed, cluster.save())))
        else:
            cluster.run()
        return Course(plan, cluster.trace[passed:], states)

    def courses(self, fault: Fault, also: Fault | None = None, *, share: float = 1.0) -> Iterator[Plan]:
        """Go every course with this fault at one boundary (and `also` at a later one); stand at the end of each.

        With a share below 1, about so many of the pairs are taken, chosen by a fixed seed.
        """
        if also is None:
            for first in self._some(numbers(self.plain, fault), fault):
                passed, state = self.plain.before(first)
                yield self._under(state, ((first - passed, fault),), ((first, fault),))
            return
        chance = random.Random(f"{self.scenario.name} {fault} {also}")
        rate = 1.0 if EXHAUSTIVE else share**0.5
        for first in numbers(self.plain, fault):
            if chance.random() < rate:
                yield from self._pairs(first, fault, also, lambda: chance.random() < rate)

    def _pairs(self, first: int, fault: Fault, also: Fault, chosen: Callable[[], bool]) -> Iterator[Plan]:
        """Go the course with a fault at one boundary, and then each that has another one at a later boundary."""
        passed, state = self.plain.before(first)
        plan: Plan = ((first - passed, fault),)
        course = self.go(state, plan, keep=True)
        for second in numbers(course, also):
            if second > first - passed and chosen():
                gone, later = course.before(second)
                left = tuple((number - gone, kind) for number, kind in (*plan, (second, also)) if number >= gone)
                yield self._under(later, left, ((first, fault), (passed + second, also)))

    def _some(self, those: list[Any], fault: Fault | None = None) -> list[Any]:
        """Take every one of them, or every so many; for each fault, others."""
        stride = THIN * (VARIANTS if self.scenario.variant and not EXHAUSTIVE else 1)
        return those[(list(Fault).index(fault) if fault else 0) % stride :: stride]

    def again(self, before: Callable[[], None] = lambda: None) -> None:
        """Go the way once more; `before` is called before each message and each tick."""
        self.cluster.restore(self._start)
        self.cluster.run(before)

    def turns(self, meddle: Callable[[Cluster], Any]) -> Iterator[Any]:
        """Go the way as often as it has turns, and meddle once, each time before another one; yield what that gave."""
        for number, (_, state) in self._some(list(enumerate(self.plain.states))):
            self.cluster.restore(state)
            gave = meddle(self.cluster)
            try:
                self.cluster.run()
            except Broken as error:
                raise Broken(f"{self.scenario.name}: turn {number}: {error}") from None
            yield gave

    def _under(self, state: State, plan: Plan, named: Plan) -> Plan:
        try:
            self.go(state, plan)
        except Broken as error:
            raise Broken(f"{self.scenario.name}: {named}: {error}") from None
        return named


def numbers(course: Course, fault: Fault) -> list[int]:
    """Return the boundaries of a course at which this fault can strike."""
    return [number for number, what in enumerate(course.boundaries) if faults.applies(fault, what)]


@cache
def explorer(scenario: Scenario) -> Explorer:
    """Return the scenario's explorer, one for each process."""
    return Explorer(scenario)
