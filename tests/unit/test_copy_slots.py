"""The copy slots of a host: bounded, in order, and never lost to a copy that does not come."""

from __future__ import annotations

import pytest

from whimbrel.agent.control import StepControl
from whimbrel.agent.disks.channel import UNUSED, CopySlots
from whimbrel.domain.errors import TimedOut
from whimbrel.ops import clock

FIRST, SECOND = ("s1", "1-1"), ("s2", "2-1")


class Patience(StepControl):
    """Waits in no time: each wait lets so many seconds pass, and after the limit it is over."""

    def __init__(self, now: list[float], limit: float) -> None:
        super().__init__(limit)
        self._now, self._end = now, now[0] + limit

    def wait(self, seconds: float) -> None:
        """Let the time pass."""
        self._now[0] += seconds
        if self._now[0] > self._end:
            raise TimedOut("too long")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: time[0])
    return time


def test_a_slot_that_was_reserved_and_never_used_is_free_again(now: list[float]) -> None:
    """The move was overtaken by an evacuation, say, so nobody closes its channel: others must not wait for ever."""
    slots = CopySlots(1)
    slots.take(FIRST, Patience(now, 5), keep=UNUSED)
    with pytest.raises(TimedOut):
        slots.take(SECOND, Patience(now, UNUSED - 10))
    slots.take(SECOND, Patience(now, 20))
    with pytest.raises(TimedOut):
        slots.take(FIRST, Patience(now, 2 * UNUSED))
    slots.give_back(SECOND)
    slots.take(FIRST, Patience(now, 1))


def test_a_copy_that_has_begun_keeps_its_slot_however_long_it_takes(now: list[float]) -> None:
    slots = CopySlots(1)
    slots.take(FIRST, Patience(now, 5), keep=UNUSED)
    slots.take(FIRST, Patience(now, 5))
    with pytest.raises(TimedOut):
        slots.take(SECOND, Patience(now, 3000))
