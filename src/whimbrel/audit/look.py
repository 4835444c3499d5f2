"""One look: the books before and after the hosts were looked at, and what the hosts said in between.

A host is asked while migrations go on, so what it says may be older or newer than one reading of the books. A server
counts as *steady* only if both readings agree about it and neither has a step at work: each order draws a number, so
equal numbers mean that nothing was ordered in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from whimbrel.audit.books import Books, MigrationEntry, ServerEntry
from whimbrel.domain.server import PowerState
from whimbrel.migration.presence import Inspection, SeenDirectory, SeenServer

ALIVE = (PowerState.RUNNING, PowerState.PAUSED)


@dataclass(frozen=True)
class Look:
    """The material of one comparison. `silent` says why a host has no inspection.

    `heard_after` (epoch seconds) is set in a second look: what guests do is judged only by books that have heard of the
    host since then, because a guest may stop by itself and the books learn of it by the next heartbeat.
    """

    before: Books
    after: Books
    inspections: Mapping[str, Inspection]
    silent: Mapping[str, str]
    heard_after: float | None = None
    dead_letters: int = 0

    @cached_property
    def places(self) -> dict[str, dict[str, SeenServer]]:
        """What was seen of each server, by host."""
        found: dict[str, dict[str, SeenServer]] = {}
        for host, inspection in self.inspections.items():
            for seen in inspection.servers:
                found.setdefault(seen.server, {})[host] = seen
        return found

    @cached_property
    def _debts(self) -> set[tuple[str, str]]:
        return {(debt.host, debt.server) for books in (self.before, self.after) for debt in books.debts}

    @cached_property
    def _busy_hosts(self) -> set[str | None]:
        rows = [row for books in (self.before, self.after) for row in books.open.values() if row.busy]
        hosts = {host for row in rows for host in (row.source, row.target)}
        return hosts | {host for host, _ in self._debts}

    def steady(self, server: str) -> bool:
        """Return whether nothing was ordered about the server while the hosts were looked at, and nothing is due."""
        then, now = self.before.servers.get(server), self.after.servers.get(server)
        was, window = self.before.open.get(server), self.after.open.get(server)
        if (was and was.busy) or (window and window.busy):
            return False
        if (was.id if was else None) != (window.id if window else None):
            return False
        if now is None or now.deleted:
            return then is None or then.deleted
        return then is not None and (then.host, then.epoch, then.number) == (now.host, now.epoch, now.number)

    def owes(self, host: str, server: str) -> bool:
        """Return whether the host owes a clean-up of this server, or owed it a moment ago."""
        return (host, server) in self._debts

    def idle(self, host: str) -> bool:
        """Return whether no step may be at work on this host."""
        return host not in self._busy_hosts

    def server(self, server: str) -> ServerEntry | None:
        """Return the server as the books have it, None when they never heard of it."""
        return self.after.servers.get(server)

    def window(self, server: str) -> MigrationEntry | None:
        """Return the migration whose undo window is open for this server."""
        return self.after.open.get(server)

    def closed(self, server: str, attempt: str | None) -> MigrationEntry | None:
        """Return the migration of this server, closed, that made this attempt."""
        number, _, count = (attempt or "").partition("-")
        found = self.after.closed.get(int(number)) if number.isdecimal() else None
        known = found is not None and found.server == server and count.isdecimal() and int(count) <= found.attempts
        return found if known else None

    def seen(self, host: str | None, server: str) -> SeenServer | None:
        """Return what was seen of a server on a host."""
        return self.places.get(server, {}).get(host or "")

    def answered(self, host: str | None) -> bool:
        """Return whether the host and its hypervisor could be looked at."""
        found = self.inspections.get(host or "")
        return found is not None and not found.fault

    def behind(self, server: ServerEntry, seen: SeenServer) -> bool:
        """Return whether the host has obeyed orders about this server that the books do not know."""
        return seen.epoch > server.epoch or seen.number > server.number

    def has_copy_at_home(self, server: ServerEntry) -> bool:
        """Return whether the host where the server belongs was seen to have its live copy."""
        at_home = self.seen(server.host, server.id)
        return at_home is not None and has_live(at_home)

    def is_home_safe(self, server: ServerEntry) -> bool:
        """Return whether the host where the server belongs has its live copy, and holds the grant of its epoch.

        Both are read at that host: its files, and its ledger, which is a second witness for what the books say.
        """
        at_home = self.seen(server.host, server.id)
        if (
            at_home is None
            or not has_live(at_home)
            or any(self.behind(server, seen) for seen in self.places[server.id].values())
        ):
            return False
        return at_home.grant_epoch == server.epoch


def has_live(seen: SeenServer) -> bool:
    """Return whether a live directory is there, whole (its manifest names who made it)."""
    return any(one.state == "live" and one.attempt is not None for one in seen.directories)


def name_of(server: str, directory: SeenDirectory) -> str:
    """Return the directory's name on its host."""
    return server if directory.state == "live" else f"{server}.{directory.state}-{directory.attempt}"
