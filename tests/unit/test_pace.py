"""The limits of how fast bytes leave a host, on a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.orders import order
from whimbrel.agent.control import StepControl
from whimbrel.agent.disks import pace
from whimbrel.agent.disks.pace import LOOSE, Pace, Paces
from whimbrel.migration.messages import LEAST_RATE, Order, Place, Steering
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

BLOCK = 1 << 20


class Waiting(StepControl):
    """A control whose waits pass at once, on the test's own clock."""

    def __init__(self, time: list[float], stall: float | None = None) -> None:
        super().__init__(1e9, stall=stall)
        self._time = time

    def wait(self, seconds: float) -> None:
        self._time[0] += seconds
        self.check()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    return now


def towards(target: str, source: str = "h1") -> Order:
    made = order("copy_disks", 1)
    return replace(made, work=replace(made.work, source=Place(source, "a"), target=Place(target, "b")))


def host(copy_rate: int | None, link_rate: int | None) -> Agent:
    return Agent("h1", "a", copy_rate=copy_rate, link_rate=link_rate)


def send(paces: Pace, control: StepControl, blocks: int) -> None:
    for _ in range(blocks):
        paces.keep(BLOCK, control)


def test_without_a_limit_nobody_waits(time: list[float]) -> None:
    send(Paces(host(None, None)).of(towards("h2")), Waiting(time), 100)
    assert time[0] == 1000.0


def test_a_migrations_own_limit_holds_and_may_change_while_it_copies(time: list[float]) -> None:
    control, mine = Waiting(time), Paces(host(None, None)).of(towards("h2"))
    control.steer(Steering(rate=10 * BLOCK))
    send(mine, control, 50)
    assert time[0] - 1000 == pytest.approx(5, abs=LOOSE)
    control.steer(Steering(rate=BLOCK))
    send(mine, control, 10)
    assert time[0] - 1005 == pytest.approx(10, abs=2 * LOOSE)
    control.steer(Steering())
    before = time[0]
    send(mine, control, 100)
    assert time[0] == before


@pytest.mark.parametrize(("all_of_it", "link"), [(10 * BLOCK, None), (None, 10 * BLOCK), (10 * BLOCK, 90 * BLOCK)])
def test_copies_of_one_way_share_its_limit(time: list[float], all_of_it: int | None, link: int | None) -> None:
    paces, control = Paces(host(all_of_it, link)), Waiting(time)
    copies = [paces.of(towards("h2")), paces.of(towards("h2"))]
    for _ in range(50):
        for one in copies:
            one.keep(BLOCK, control)
    assert time[0] - 1000 == pytest.approx(10, abs=LOOSE)


def test_the_limits_of_a_host_and_of_a_link_may_change_while_it_copies(time: list[float]) -> None:
    settings, control = host(10 * BLOCK, None), Waiting(time)
    mine = Paces(settings).of(towards("h2"))
    send(mine, control, 50)
    assert time[0] - 1000 == pytest.approx(5, abs=LOOSE)
    settings.copy_rate, settings.link_rate = None, BLOCK
    send(mine, control, 10)
    assert time[0] - 1005 == pytest.approx(10, abs=2 * LOOSE)


def test_another_link_has_a_limit_of_its_own_and_the_same_host_has_none(time: list[float]) -> None:
    paces, control = Paces(host(None, 10 * BLOCK)), Waiting(time)
    for _ in range(50):
        for target in ("h2", "h3", "h1"):
            paces.of(towards(target)).keep(BLOCK, control)
    assert time[0] - 1000 == pytest.approx(5, abs=LOOSE)


def test_whoever_waits_for_its_turn_does_not_stand_still(time: list[float]) -> None:
    mine, control = Paces(host(LEAST_RATE, None)).of(towards("h2")), Waiting(time, stall=5)
    send(mine, control, 4)
    assert time[0] - 1000 == pytest.approx(32, abs=LOOSE), "no block was called a stall"


def test_a_limit_is_remembered_for_so_many_links_only(monkeypatch: pytest.MonkeyPatch, time: list[float]) -> None:
    monkeypatch.setattr(pace, "LINKS_MAX", 3)
    paces = Paces(host(None, BLOCK))
    for number in range(10):
        paces.of(towards(f"h{number + 2}"))
    assert len(paces._links) == 3
