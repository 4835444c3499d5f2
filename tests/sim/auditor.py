"""The one who checks: what must always hold, looked at from outside, and what must hold when all has come to rest.

It believes neither the database nor the agents: what a guest was told is durable, it has counted itself; who runs is
what the hypervisors were made to do; what is left is what stands on the disks.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from tests.sim.cloud import SimCloud
from tests.sim.timeloop import outside
from whimbrel.agent.guests import fake
from whimbrel.domain.claim import resources_of
from whimbrel.domain.migration import Kind, Mark, Outcome, Verdict
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.store import claims
from whimbrel.store.servers_core import flavor_of
from whimbrel.store.tables import claims as claims_table
from whimbrel.store.tables import debts, hosts, journal, migrations, outbox, servers

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SEALED = re.compile(rf"({_UUID.pattern})\.sealed-(\d+-\d+)")
ROOM = ("vcpus", "ram_mb", "disk_gb")
GRACE = 60.0
"""Seconds that a guest that should run may be down once the faults are over (L2)."""


@dataclass
class Books:
    """What the database says, in one reading."""

    servers: list[Any]
    migrations: list[Any]
    journal: list[Any]
    claims: list[Any]
    debts: list[Any]
    hosts: list[Any]
    outbox: list[Any]

    def newest(self, server: str) -> list[Any]:
        """The server's migrations, newest first."""
        return [row for row in reversed(self.migrations) if row.server_id == server]


_STEPS = [journal.c[name] for name in ("migration_id", "segment", "attempt", "step", "mark", "facts", "undo_facts")]
_TABLES = [
    statement.order_by(*table.primary_key)
    for table, statement in (
        (servers, select(servers)),
        (migrations, select(migrations)),
        (journal, select(*_STEPS)),
        (claims_table, select(claims_table)),
        (debts, select(debts)),
        (hosts, select(hosts)),
        (outbox, select(outbox.c.id)),
    )
]


def _books(tx: Connection) -> Books:
    return Books(*(tx.execute(table).all() for table in _TABLES))


