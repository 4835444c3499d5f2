"""One seed from its first minute to its last audit, and many of them: `python -m tests.sim.run --seeds 1000`.

A run has three parts: faults and requests together; then calm, in which everything is started again and must come to
rest; then the end of all that is open, and a last look. The same seed at the same commit is the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import gc
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.sim import workload
from tests.sim.auditor import Auditor, witness_for
from tests.sim.cloud import Host, SimCloud, SimStore
from tests.sim.faults import Lasting
from tests.sim.seams import installed
from tests.sim.story import Story
from tests.sim.timeloop import Process, inside
from tests.sim.troubles import TROUBLES
from whimbrel.domain.errors import BusError, RequestError, Unavailable
from whimbrel.domain.migration import Kind, Verdict
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.ops import ids, settings
from whimbrel.store import migrations
from whimbrel.store.migrations import LostRace
from whimbrel.store.outbox import Relay
from whimbrel.store.tables import metadata

QUIET = 17.0
"""Seconds after which the last heartbeats have told how it is."""
ENDS_WITHIN = 420.0
"""Seconds after the last fault in which every migration must end and every debt be paid (L1, L3)."""
LOOK = 5.0
AUDIT_EVERY = 10.0
GUESTS_WRITE_EVERY = 7.0


@dataclass
class Result:
    """What became of one seed."""

    seed: int
    broken: str | None
    digest: str
    seconds: float
    story: str = ""
    counts: Counter[str] = field(default_factory=Counter)


@cache
def _place() -> Path:
    """A directory in memory for this process."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="whimbrel-sim-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, path, True)
    return path


@cache
def _store() -> SimStore:
    store = SimStore(f"sqlite:///{_place()}/whimbrel.db")
    store.write_now(lambda tx: metadata.create_all(tx))
    return store


@cache
def _settled() -> None:
    """What was imported until now stays, so collecting a seed's garbage need not look at it."""
    gc.collect()
    gc.freeze()


