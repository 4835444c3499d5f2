"""How a running step is told to stop, and how it says how far it is.

One Control belongs to one step in one thread; only `cancel` and the questions below it are for other threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from whimbrel.domain.errors import Cancelled, TimedOut
from whimbrel.migration.messages import Outlook, Phase, Steering
from whimbrel.ops import clock

REPORT_INTERVAL = 1.0
"""Seconds between two reports of progress."""

RATE_MEMORY = 5.0
"""Seconds after which an older rate counts for about a third."""

OVERRUN = 10.0
"""Seconds that a step may take to notice its deadline before its host says that it cannot tell."""


@dataclass(frozen=True)
class Measure:
    """How far a step is: bytes done and in all, bytes/s, seconds to go (None: cannot be said)."""

    done: int
    total: int
    rate: float
    eta: float | None
    phase: Phase
    outlook: Outlook | None


class StepControl:
    """The Control of one step: a cancel flag, a deadline, a stall limit, and throttled progress.

    `limit` and `stall` are seconds; the stall limit runs from one report with a changed figure to the next.
    """

    def __init__(
        self,
        limit: float,
        *,
        stall: float | None = None,
        publish: Callable[[Measure], None] | None = None,
        steering: Steering | None = None,
    ) -> None:
        self._steering = steering or Steering()
        self._limit = limit
        self._stall = stall
        self._publish = publish
        self._stop = Event()
        self._why = ""
        self._began = self._moved = clock.monotonic()
        self._done = 0
        self._sent: tuple[float, int] | None = None
        self._rate = 0.0
        self._outlook: Outlook | None = None

    def check(self) -> None:
        """Raise Cancelled when the step was told to stop, TimedOut when its deadline or stall limit has passed."""
        if self._stop.is_set():
            raise Cancelled(f"The step was told to stop: {self._why}.")
        if self.left() <= 0:
            raise TimedOut(f"The step's limit of {self._limit:g} s has passed.")
        if self._stall is not None and self._idle() > self._stall:
            raise TimedOut(f"Nothing moved for {self._stall:g} s; the other host or the way to it is silent.")

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than the deadline and not after a cancel; then `check`."""
        bounds = [seconds, self.left()]
        if self._stall is not None:
            bounds.append(self._stall - self._idle() + 0.01)
        self._stop.wait(max(0.0, min(bounds)))
        self.check()

    def left(self) -> float:
        """Return the seconds that are left until the step's deadline."""
        return self._limit - self.elapsed()

    def restart_limit(self) -> None:
        """Count the limit from now: waiting for a copy slot was not work."""
        self._began = self._moved = clock.monotonic()

    def restart_stall(self) -> None:
        """Count the stall limit from now: something moved that the figure does not show."""
        self._moved = clock.monotonic()

    def steering(self) -> Steering:
        """Return how fast to copy and whether to hurry, as it was said last."""
        return self._steering

    def steer(self, steering: Steering) -> None:
        """Let the step go on so from now."""
        self._steering = steering

    def report(self, done: int, total: int, phase: Phase = Phase.DISKS) -> None:
        """Say how far the step is, in bytes; cheap, sent at most once a second (and at the end)."""
        now = clock.monotonic()
        moved = done != self._done
        if moved:
            self._moved, self._done = now, done
        due = self._sent is None or now - self._sent[0] >= REPORT_INTERVAL
        if self._publish is None or not (due or (moved and done >= total)):
            return
        self._measure_rate(now)
        eta = (total - done) / self._rate if self._rate > 0 else None
        self._publish(Measure(done, total, self._rate, eta, phase, self._outlook))

    def expect(self, outlook: Outlook) -> None:
        """Say what is to be expected of the copy of a guest that runs; it goes with the next report."""
        self._outlook = outlook

    def cancel(self, why: str) -> None:
        """Tell the step to stop; it notices at its next `check` or `wait`."""
        self._why = self._why or why
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether the step was told to stop."""
        return self._stop.is_set()

    def elapsed(self) -> float:
        """Return the seconds of work so far."""
        return clock.monotonic() - self._began

    def overran(self) -> bool:
        """Return whether the step should have noticed by now that its time is over."""
        stalled = self._stall is not None and self._idle() > self._stall + OVERRUN
        return stalled or self.left() < -OVERRUN

    def _idle(self) -> float:
        return clock.monotonic() - self._moved

    def _measure_rate(self, now: float) -> None:
        """Let each new figure count by how long it was measured; a figure that fell begins a new phase."""
        if self._sent is not None and self._done >= self._sent[1] and now > self._sent[0]:
            seconds = now - self._sent[0]
            rate = (self._done - self._sent[1]) / seconds
            weight = 1.0 if self._rate == 0 else min(1.0, seconds / RATE_MEMORY)
            self._rate += weight * (rate - self._rate)
        self._sent = (now, self._done)
