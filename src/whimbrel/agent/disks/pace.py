"""How fast bytes may leave this host: in all, towards each other host, and for each migration.

Each limit is a clock of its own that runs ahead by what was let through (the virtual scheduling algorithm of ITU-T
I.371); whoever is to send waits until the clocks of all of its limits allow it, so copies share a limit by turns.
"""

from __future__ import annotations

import threading

from whimbrel.migration.messages import Order
from whimbrel.migration.ports import Control
from whimbrel.ops import clock

LOOSE = 0.25
"""Seconds by which what was not sent before may be made up for."""

TURN = 0.5
"""Seconds between two looks at whether the step was told to stop."""

LINKS_MAX = 4096
"""Links that are remembered; one that is forgotten begins anew."""


class Limit:
    """One limit, in bytes per second; None lets everything through."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._due = 0.0

    def delay(self, size: int) -> float:
        """Take `size` bytes' turn; return the seconds until it comes."""
        if self.rate is None:
            return 0.0
        now = clock.monotonic()
        with self._lock:
            self._due = max(self._due, now - LOOSE) + size / self.rate
            return max(0.0, self._due - now)


class Pace:
    """What one copy heeds: the limits that it shares, and its own, which may change while it runs."""

    def __init__(self, *shared: Limit) -> None:
        self._shared = shared
        self._own = Limit(None)

    def keep(self, size: int, control: Control) -> None:
        """Wait until `size` bytes more may be sent."""
        self._own.rate = control.steering().rate
        until = clock.monotonic() + max(limit.delay(size) for limit in (*self._shared, self._own))
        while (left := until - clock.monotonic()) > 0:
            control.wait(min(left, TURN))
            control.restart_stall()  # whoever waits for its turn does not stand still


class Paces:
    """The limits of one host: `rate` in all, `link_rate` towards each other host, in bytes per second."""

    def __init__(self, rate: int | None, link_rate: int | None) -> None:
        self._host, self._link_rate = Limit(rate), link_rate
        self._links: dict[str, Limit] = {}
        self._lock = threading.Lock()

    def of(self, order: Order) -> Pace:
        """Return what the copy of this order heeds; one that stays on its host heeds its own limit only."""
        source, target = order.work.source, order.work.target
        if source is None or target is None or source.host == target.host:
            return Pace()
        with self._lock:
            link = self._links.pop(target.host, None) or Limit(self._link_rate)
            self._links[target.host] = link
            while len(self._links) > LINKS_MAX:
                del self._links[next(iter(self._links))]
        return Pace(self._host, link)
