"""How fast bytes may leave this host: in all, towards each other host, and for each migration; or enter it.

Each limit is a clock of its own that runs ahead by what was let through (the virtual scheduling algorithm of ITU-T
I.371); whoever is to send waits until the clocks of all of its limits allow it, so copies share a limit by turns.
The rates are read anew for each piece: they may change while a copy runs.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from whimbrel.ops import clock

if TYPE_CHECKING:  # the receiver needs none of them, and is to start fast
    from whimbrel.migration.messages import Order
    from whimbrel.migration.ports import Control
    from whimbrel.ops.settings import Agent

LOOSE = 0.25
"""Seconds by which what was not sent before may be made up for."""

TURN = 0.5
"""Seconds between two looks at whether the step was told to stop."""

LINKS_MAX = 4096
"""Links that are remembered; one that is forgotten begins anew."""


class Limit:
    """The clock of one limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due = 0.0

    def delay(self, size: int, rate: float | None) -> float:
        """Take `size` bytes' turn at a rate in bytes per second; return the seconds until it comes. None: at once."""
        if rate is None:
            return 0.0
        now = clock.monotonic()
        with self._lock:
            self._due = max(self._due, now - LOOSE) + size / rate
            return max(0.0, self._due - now)


class Pace:
    """What one copy heeds: its own limit and, when it leaves its host, the host's and the link's."""

    def __init__(self, settings: Agent, host: Limit | None = None, link: Limit | None = None) -> None:
        self._settings, self._host, self._link = settings, host, link
        self._own = Limit()

    def keep(self, size: int, control: Control) -> None:
        """Wait until `size` bytes more may be sent."""
        delays = [self._own.delay(size, control.steering().rate)]
        if self._host is not None:
            delays.append(self._host.delay(size, self._settings.copy_rate))
        if self._link is not None:
            delays.append(self._link.delay(size, self._settings.link_rate))
        until = clock.monotonic() + max(delays)
        while (left := until - clock.monotonic()) > 0:
            control.wait(min(left, TURN))
            control.restart_stall()  # whoever waits for its turn does not stand still


class Paces:
    """The limits of one host: `copy_rate` in all, `link_rate` towards each other host."""

    def __init__(self, settings: Agent) -> None:
        self._settings = settings
        self._host = Limit()
        self._links: dict[str, Limit] = {}
        self._lock = threading.Lock()

    def of(self, order: Order) -> Pace:
        """Return what the copy of this order heeds; one that stays on its host heeds its own limit only."""
        source, target = order.work.source, order.work.target
        if source is None or target is None or source.host == target.host:
            return Pace(self._settings)
        with self._lock:
            link = self._links.pop(target.host, None) or Limit()
            self._links[target.host] = link
            while len(self._links) > LINKS_MAX:
                del self._links[next(iter(self._links))]
        return Pace(self._settings, self._host, link)
