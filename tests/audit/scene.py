"""A cloud in order, as plain data: one server that runs on h1, one that was deleted; tests change it and compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from whimbrel.audit.books import Books, ClaimEntry, DebtEntry, HostEntry, MigrationEntry, ServerEntry
from whimbrel.audit.compare import compare
from whimbrel.audit.findings import Finding
from whimbrel.audit.look import Look
from whimbrel.domain.claim import Resources
from whimbrel.domain.server import PowerState
from whimbrel.migration.presence import Inspection, SeenDirectory, SeenServer

SERVER = "11111111-2222-4333-8444-555555555555"
DELETED = "22222222-2222-4333-8444-555555555555"
STRANGER = "33333333-2222-4333-8444-555555555555"
ROOM = Resources(1, 128, 1)
NOW = 1_000_000_000.0
RUNNING, STOPPED = PowerState.RUNNING, PowerState.STOPPED
IN_ORDER = ServerEntry(SERVER, "vm", "h1", 1, 5, RUNNING, False, ROOM)


def live(attempt: str | None = "1-1") -> SeenDirectory:
    return SeenDirectory("live", attempt, 1 << 20)


def incoming(attempt: str) -> SeenDirectory:
    return SeenDirectory("incoming", attempt, 1 << 20)


def sealed(attempt: str) -> SeenDirectory:
    return SeenDirectory("sealed", attempt, 1 << 20)


def home(**more: Any) -> SeenServer:
    """What h1 has of the server when all is well."""
    row = SeenServer(SERVER, RUNNING, (live(),), epoch=1, number=5, grant_epoch=1, granted=True)
    return replace(row, **more)


def migration(number: int = 7, **more: Any) -> MigrationEntry:
    """A move from h1 to h2 that was confirmed."""
    row = MigrationEntry(
        id=number, server=SERVER, kind="migration", source="h1", target="h2", attempt=f"{number}-1", attempts=1,
        open=False, window_open=False, window_closes_at=None, window_since=NOW - 60, fence=None, outcome="confirmed",
    )  # fmt: skip
    return replace(row, **more)


@dataclass
class Scene:
    """The cloud; what a test puts into it is in both readings of the books unless it says `before`."""

    hosts: dict[str, HostEntry] = field(
        default_factory=lambda: {name: HostEntry(name, NOW, True, Resources(8, 4096, 40)) for name in ("h1", "h2")}
    )
    server: ServerEntry = IN_ORDER
    open: MigrationEntry | None = None
    closed: list[MigrationEntry] = field(default_factory=list)
    claims: list[ClaimEntry] = field(default_factory=lambda: [ClaimEntry(1, "h1", SERVER, "1-1", ROOM, False)])
    debts: list[DebtEntry] = field(default_factory=list)
    seen: dict[str, list[SeenServer]] = field(default_factory=lambda: {"h1": [home()], "h2": []})
    rest: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    heard_after: float | None = None
    dead_letters: int = 0

    def books(self) -> Books:
        deleted = ServerEntry(DELETED, "gone", "h1", 3, 9, STOPPED, True, ROOM)
        return Books(
            at=NOW,
            hosts=self.hosts,
            servers={SERVER: self.server, DELETED: deleted},
            open={SERVER: self.open} if self.open else {},
            closed={row.id: row for row in self.closed},
            claims=tuple(self.claims),
            debts=tuple(self.debts),
        )

    def look(self) -> Look:
        inspections = {
            host: Inspection(
                **{"host": host, "instances_dir": "/srv", "fault": "", "servers": tuple(servers)}
                | self.rest.get(host, {})
            )
            for host, servers in self.seen.items()
            if host not in self.silent
        }
        before = replace(self.books(), **self.before)
        return Look(before, self.books(), inspections, self.silent, self.heard_after, self.dead_letters)

    def findings(self) -> list[Finding]:
        return compare(self.look())
