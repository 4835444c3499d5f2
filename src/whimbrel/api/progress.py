"""What the agents and the conductor say while it happens, kept for whoever looks: progress bars and live pages.

Both topics may lose messages, so a watcher that was woken reads the truth from the database.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from whimbrel.bus.port import Bus
from whimbrel.migration.messages import Changed, Progress

PROGRESS_TOPIC = "progress"
CHANGED_TOPIC = "changed"
MAX_MIGRATIONS = 1_000
MAX_WATCHERS = 200
QUEUE_LENGTH = 16


class ProgressHub:
    """The newest Progress of each migration, and queues for watchers; all within bounds, oldest first out."""

    def __init__(self) -> None:
        self._newest: OrderedDict[int, Progress] = OrderedDict()
        self._watchers: dict[int, set[asyncio.Queue[Progress | Changed | None]]] = {}
        self.closed = False

    async def listen(self, bus: Bus) -> None:
        """Subscribe to both topics."""
        await bus.subscribe(PROGRESS_TOPIC, self._hear)
        await bus.subscribe(CHANGED_TOPIC, self._hear)

    def newest(self, migration: int, hosts: tuple[str | None, ...]) -> Progress | None:
        """Return the last word on how far a migration is, None when nothing was heard; only its hosts may know."""
        word = self._newest.get(migration)
        return word if word is not None and word.host in hosts else None

    def room(self) -> bool:
        """Return whether one more watcher may come."""
        return not self.closed and sum(map(len, self._watchers.values())) < MAX_WATCHERS

    @contextmanager
    def watch(self, migration: int) -> Iterator[asyncio.Queue[Progress | Changed | None]]:
        """Give a queue of what happens to a migration; None in it means that this process ends."""
        queue: asyncio.Queue[Progress | Changed | None] = asyncio.Queue(QUEUE_LENGTH)
        self._watchers.setdefault(migration, set()).add(queue)
        try:
            yield queue
        finally:
            self._watchers[migration].discard(queue)
            if not self._watchers[migration]:
                del self._watchers[migration]

    def close(self) -> None:
        """Send every watcher home."""
        self.closed = True
        for queues in self._watchers.values():
            for queue in queues:
                _put(queue, None)

    async def _hear(self, message: object) -> None:
        if not isinstance(message, Progress | Changed):
            return
        if isinstance(message, Progress):
            self._newest[message.migration] = message
            self._newest.move_to_end(message.migration)
            while len(self._newest) > MAX_MIGRATIONS:
                self._newest.popitem(last=False)
        for queue in self._watchers.get(message.migration, ()):
            _put(queue, message)


def _put(queue: asyncio.Queue[Progress | Changed | None], message: Progress | Changed | None) -> None:
    """A watcher that is too slow loses the oldest: the next one wakes it all the same."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(message)
