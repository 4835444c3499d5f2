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
from tests.consoles import boots_of, read
from tests.fault.auditor import Rest, verdict
from tests.fault.bench import HOSTS, Bench
from tests.fault.cells import Cell, Shot
from whimbrel.ops import clock

REACH = 60.0
SETTLE = 90.0
"""Seconds for everything to come to rest after it was mended."""
LOOK = 0.2
SHOTS_PER_POOL = 12
"""After so many shots the servers are made anew, so that their consoles stay short."""


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
    """One server of a shot: what it looked like when the fault came, and since when its last boot writes."""

    server: Server
    cell: Cell | None
    source: str
    target: str
    hit: bool = True
    boot: tuple[Any, ...] | None = None
    writes: bool = False
    since: float = 0.0
    seen: Json = field(default_factory=dict)


class Matrix:
    """A bench with its pool of servers."""

    def __init__(self, bench: Bench, size: int) -> None:
        self.bench = bench
        self.cloud = bench.cloud
        self.size = size
        self.pool: list[Server] = []
        self.shots = 0
        self._first_seen: dict[tuple[Any, ...], tuple[int, int]] = {}

    # --- one shot -----------------------------------------------------------------------------------

    def try_shot(self, shot: Shot) -> list[Row]:
        """Try the cells of a shot; whatever becomes of them, the next shot finds the pool in order."""
        self.shots += 1
        source, target = self._prepare(shot)
        watched = [
            Watched(server, cell, source, target)
            for server, cell in zip(self.pool, [*shot.cells, *[None] * self.size], strict=False)
        ]
        at_gate = [one for one in watched if one.cell is not None]
        for one in at_gate:
            assert one.cell is not None
            self.bench.gates.arm(one.cell.gate, one.server.id)
            self._begin(one)
        for one in at_gate:
            assert one.cell is not None
            gate = one.cell.gate
            wait_for(f"{one.server.id} at {gate.name}", lambda gate=gate: self.bench.gates.holds(gate), REACH)
        for one in watched:
            one.boot = self._boot(one.server)
        began = clock.monotonic()
        ids = [one.server.id for one in at_gate]
        hit = self.bench.inject(shot.fault, source, target, ids)
        for one in at_gate:
            one.hit = one.server.id in hit
        self.bench.gates.open()
        self._watch(watched, lambda: clock.monotonic() - began >= shot.away)
        self.bench.mend()
        return self._rows(shot, watched, began)

    def _begin(self, one: Watched) -> None:
        assert one.cell is not None
        match one.cell.protocol:
            case "cold":
                one.server.migrate()
            case "resize":
                name = one.server.show()["flavor"]["original_name"]
                one.server.resize("other" if name == "small" else "small")
            case "confirm":
                one.server.act("confirmResize")
            case "revert":
                one.server.ask_to_revert()
            case other:
                raise ValueError(f"{other} needs a bench of its own")

    def _rows(self, shot: Shot, watched: list[Watched], began: float) -> list[Row]:
        """Wait until all is as it must be, and say how each cell ended."""
        found: list[str] = []
        rests: dict[str, Rest] = {}

        def settled() -> bool:
            nonlocal found, rests
            rests = {one.server.id: rest for one in watched if (rest := self._rest(one, shot.fault)) is not None}
            if len(rests) < len(watched):
                found = [
                    f"{one.server.id} rests nowhere: {one.seen.get('status')} {one.seen.get('fault', '')}"
                    for one in watched
                    if one.server.id not in rests
                ]
                return False
            found = self.bench.auditor.findings(list(rests.values()))
            return not found

        ended = self._watch(watched, settled, SETTLE)
        rows = []
        for one in watched:
            rest = rests.get(one.server.id)
            said = verdict(rest) if rest is not None else None
            mine = [*found] if not ended else []
            if said is not None:
                mine.append(said)
            if one.cell is None:
                continue
            ran = None
            if rest is not None and rest.running:
                ran = max(0.0, one.since - began) if one.since else 0.0
            rows.append(Row(one.cell, shot.away, self._outcome(one, rest), ran, mine))
            if mine:
                self._abandon(one.server)
        return rows

    def _outcome(self, one: Watched, rest: Rest | None) -> str:
        """Say in a word or two how the cell ended."""
        if not one.hit:
            return "no process to kill"
        if rest is None:
            return "stuck"
        assert one.cell is not None
        move = one.server.migration()
        reason = f": {move['reason']}" if move["reason"] else ""
        down = "" if rest.running else ", guest down and shown so"
        match one.cell.protocol:
            case "cold" | "resize":
                ended = "moved" if rest.sealed_at else f"back at the source{reason}"
            case "revert":
                ended = f"revert refused, runs on at the target{reason}" if rest.sealed_at else str(move["outcome"])
            case _:
                ended = str(move["outcome"])
        return ended + down

    # --- looking ------------------------------------------------------------------------------------

    def _watch(self, watched: list[Watched], until: Callable[[], bool], deadline: float = REACH) -> bool:
        """Note since when each guest's newest boot writes, until something holds; return whether it came."""
        end, pause = clock.monotonic() + deadline, Event()
        while True:
            for one in watched:
                boot = self._boot(one.server)
                one.writes = boot is not None
                if boot is not None and boot != one.boot:
                    one.boot, one.since = boot, clock.monotonic()
            if until():
                return True
            if clock.monotonic() > end:
                return False
            pause.wait(LOOK)

    def _boot(self, server: Server) -> tuple[Any, ...] | None:
        """Return what identifies the boot of the guest's process that runs and writes now, None while there is none.

        What stands on the console when a process is first seen may be of an earlier one, so only what is added to it
        counts.
        """
        for host, process in self.bench.guest_processes(server.id):
            boots = boots_of(read(self.cloud.instances(host) / server.id / "console.log"))
            said = (len(boots), boots[-1].last if boots else 0)
            if self._first_seen.setdefault(process, said) != said and said[1]:
                return process
        return None

    def _rest(self, one: Watched, fault: str) -> Rest | None:
        """Return where the server rests by the API's word, None while it does not."""
        try:
            one.seen = shown = one.server.show()
        except (httpx2.HTTPError, KeyError):
            return None
        if shown["OS-EXT-STS:task_state"] is not None or shown["status"] not in ("ACTIVE", "SHUTOFF", "VERIFY_RESIZE"):
            return None
        running = shown["OS-EXT-STS:power_state"] == 1
        if not running and fault != "qemu":
            return None  # nobody asked this guest to be down
        host = str(shown["OS-EXT-SRV-ATTR:host"])
        if running and not one.writes:
            return None
        back = next(name for name in HOSTS if name != host) if shown["status"] == "VERIFY_RESIZE" else None
        return Rest(one.server, host, running, back)

    # --- the pool -----------------------------------------------------------------------------------

    def _abandon(self, server: Server) -> None:
        """Delete a server of whose state nothing can be said."""
        self.pool.remove(server)
        with contextlib.suppress(Exception):
            server.delete()
        self.cloud.servers.remove(server)

    def renew(self) -> None:
        """Give all servers up; the next shot makes new ones."""
        for server in [*self.pool]:
            self._abandon(server)
        self._first_seen.clear()

    def _prepare(self, shot: Shot) -> tuple[str, str]:
        """Bring all servers to where this shot begins; return source and target."""
        if self.shots % SHOTS_PER_POOL == 0:
            self.renew()
        in_window = shot.protocol in ("confirm", "revert")
        shown = {server.id: server.show() for server in self.pool}
        at = [
            self._source(one) if in_window else one["OS-EXT-SRV-ATTR:host"]
            for one in shown.values()
            if (one["status"] == "VERIFY_RESIZE") == in_window
        ] or [one["OS-EXT-SRV-ATTR:host"] for one in shown.values()]
        source = max(HOSTS, key=at.count)
        target = self.cloud.other(source)
        for server in self.pool:
            self._bring_home(server, shown[server.id], source, target if in_window else None)
        with ThreadPoolExecutor() as together:
            missing = range(self.size - len(self.pool))
            self.pool += together.map(lambda _: self.cloud.create(host=source), missing)
        if in_window:
            moving = [server for server in self.pool if server.show()["status"] != "VERIFY_RESIZE"]
            for server in moving:
                server.migrate()
            for server in moving:
                server.wait("VERIFY_RESIZE")
        for server in self.pool:
            wait_for(f"{server.id} to write", lambda server=server: self._boot(server))
        return source, target

    def _bring_home(self, server: Server, shown: Json, source: str, window_at: str | None) -> None:
        if shown["status"] == "VERIFY_RESIZE":
            if window_at == shown["OS-EXT-SRV-ATTR:host"] and shown["OS-EXT-STS:power_state"] == 1:
                return
            self._confirm(server)
        if server.show()["status"] == "SHUTOFF":
            server.act("os-start")
            server.wait("ACTIVE")
        if server.show()["OS-EXT-SRV-ATTR:host"] != source:
            server.migrate()
            server.wait("VERIFY_RESIZE")
            self._confirm(server)
        wait_for(f"{server.id} to write", lambda: self._boot(server))

    def _confirm(self, server: Server) -> None:
        """Give the source's copy up, after the guest has found there what it was promised."""
        if server.show()["OS-EXT-STS:power_state"] == 1:
            wait_for(f"{server.id} to write", lambda: self._boot(server))
        server.confirm()

    def _source(self, shown: Json) -> str:
        return self.cloud.other(str(shown["OS-EXT-SRV-ATTR:host"]))