@dataclass
class Auditor:
    """Counts what is durable, and says what is broken; the first broken thing ends the run."""

    cloud: SimCloud
    broken: str | None = None
    history: dict[str, int] = field(default_factory=dict)
    sealed_at: dict[tuple[str, str], int] = field(default_factory=dict)
    held_at: dict[tuple[str, str], int] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)
    runners: dict[str, set[str]] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)
    down_since: dict[str, float] = field(default_factory=dict)
    calm_since: float | None = None
    checks: int = 0
    _read: tuple[int, Books | None] = (-1, None)

    def fail(self, invariant: str, what: str) -> None:
        """Note the first thing that must not be."""
        if self.broken is None:
            self.broken = f"{invariant}: {what}"
            self.cloud.tell("AUDITOR", self.broken)

    def books(self) -> Books:
        """Read the database, if anybody has written since it was read last."""
        writes, books = self._read
        if books is None or writes != self.cloud.store.writes:
            writes, books = self.cloud.store.writes, outside(self.cloud.store.read_now, _books)
            self._read = writes, books
        return books

    # --- what happens ----------------------------------------------------------------------------------

    def guest_became(self, name: str, server: str, state: PowerState) -> None:
        """A hypervisor changed a guest's state: at most one runs, and only by a grant of this boot (S1, S4)."""
        runners = self.runners.setdefault(server, set())
        self.cloud.tell(name, f"guest {server[:8]} is {state}")
        if state is not PowerState.RUNNING:
            if name in runners:
                runners.discard(name)
                self.down_since[server] = self.cloud.loop.time()
                if state is PowerState.PAUSED:
                    self.held_at[server, name] = self.history.get(server, 0)
            return
        self.excused.pop(server, None)
        self.held_at.pop((server, name), None)
        if runners - {name}:
            self.fail("S1 one runner", f"{server} starts on {name} while it runs on {runners}")
        runners.add(name)
        host = self.cloud.hosts[name]
        assert host.ledger is not None
        seen = outside(host.ledger.server, server)
        if (
            seen is None
            or seen.sealed
            or seen.grant_boot != host.ledger.boot
            or seen.released_epoch != seen.grant_epoch
        ):
            self.fail("S1 grant", f"{server} was let run on {name} without a grant of this boot: {seen}")
        elif seen.grant_epoch is not None and seen.grant_epoch < seen.epoch:
            self.fail("S4 epoch", f"{server} was let run on {name} by an older epoch: {seen}")

    def host_went_down(self, name: str) -> None:
        """Its guests are gone; one in its undo window is not started again by itself."""
        for server, runners in self.runners.items():
            if name in runners:
                runners.discard(name)
                self.down_since[server] = self.cloud.loop.time()
                newest = self.books().newest(server)
                if newest and newest[0].open and (newest[0].finished_at is not None or _arrived(newest[0], name)):
                    self.excused[server] = "its host lost power in the undo window"

    def wrote(self, server: str, number: int) -> None:
        """A guest was told that its write is durable."""
        expected = self.history.get(server, 0) + 1
        if number != expected:
            self.fail("S3 lost write", f"{server} writes {number} where {expected} is next")
        self.history[server] = number

    def booted(self, host: str, server: str, lines: list[str]) -> None:
        """A guest reads its disk back: every write must be there, once and in its place (S3)."""
        found = _writes(lines)
        if found != self.history.get(server, 0):
            self._give_up(self.books(), server)
        if found != self.history.get(server, 0):
            self.fail("S3 lost write", f"{server} boots on {host} with {found} writes of {self.history.get(server)}")

    def renamed(self, path: Path, target: Path) -> None:
        """A directory was sealed, or the guest held whose memory moved: what a revert goes back to."""
        match = _SEALED.fullmatch(Path(target).name)
        if match:
            name = next(host.name for host in self.cloud.hosts.values() if host.instances == Path(target).parent)
            written = self.held_at.get((match[1], name), self.history.get(match[1], 0))
            self.sealed_at[match[1], match[2]] = written

    def removed(self, tree: Path) -> None:
        """A directory is gone: what it held must be somewhere else, or given up by the user (S2, S8)."""
        match = _UUID.search(tree.name)
        if match and self.broken is None:
            self._whole_copy(self.books(), match[0], f"after {tree.name} was removed")

    # --- what must always hold -------------------------------------------------------------------------

    def check(self) -> Books:
        """Look at everything that must hold at any moment."""
        self.checks += 1
        books = self.books()
        for row in books.servers:
            if row.deleted_at is None:
                self._whole_copy(books, row.id, "")
        limits = {row.name: claims.capacity_of(row).limit() for row in books.hosts}
        for name in {row.host: None for row in books.claims}:
            mine = [row for row in books.claims if row.host == name]
            used = [sum(getattr(row, what) for row in mine) for what in ROOM]
            limit = [getattr(limits[name], what) for what in ROOM] if name in limits else [0, 0, 0]
            if any(have > most for have, most in zip(used, limit, strict=True)):
                self.fail("S5 claims", f"{name} has {limit} and {used} is claimed of {ROOM}")
        if self.calm_since is not None:
            self._guests_run(books, max(self.calm_since, self.cloud.mishaps.slow_until))
        for alarm in self.cloud.alarms():
            self.fail("internal error", alarm)
        return books

    def _whole_copy(self, books: Books, server: str, when: str) -> None:
        expected = self.history.get(server, 0)
        if expected == 0 or self._is_going(books, server):
            return
        if expected not in self._copies(server):
            self._give_up(books, server)
            expected = self.history[server]
            if expected not in self._copies(server):
                copies = self._copies(server)
                self.fail("S2 one whole copy", f"{server} made {expected} writes, the copies have {copies} {when}")

    def _copies(self, server: str) -> list[int]:
        found = []
        for host in self.cloud.hosts.values():
            for path in sorted(host.instances.glob(f"{server}*")):
                disk = path / "disk-0"
                if disk.exists():
                    found.append(_writes(disk.read_text().splitlines()))
        return found

    def _is_going(self, books: Books, server: str) -> bool:
        row = next(row for row in books.servers if row.id == server)
        newest = books.newest(server)
        return row.deleted_at is not None or (
            bool(newest) and newest[0].open and Verdict.DELETE in (newest[0].kind, newest[0].verdict)
        )

    def _give_up(self, books: Books, server: str) -> None:
        """Forget what a user gave up: by a revert what came after the hand-over, by an evacuation all that was there.

        An administrator's proof that the target is off, in place of its word, gives up what was written there.
        """
        for row in books.newest(server):
            for entry in books.journal:
                if row.id in self.given_up or entry.migration_id != row.id:
                    continue
                protocol = row.segments[entry.segment]["protocol"]
                back = protocol == "revert" and entry.step == "take_back"
                proved = entry.step == "start_guest" and "proof" in entry.undo_facts
                if back or proved:
                    self.given_up.add(row.id)
                    kept = self.sealed_at.get((server, f"{row.id}-{entry.attempt}"), 0)
                    self.history[server] = min(self.history[server], kept)
                    return
                if protocol == "evacuate" and entry.step == "hand_over" and entry.mark == Mark.DONE:
                    self.given_up.add(row.id)
                    self.history[server] = 0
                    return

    # --- what must hold when the faults are over ---------------------------------------------------------

    def unfinished(self) -> str:
        """Return what has not come to its end yet; nothing when all rests and what should run does (L1, L2)."""
        books = self.books()
        for row in books.servers:
            if row.deleted_at is not None or self._is_going(books, row.id) or self.runners.get(row.id):
                continue
            if why := self._should_run(books, row):
                return f"{row.id} does not run yet: {why}"
        for row in books.migrations:
            if row.open and not (row.window_open and row.verdict is None):
                return f"migration {row.id} ({row.kind}) of {row.server_id[:8]} is open, fence={row.fence}"
        for debt in books.debts:
            if debt.paid_at is None:
                return f"{debt.host} owes {debt.verb} {debt.step} of {debt.server_id[:8]}"
        return f"{len(books.outbox)} messages in the outbox" if books.outbox else ""

    def _guests_run(self, books: Books, calm_since: float) -> None:
        """Every guest that should run does, or has not been down for long (L2)."""
        now = self.cloud.loop.time()
        for row in books.servers:
            if row.deleted_at is not None or self._is_going(books, row.id) or self.runners.get(row.id):
                continue
            if now - max(calm_since, self.down_since.get(row.id, 0.0)) >= GRACE:
                why = self._should_run(books, row)
                if why:
                    self.fail("L2 runs again", f"{row.id} runs nowhere: {why}")

    def _should_run(self, books: Books, server: Any) -> str:
        """Say why this guest should run; nothing if it should not, or if it is written down why it does not."""
        newest = books.newest(server.id)[0]
        last = [row for row in books.journal if row.migration_id == newest.id]
        if server.id in self.excused or any("guest_down" in {**row.facts, **row.undo_facts} for row in last):
            return ""
        if newest.kind == Kind.POWER:
            started = newest.action != PowerAction.STOP and newest.outcome == Outcome.COMPLETED
            return "" if not started else f"power action {newest.action} {newest.outcome}"
        if newest.kind == Kind.BUILD and newest.outcome != Outcome.COMPLETED:
            return ""
        if newest.kind == Kind.EVACUATION and newest.action == PowerAction.STOP and newest.outcome == Outcome.COMPLETED:
            return ""
        return f"{newest.kind} {newest.id} {newest.outcome}" if newest.was_running else ""

    def at_rest(self) -> None:
        """Nothing is left over, claims balance, and what is written down is so (S5, S8, L3)."""
        books = self.check()
        found = self._found()
        for row in books.servers:
            newest = books.newest(row.id)
            mine = {place for place in found if row.id in place[1]}
            expected, claimed = self._expected(row, newest[0] if newest else None)
            if self.is_stranded(books, row):
                expected = mine  # a user's start brings it back, which is tried at the end
            if mine != expected:
                self.fail(
                    "L3 leftovers", f"{row.id}: found {sorted(mine - expected)}, missing {sorted(expected - mine)}"
                )
            held = sorted((c.host, c.vcpus, c.ram_mb, c.disk_gb, c.owed) for c in books.claims if c.server_id == row.id)
            if held != sorted(claimed):
                self.fail("S5 claims", f"{row.id}: claimed {held}, expected {sorted(claimed)}")
            running = bool(self.runners.get(row.id))
            if row.deleted_at is None and row.host and (row.power_state == PowerState.RUNNING) != running:
                self.fail("L1 truth", f"{row.id} is written down as {row.power_state}, running is {running}")
            if running and self.runners[row.id] != {row.host}:
                self.fail("L1 truth", f"{row.id} runs on {self.runners[row.id]}, written down is {row.host}")
        strange = [place for place in found if not any(row.id in place[1] for row in books.servers)]
        if strange:
            self.fail("L3 leftovers", f"{strange}")

    def is_stranded(self, books: Books, server: Any) -> bool:
        """Return whether a move ended with its guest down at home, because the host answered each try with an error."""
        if server.deleted_at is not None:
            return False
        for move in books.newest(server.id):
            mine = [row for row in books.journal if row.migration_id == move.id]
            if move.outcome == Outcome.REVERTED:
                return any("guest_down" in row.facts for row in mine if row.step == "start_source")
            if move.outcome not in (Outcome.ERROR, Outcome.CANCELLED):
                return False
            if any("guest_down" in row.undo_facts for row in mine):
                return True
            if any(row.step in ("stop_guest", "move_memory", "fence_source", "set_power") for row in mine):
                return False
        return False  # what came before those that ended without touching the guest is what counts

    def _found(self) -> set[tuple[str, str]]:
        """Every directory and every domain of every host."""
        found: set[tuple[str, str]] = set()
        for host in self.cloud.hosts.values():
            found |= {(host.name, path.name) for path in host.instances.iterdir() if path.is_dir()}
            file = host.instances / "fake-guests.json"
            if file.exists():
                found |= {(host.name, f"domain {server}") for server in json.loads(file.read_text())}
        return {place for place in found if place[1] != "_base"}

    def _expected(self, server: Any, newest: Any) -> tuple[set[tuple[str, str]], list[tuple[Any, ...]]]:
        """Return what may stand on hosts and in the claims for a server that rests."""
        if server.deleted_at is not None or server.host is None:
            return set(), []
        places = {(server.host, server.id), (server.host, f"domain {server.id}")}
        claimed = [_claim(server.host, server.flavor)]
        if newest is not None and newest.open and newest.window_open:
            places.add((newest.source, f"{server.id}.sealed-{newest.id}-{newest.attempt}"))
            claimed.append(_claim(newest.source, newest.old_flavor))
        return places, claimed