class Run:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"run {seed}")
        self.story = Story()
        root = _place() / "hosts"
        shutil.rmtree(root, ignore_errors=True)
        store = _store()
        store.empty()
        self.cloud = SimCloud(seed, store, root)
        store.mishaps = self.cloud.mishaps
        self.loop = self.cloud.loop
        self.story.time = self.loop.time
        self.cloud.tell = self.story.tell
        self.cloud.alarms = self._alarms
        self.auditor = self.cloud.auditor = Auditor(self.cloud)
        self.cloud.witness = witness_for(self.auditor)
        self.counts: Counter[str] = Counter()
        self.faulty_for = self.rng.uniform(60, 170)
        self._draw_rules(root)

    def _draw_rules(self, root: Path) -> None:
        rng = self.rng
        self.cloud.rules = {
            "conductor": settings.Conductor(
                shutdown_grace=10,
                confirm_window=rng.choice((0, 0, 0, 45)),
                service_down_after=rng.choice((25, 60)),
                same_host_resize=rng.random() < 0.3,
            ),
            "max_copies": rng.choice((1, 2)),
        }
        for number in range(1, rng.choice((2, 3, 3, 4)) + 1):
            directory = root / f"h{number}"
            (directory / "instances").mkdir(parents=True)
            self.cloud.hosts[directory.name] = Host(self.cloud, directory.name, directory)

    def _alarms(self) -> list[str]:
        odd = [str(fault.get("exception") or fault["message"]) for fault in self.loop.faults]
        return self.story.alarms + odd

    # --- the three parts -------------------------------------------------------------------------------

    def play(self) -> Result:
        """Run it and say what became of it."""
        began = time.process_time()
        _settled()
        gc.disable()
        try:
            with installed(self.loop, self.cloud.mishaps, self.story, self.cloud):
                try:
                    self._parts()
                except Exception as error:
                    self.auditor.fail("simulation", f"{type(error).__name__}: {error}")
                    raise
                finally:
                    self.loop.close()
        finally:
            gc.enable()
        counts = self.counts + self.cloud.mishaps.counts
        counts["virtual seconds"] = int(self.loop.time())
        counts["callbacks"] = self.loop.steps
        counts["audits"] = self.auditor.checks
        broken = self.auditor.broken
        return Result(
            self.seed,
            broken,
            self.story.digest(),
            time.process_time() - began,
            self.story.last(100_000) if broken else "",
            counts,
        )

    def _parts(self) -> None:
        self._apart(self._begin())
        self._until(self.faulty_for)
        self._calm()
        self._rest()
        self._apart(self._end_all())
        self._until(self.loop.time() + LOOK)
        self._rest()

    def _apart(self, work: Any) -> None:
        """Begin something of the world's own."""
        self.loop.create_task(work, context=inside(None))

    def _stop(self) -> bool:
        return self.auditor.broken is not None

    def _until(self, end: float) -> None:
        """Let time pass, with an audit now and then."""
        while self.loop.time() < end and not self._stop():
            self.loop.run_until(min(end, self.loop.time() + AUDIT_EVERY), self._stop)
            self.auditor.check()

    def _rest(self) -> None:
        """Wait until everything has ended, and look at what is left."""
        quiet_since = self.loop.time()
        end = quiet_since + ENDS_WITHIN
        while not self._stop():
            if left := self.auditor.unfinished():  # also a window that runs out meanwhile begins something
                quiet_since = self.loop.time()
                if quiet_since >= end:
                    self.auditor.fail("L1 every migration ends", left)
            elif self.loop.time() >= quiet_since + QUIET:
                self.auditor.at_rest()
                return
            self._until(self.loop.time() + LOOK)

    # --- the world's own doings ------------------------------------------------------------------------

    async def _begin(self) -> None:
        for host in self.cloud.hosts.values():
            host.linked.set()
            host.power_on()
            self._apart(self._guests_write(host))
        self.cloud.start_controller()
        await asyncio.sleep(1.0)
        for fault in self.cloud.mishaps.lasting:
            self._apart(self._trouble(fault))
        self._apart(self._users())

    async def _guests_write(self, host: Host) -> None:
        """Every guest that runs on this host makes a durable write now and then."""
        while True:
            await asyncio.sleep(GUESTS_WRITE_EVERY)
            guests = host.guests()
            for server, runners in sorted(self.auditor.runners.items()):
                if guests is not None and host.name in runners:
                    guests.write(server)

    async def _users(self) -> None:
        rng = random.Random(f"users {self.seed}")
        for _ in range(rng.randint(1, workload.MOST_SERVERS)):
            self._request(workload.OPERATIONS[0], rng)
        while True:
            await asyncio.sleep(rng.expovariate(1 / 6.0))
            if not self.cloud.mishaps.active:
                return
            self._request(workload.draw(rng), rng)

    def _request(self, row: workload.Row, rng: random.Random) -> None:
        """Let the api do one operation; it may die on the way like any other process."""
        api = self.cloud.services["api"]
        if api.alive:
            self.loop.create_task(self._operate(api, row, random.Random(rng.random())), context=inside(api))

    async def _operate(self, api: Process, row: workload.Row, rng: random.Random) -> None:
        store = self.cloud.store
        try:
            off = frozenset(host.name for host in self.cloud.hosts.values() if not host.on)
            user = workload.User(rng, off, self.cloud.rules["conductor"].service_down_after)
            begun = await store.write(row.run, user)
            if begun is None:
                return
            self.counts[f"operation {row.name}"] += 1
            self.story.tell("api", f"{row.name}: migration {begun.migration_id}")
            await Relay(store, self.cloud.api_bus.cast).send_now(begun.outbox)
        except (RequestError, Unavailable, LostRace, BusError) as error:
            self.counts["operations refused"] += 1
            self.story.tell("api", f"{row.name} refused: {error}")

    async def _trouble(self, fault: Lasting) -> None:
        rng = random.Random(f"{fault.name} {self.seed}")
        while True:
            await asyncio.sleep(rng.expovariate(1 / fault.every))
            if not self.cloud.mishaps.active:
                return
            self.cloud.mishaps.counts[fault.name] += 1
            shortest, longest = fault.lasts
            seconds = shortest + (longest - shortest) * rng.random() ** 2
            await TROUBLES[fault.name](self, rng.choice(list(self.cloud.hosts.values())), seconds, rng)

    def _calm(self) -> None:
        self.story.tell("world", "the faults are over")
        self.cloud.mishaps.calm()
        self.auditor.calm_since = self.loop.time()

        async def mend() -> None:
            for host in self.cloud.hosts.values():
                host.full_disk = host.bad_disk = host.slow_disk = host.silent_hypervisor = host.start_fails = False
                host.linked.set()
                host.power_on()
                host.start_agent()
            self.cloud.start_controller()

        self._apart(mend())

    async def _end_all(self) -> None:
        """Close every window and delete some servers."""
        rng = random.Random(f"end {self.seed}")
        books = self.auditor.books()
        for row in books.servers:
            newest = books.newest(row.id)
            if row.deleted_at is None and newest and newest[0].open:
                verdict = rng.choice((Verdict.CONFIRM, Verdict.REVERT))
                self.story.tell("api", f"{verdict} of {row.id[:8]}")
                await self._do(migrations.give_verdict, row.id, verdict, request_id=ids.new_request_id())
            elif self.auditor.is_stranded(books, row):
                self.story.tell("api", f"start of {row.id[:8]}")
                asked = {"request_id": ids.new_request_id(), "user_id": "u", "project_id": "p"}
                start = (row.id, Kind.POWER, protocols.POWER)
                await self._do(migrations.begin, *start, action=PowerAction.START, **asked)
            elif row.deleted_at is None and rng.random() < 0.4:
                self.story.tell("api", f"delete of {row.id[:8]}")
                asked = {"request_id": ids.new_request_id(), "user_id": "u", "project_id": "p"}
                await self._do(migrations.request_delete, row.id, **asked)

    async def _do(self, function: Any, *args: Any, **kwargs: Any) -> None:
        begun = await self.cloud.store.write(function, *args, **kwargs)
        await Relay(self.cloud.store, self.cloud.api_bus.cast).send_now(begun.outbox)


