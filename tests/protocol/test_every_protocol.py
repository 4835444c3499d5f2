"""Every table of steps under every fault: it ends, with the guest whole, at one host, and nothing left over.

The tests know no protocol by name: `scenarios.SCENARIOS` says what is begun and how it may end.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.protocol.audit import audit
from tests.protocol.cluster import Cluster
from tests.protocol.endings import ends_well
from tests.protocol.explore import EXHAUSTIVE, explorer
from tests.protocol.faults import CRASHES, FAILURES, Fault
from tests.protocol.scenarios import SCENARIOS, STORIES, Scenario
from whimbrel.domain.errors import Invalid, NotFound
from whimbrel.migration.protocols import PROTOCOLS

MOVES = {"cold", "resize", "confirm", "revert"}
LONGEST_DOWN = 60.0
"""Seconds without a guest after any one crash, if no host is lost."""
SHUFFLES = 100 if EXHAUSTIVE else 5
REPEATS = 0.3
PAIRS = [
    (Fault.POWER_CUT, Fault.POWER_CUT),
    (Fault.AGENT, Fault.POWER_CUT),
    (Fault.POWER_CUT, Fault.CONDUCTOR),
    (Fault.CONDUCTOR, Fault.AGENT),
    (Fault.POWER_CUT, Fault.AWAY),
]
SHARE = 0.004
SHARES = {story.name: 0.02 for story in STORIES}
"""How much of all pairs is tried, chosen by a fixed seed; all of them with WHIMBREL_EXHAUSTIVE=1."""

every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def test_every_protocol_is_in_the_table_of_scenarios() -> None:
    assert {scenario.table.name for scenario in SCENARIOS} == set(PROTOCOLS)


@every_scenario
def test_without_a_fault_it_ends_well(scenario: Scenario) -> None:
    cluster = scenario.run(scenario.cluster())
    ends_well(scenario, cluster)
    steps = {order.step for agent in cluster.agents.values() for order in agent.obeyed}
    assert steps & {step.name for step in scenario.table.steps}
    cluster.close()


@every_scenario
@pytest.mark.parametrize("fault", CRASHES, ids=lambda fault: fault.name.lower())
def test_a_crash_at_any_boundary_costs_nothing_but_time(scenario: Scenario, fault: Fault) -> None:
    walk = explorer(scenario)
    for _ in walk.courses(fault):
        ends_well(scenario, walk.cluster, ill=fault is Fault.AWAY or scenario.fragile)
        if scenario.table.name in MOVES and scenario.runs and fault is not Fault.AWAY:
            assert walk.cluster.longest_down <= LONGEST_DOWN, walk.cluster.story()


@every_scenario
@pytest.mark.parametrize("fault", FAILURES, ids=lambda fault: fault.name.lower())
def test_a_call_that_fails_at_any_boundary_leaves_nothing_half_done(scenario: Scenario, fault: Fault) -> None:
    walk = explorer(scenario)
    for _ in walk.courses(fault):
        ends_well(scenario, walk.cluster, ill=True)


@every_scenario
def test_each_step_and_each_undo_done_twice_is_as_once(scenario: Scenario) -> None:
    walk = explorer(scenario)
    with done_twice(walk.cluster):
        walk.again()
        ends_well(scenario, walk.cluster)
        for _ in walk.courses(Fault.FAILS_LONG):
            ends_well(scenario, walk.cluster, ill=True)


@contextmanager
def done_twice(cluster: Cluster) -> Iterator[None]:
    """Let every agent do each order twice, as if it had died before it could write down the end of the first time."""
    for agent in cluster.agents.values():
        agent.twice = True
    yield
    for agent in cluster.agents.values():
        agent.twice = False


@every_scenario
def test_a_probe_that_cannot_tell_after_a_crash_is_asked_again(scenario: Scenario) -> None:
    walk = explorer(scenario)
    for _ in walk.courses(Fault.AGENT, Fault.SILENT, share=0.1):
        ends_well(scenario, walk.cluster, ill=scenario.fragile)


@every_scenario
def test_any_message_may_be_lost(scenario: Scenario) -> None:
    walk = explorer(scenario)
    for _ in walk.turns(lambda cluster: cluster.queue.popleft() if cluster.queue else None):
        ends_well(scenario, walk.cluster)


@every_scenario
def test_any_message_may_come_twice_and_late(scenario: Scenario) -> None:
    walk = explorer(scenario)

    def twice_and_late(cluster: Cluster) -> None:
        cluster.queue.extend(list(cluster.queue)[:1])
        cluster.queue.extend(cluster.sent)

    for _ in walk.turns(twice_and_late):
        ends_well(scenario, walk.cluster)


@every_scenario
def test_messages_may_come_in_any_order(scenario: Scenario) -> None:
    walk = explorer(scenario)
    for seed in range(SHUFFLES):
        chance = random.Random(f"{scenario.name} {seed}")
        walk.again(lambda chance=chance: shuffle_and_repeat(walk.cluster, chance))  # type: ignore[misc]
        ends_well(scenario, walk.cluster)


def shuffle_and_repeat(cluster: Cluster, chance: random.Random) -> None:
    """Let the messages in flight overtake one another, and let old ones come again."""
    if cluster.sent and chance.random() < REPEATS:
        cluster.queue.append(chance.choice(cluster.sent))
    waiting = list(cluster.queue)
    chance.shuffle(waiting)
    cluster.queue = deque(waiting)


@every_scenario
def test_whatever_was_ever_sent_changes_nothing_when_all_is_over(scenario: Scenario) -> None:
    walk = explorer(scenario)
    walk.again()
    cluster = walk.cluster
    before = cluster.world()
    for message in list(cluster.sent):
        cluster.queue.append(message)
        cluster.run()
    assert cluster.world() == before, cluster.story()
    ends_well(scenario, cluster)


@every_scenario
def test_a_cancel_at_any_moment_before_the_hand_over_leaves_the_guest_where_it_was(scenario: Scenario) -> None:
    walk = explorer(scenario)
    turns = any(step.turns for step in scenario.table.steps)
    cancelled = 0
    for accepted in walk.turns(cancel):
        cancelled += accepted
        ends_well(scenario, walk.cluster, cancelled=accepted)
    assert turns or not cancelled


def cancel(cluster: Cluster) -> bool:
    """Cancel as a user does; return whether it was accepted."""
    try:
        cluster.cancel()
    except Invalid:
        return False
    return True


@every_scenario
def test_a_delete_at_any_moment_leaves_nothing(scenario: Scenario) -> None:
    walk = explorer(scenario)
    for _ in walk.turns(delete):
        audit(walk.cluster, at_rest=True)
        assert walk.cluster.server().deleted_at is not None, walk.cluster.story()


def delete(cluster: Cluster) -> None:
    """Delete as a user does, who may be too late."""
    with suppress(NotFound):
        cluster.delete()


@pytest.mark.parametrize("scenario", [*STORIES, *SCENARIOS], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda fault: fault.name.lower())
def test_a_crash_at_each_pair_of_boundaries_costs_nothing_but_time(
    scenario: Scenario, first: Fault, second: Fault
) -> None:
    walk = explorer(scenario)
    for _ in walk.courses(first, second, share=SHARES.get(scenario.name, SHARE)):
        ends_well(scenario, walk.cluster, ill=Fault.AWAY in (first, second) or scenario.fragile)