def _arrived(row: Any, host: str) -> bool:
    """Return whether a move's guest ran at its target; the window opens when its report is read, however late."""
    return row.kind in (Kind.MIGRATION, Kind.RESIZE) and row.target == host


def _claim(host: str, flavor: dict[str, Any]) -> tuple[Any, ...]:
    need = resources_of(flavor_of(flavor))
    return host, need.vcpus, need.ram_mb, need.disk_gb, False


def _writes(lines: list[str]) -> int:
    """Return how many writes stand on a disk; -1 if they are not 1, 2, 3 and so on."""
    numbers = [int(line.split()[1]) for line in lines if line.startswith("write ")]
    return len(numbers) if numbers == list(range(1, len(numbers) + 1)) else -1


def witness_for(auditor: Auditor) -> type[fake.Witness]:
    """Make the guests tell the auditor what they see and write."""

    class Told(fake.Witness):
        """A guest under observation."""

        def __init__(self, live: Path) -> None:
            super().__init__(live)
            self._where = live

        def boot(self) -> None:
            """Read every write back, aloud."""
            auditor.booted(self._where.parent.parent.name, self._where.name, self._lines())
            super().boot()

        def write(self) -> int:
            """Make the next write, aloud."""
            number = super().write()
            auditor.wrote(self._where.name, number)
            return number

    return Told
