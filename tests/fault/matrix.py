"""Tries the cells: holds servers at their gates, does the harm, opens the gates, mends, and audits what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import httpx2

from tests.cloud import Json, Server, wait_for
from tests.fault.auditor import Rest, verdict
from tests.fault.bench import HOSTS, Bench
from tests.fault.cells import Cell, Shot
from tests.fault.gates import ANY
from whimbrel.ops import clock

REACH = 50.0
SETTLE = 90.0
"""Seconds for everything to come to rest after it was mended."""
LOOK = 0.2
SHOTS_PER_POOL = 12
"""After so many shots the servers are made anew, so that their consoles stay short."""
GUEST = "writer.interval_ms=250"
"""Emulated guests that write less leave more of a small machine to the others."""
IN_WINDOW = ("confirm", "revert", "delete")
"""Protocols that begin while the user thinks about a move."""
RESTING = ("ACTIVE", "SHUTOFF", "VERIFY_RESIZE")


@dataclass
class Row:
    """What came of one cell. `ran_again` is the time from the fault until the guest wrote for good, 0 if it never
    stopped, None if it was not running in the end; `findings` is empty when all was as it must be."""

    cell: Cell
    away: float
    outcome: str
    ran_again: float | None
    findings: list[str]


@dataclass
class Watched:
    """One server of a shot, and what is seen of it; `cell` is None for those that only look on."""

    server: Server
    cell: Cell | None = None
    hit: bool = True
    boot: tuple[Any, ...] | None = None
    writes: bool = False
    since: float = 0.0
    seen: Json = field(default_factory=dict)
    at_rest: bool = False
    rest: Rest | None = None
    """Where it is; none for a server that is deleted, or was never built."""


class Matrix:
    """A bench with its pool of servers."""

    def __init__(self, bench: Bench, size: int) -> None:
        self.bench = bench
        self.cloud = bench.cloud
        self.size = size
        self.pool: list[Server] = []
        self.shots = 0
        self.known: set[str] = set()
        """What was found and written down before; a leftover is held against the cell that left it, and no other."""

    # --- one shot -----------------------------------------------------------------------------------

    def try_shot(self, shot: Shot) -> list[Row]:
        """Try the cells of a shot; whatever becomes of them, the next shot finds the pool in order."""
        self.shots += 1
        source, target = self._prepare(shot)
        watched = [Watched(server) for server in self.pool]
        if shot.protocol == "build":
            at_gate = self._build(shot, target)
            watched += at_gate
        else:
            at_gate = watched[: len(shot.cells)]
            for one, cell in zip(at_gate, shot.cells, strict=True):
                one.cell = cell
                self.bench.gates.arm(cell.gate, one.server.id)
                self._begin(one.server, cell.protocol)
            for cell in shot.cells:
                self._reached(cell)
        for one in watched:
            one.boot = self.bench.boot_of(one.server.id)
        began = clock.monotonic()
        hit = self.bench.inject(shot.fault, source, target, [one.server.id for one in at_gate])
        self.bench.gates.open()
        for one in at_gate:
            one.hit = one.server.id in hit
        self._watch(watched, lambda: clock.monotonic() - began >= shot.away)
        self.bench.mend()
        rows = self._rows(watched, shot, began)
        self._clear(at_gate, shot, rows)
        return rows

    def _reached(self, cell: Cell) -> str:
        """Wait until a server is held at the cell's gate; return which one."""
        held: str = wait_for(f"a server at {cell.gate.name}", lambda: self.bench.gates.holds(cell.gate), REACH)
        return held

    def _begin(self, server: Server, protocol: str) -> None:
        match protocol:
            case "cold":
                server.migrate()
            case "live":
                server.remember()  # no copy stays behind to hold it against
                server.migrate_live()
            case "resize":
                name = server.show()["flavor"]["original_name"]
                server.resize("other" if name == "small" else "small")
            case "confirm":
                server.assert_nothing_lost(_host(server.show()))  # while there is a copy to hold it against
                server.act("confirmResize")
            case "revert":
                server.ask_to_revert()
            case "delete":
                self.cloud.delete(f"/servers/{server.id}")
            case "power":
                server.act("reboot", {"type": "HARD"})

    def _build(self, shot: Shot, target: str) -> list[Watched]:
        """Begin as many builds as there are cells; which server stops at which gate is seen when it does."""
        for cell in shot.cells:
            self.bench.gates.arm(cell.gate, ANY)
        begun = {server.id: server for server in (self.cloud.begin(GUEST, host=target) for _ in shot.cells)}
        return [Watched(begun[self._reached(cell)], cell) for cell in shot.cells]

    def _rows(self, watched: list[Watched], shot: Shot, began: float) -> list[Row]:
        """Wait until all is as it must be, and say how each cell ended."""
        found: list[str] = []

        def settled() -> bool:
            nonlocal found
            for one in watched:
                self._look_at(one, shot)
            found = [
                f"{one.server.id} rests nowhere: {one.seen.get('status')} {one.seen.get('fault', '')}"
                f"{'' if one.writes else ', and its guest does not write'}"
                for one in watched
                if not one.at_rest
            ]
            found = found or self.bench.auditor.findings([one.rest for one in watched if one.rest is not None])
            found = [what for what in found if what not in self.known]
            return not found

        self._watch(watched, settled, SETTLE)
        self.known.update(found)
        if shot.protocol == "live":
            self._read_back([one for one in watched if one.rest is not None and one.rest.running])
        rows = []
        for one in watched:
            said = [verdict(one.rest)] if one.rest is not None else []
            if one.cell is not None:
                running = one.rest is not None and one.rest.running
                ran = max(0.0, one.since - began) if running and one.since else 0.0 if running else None
                others = [other.server.id for other in watched if other is not one]
                mine = [what for what in found if not any(other in what for other in others)]
                mine += [words for words in said if words]
                rows.append(Row(one.cell, shot.away, self._outcome(one), ran, mine))
        return rows

    def _read_back(self, watched: list[Watched]) -> None:
        """Let guests that were never started anew read their disks: they do so when they boot."""
        boots = {}
        wait_for("the agents", lambda: self.cloud.up() == set(HOSTS))
        for one in watched:
            assert one.rest is not None
            one.server.remember()
            boots[one.server.id] = len(one.server.boots(one.rest.host))
            one.server.act("reboot", {"type": "HARD"})
        for one in watched:
            assert one.rest is not None
            one.server.wait("ACTIVE")
            one.server.wait_to_write(one.rest.host, boots[one.server.id] + 1)

    def _outcome(self, one: Watched) -> str:
        """Say in a word or two how the cell ended."""
        assert one.cell is not None
        if not one.hit:
            return "no process to kill"
        if not one.at_rest:
            return "stuck"
        if one.rest is None:
            return "deleted" if not one.seen else f"not built: {one.seen.get('fault', {}).get('message')}"
        down = "" if one.rest.running else ", guest down and shown so"
        if one.cell.protocol in ("build", "power", "delete"):
            return "done" + down
        move = one.server.migration()
        reason = f": {move['reason']}" if move["reason"] else ""
        match one.cell.protocol:
            case "cold" | "resize":
                ended = "moved" if one.rest.sealed_at else f"back at the source{reason}"
            case "live":
                there = move["outcome"] == "completed"
                ended = "moved" if there else f"went on at the source{reason}"
            case "revert":
                ended = f"refused, runs on at the target{reason}" if one.rest.sealed_at else str(move["outcome"])
            case _:
                ended = str(move["outcome"])
        return ended + down

    # --- looking ------------------------------------------------------------------------------------

    def _watch(self, watched: list[Watched], until: Callable[[], bool], deadline: float = REACH) -> bool:
        """Note since when each guest's newest boot writes, until something holds; return whether it came."""
        end, pause = clock.monotonic() + deadline, Event()
        while True:
            for one in watched:
                boot = self.bench.boot_of(one.server.id)
                one.writes = boot is not None
                if boot is not None and boot != one.boot:
                    one.boot, one.since = boot, clock.monotonic()
            if until():
                return True
            if clock.monotonic() > end:
                return False
            pause.wait(LOOK)

    def _look_at(self, one: Watched, shot: Shot) -> None:
        """Note where the server rests by the API's word, if it does."""
        one.at_rest, one.rest = False, None
        deleting, building = (
            one.cell is not None and one.cell.protocol == protocol for protocol in ("delete", "build")
        )
        try:
            if deleting and self.cloud.is_gone(f"/servers/{one.server.id}"):
                one.at_rest, one.seen = True, {}
                return
            one.seen = shown = one.server.show()
        except httpx2.HTTPError:
            return
        if shown["OS-EXT-STS:task_state"] is not None:
            return
        if building and shown["status"] == "ERROR" and not shown["OS-EXT-SRV-ATTR:host"]:
            one.at_rest = True
        if deleting or shown["status"] not in RESTING:
            return
        running = shown["OS-EXT-STS:power_state"] == 1
        # A guest whose host lost power while its user thinks is not started again before the verdict.
        may_be_off = shot.fault == "qemu" or (one.cell is None and shown["status"] == "VERIFY_RESIZE")
        if (running and not one.writes) or (not running and not may_be_off):
            return
        host = str(shown["OS-EXT-SRV-ATTR:host"])
        back = self.cloud.other(host) if shown["status"] == "VERIFY_RESIZE" else None
        one.at_rest, one.rest = True, Rest(one.server, host, running, back)

    # --- the pool -----------------------------------------------------------------------------------

    def _clear(self, at_gate: list[Watched], shot: Shot, rows: list[Row]) -> None:
        """Give up what the next shot cannot use: the deleted, the newly built, and those with findings."""
        bad = {row.cell for row in rows if row.findings}
        for one in at_gate:
            if shot.protocol in ("build", "delete") or one.cell in bad:
                self._abandon(one.server)

    def _abandon(self, server: Server) -> None:
        if server in self.pool:
            self.pool.remove(server)
        self.cloud.servers.remove(server)
        if not self.cloud.is_gone(f"/servers/{server.id}"):
            server.delete()

    def renew(self) -> None:
        """Give all servers up; the next shot makes new ones."""
        for server in [*self.pool, *self.cloud.servers]:
            with contextlib.suppress(AssertionError, httpx2.HTTPError, ValueError):
                self._abandon(server)

    def _prepare(self, shot: Shot) -> tuple[str, str]:
        """Bring all servers to where this shot begins; return source and target."""
        if self.shots % SHOTS_PER_POOL == 0:
            self.renew()
        wait_for("the agents", lambda: self.cloud.up() == set(HOSTS))
        in_window = shot.protocol in IN_WINDOW
        shown = {server.id: server.show() for server in self.pool}
        at = [
            self.cloud.other(_host(one)) if in_window else _host(one)
            for one in shown.values()
            if (one["status"] == "VERIFY_RESIZE") == in_window
        ] or [_host(one) for one in shown.values()]
        source = max(HOSTS, key=at.count)
        target = self.cloud.other(source)
        with ThreadPoolExecutor() as together:
            stay = target if in_window else None
            list(together.map(lambda server: self._bring(server, shown[server.id], source, stay), self.pool))
            missing = range(self.size - len(self.pool))
            self.pool += together.map(lambda _: self.cloud.create(GUEST, host=source), missing)
            if in_window:
                list(together.map(self._open_window, self.pool))
        for server in self.pool:
            wait_for(f"{server.id} to write", lambda server=server: self.bench.boot_of(server.id))
        # A power action's only host is where the server is, and it is called the target.
        return (target, source) if shot.protocol == "power" else (source, target)

    def _bring(self, server: Server, shown: Json, source: str, stay_at: str | None) -> None:
        """Bring a server to rest on the source; one whose window is open at `stay_at` may stay there."""
        if shown["status"] == "VERIFY_RESIZE":
            if stay_at == _host(shown) and shown["OS-EXT-STS:power_state"] == 1:
                return
            server.confirm()
        if server.show()["status"] == "SHUTOFF":
            server.act("os-start")
            server.wait("ACTIVE")
        if _host(server.show()) != source:
            server.migrate()
            server.wait("VERIFY_RESIZE")
            server.confirm()

    def _open_window(self, server: Server) -> None:
        if server.show()["status"] != "VERIFY_RESIZE":
            wait_for(f"{server.id} to write", lambda: self.bench.boot_of(server.id))
            server.migrate()
            server.wait("VERIFY_RESIZE")


def _host(shown: Json) -> str:
    return str(shown["OS-EXT-SRV-ATTR:host"])