# --- many seeds --------------------------------------------------------------------------------------------


def play(seed: int) -> Result:
    """Run one seed."""
    return Run(seed).play()


def play_all(first: int, count: int, processes: int) -> Iterator[Result]:
    """Run many seeds, in any order."""
    if processes == 1:
        yield from map(play, range(first, first + count))
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(play, range(first, first + count), chunksize=8)


def main() -> int:
    """Run many seeds; print the totals, and the story of each that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--digests", action="store_true", help="print the digest of every seed's story")
    parser.add_argument("--lines", type=int, default=120, help="lines of each failed seed's story")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    given = parser.parse_args()
    totals: Counter[str] = Counter()
    failed: list[Result] = []
    seconds = 0.0
    for result in play_all(given.first, given.seeds, given.processes):
        totals += result.counts
        totals["seeds"] += 1
        seconds += result.seconds
        if given.digests:
            print(f"{result.seed} {result.digest}", flush=True)
        if result.broken:
            failed.append(result)
            print(f"seed {result.seed}: {result.broken}", flush=True)
            if not given.keep_going:
                print("\n".join(result.story.splitlines()[-given.lines :]))
                break
    for name, count in sorted(totals.items()):
        print(f"{count:12,}  {name}")
    print(f"{totals['virtual seconds'] / 3600:12.1f}  virtual hours")
    print(f"{seconds / max(1, totals['seeds']):12.3f}  CPU seconds per seed")
    print(f"{len(failed):12,}  failed: {[result.seed for result in failed][:50]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
