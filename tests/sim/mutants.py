"""Can the simulation fail? The product is broken on purpose, one line at a time, and seeds run until one sees it.

`python -m tests.sim.mutants` prints the table: mutant, seeds until it was found, and what was found first.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests.sim.run import play
from whimbrel.agent import executor
from whimbrel.agent.directories import HostDirectories
from whimbrel.agent.disks.fake import FakeDisks
from whimbrel.agent.executor import Executor
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.ledger import Ledger, Standing
from whimbrel.conductor import drive, timers
from whimbrel.domain.claim import Resources
from whimbrel.migration import decide, protocols
from whimbrel.migration.steps import guest
from whimbrel.store import claims, debts

SEEDS = 300


@dataclass(frozen=True)
class Mutant:
    """One line of the product that is wrong: `name` of `owner` becomes `make(what it was)`."""

    title: str
    owner: Any
    name: str
    make: Callable[[Any], Any]


def _nothing(real: Any) -> Any:
    return lambda *args, **kwargs: None


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda real: lambda *args, **kwargs: value


def _accept_anything(real: Any) -> Any:
    def look_up(self: Ledger, sql: Any, order: Any) -> Any:
        heard = real(self, sql, order)
        return heard if heard.standing is not Standing.STALE else type(heard)(Standing.NEW)

    return look_up


def _first_resumed_then_released(real: Any) -> Any:
    def run(world: Any, order: Any) -> Any:
        world.grants.grant(order)
        if not order.work.was_running:
            return guest.PowerState.STOPPED
        if world.guests.state(order.server) not in guest.ALIVE:
            world.guests.create_paused(order.server)
        world.guests.resume(order.server)
        world.grants.release(order)
        return guest.PowerState.RUNNING

    return run


def _and_the_source_is_removed(real: Any) -> Any:
    def push(self: FakeDisks, order: Any, control: Any) -> Any:
        facts = real(self, order, control)
        self._directories.remove_sealed(order.server, order.attempt)
        return facts

    return push


def _without_fence(real: Any) -> Any:
    def undo(step: Any, entry: Any) -> Any:
        decision = real(step, entry)
        if isinstance(decision, decide.Wait) and decision.fence:
            return decide.Owe(step, undo=True)
        return decision

    return undo


def _of_whomever(real: Any) -> Any:
    return lambda self, server, attempt=None: real(self, server)


def _beside_what_runs(real: Any) -> Any:
    async def is_free(self: Executor, lane: Any, work: Any) -> bool:
        return True

    return is_free


def _revoke_that_lets_run(world: Any, order: Any, control: Any) -> Any:
    return {"released": False, "power_state": guest.PowerState.STOPPED}


def _seal_that_lets_run(world: Any, order: Any, control: Any) -> Any:
    world.grants.seal(order.server, order.attempt)
    definition = world.guests.definition(order.server)
    world.directories.save_definition(order.server, definition)
    world.directories.seal(order.server, order.attempt)
    return {"forced": False, "stopped_at": 0.0, "definition": definition, "power_state": guest.PowerState.STOPPED}


def _asking_nobody(real: Any) -> Any:
    return lambda tx, conf: replace(real(tx, conf), asks=[])


def _unlimited(real: Any) -> Any:
    return lambda self, room: []


START, SEAL = protocols.START_GUEST, protocols.STOP_GUEST

MUTANTS = (
    Mutant("the seal is not written", LedgerGrants, "seal", _nothing),
    Mutant("older epochs and order numbers are obeyed", Ledger, "_look_up", _accept_anything),
    Mutant("a guest is let run, then recorded as released", guest, "_grant_and_run", _first_resumed_then_released),
    Mutant("revoke stops nothing and says that it never ran", START, "undo", lambda real: _revoke_that_lets_run),
    Mutant("the guest is sealed and runs on", SEAL, "do", lambda real: _seal_that_lets_run),
    Mutant("the source is deleted before the confirm", FakeDisks, "push", _and_the_source_is_removed),
    Mutant("a copy is not verified", FakeDisks, "verify", _always({})),
    Mutant("a silent host is not waited for", decide, "_undo", _without_fence),
    Mutant("what another attempt made is removed", HostDirectories, "is_live", _of_whomever),
    Mutant("a step begins beside the one that runs", Executor, "_is_free", _beside_what_runs),
    Mutant("room is promised twice", Resources, "lacking", _unlimited),
    Mutant("claims are not given back", claims, "give_back", _nothing),
    Mutant("debts are not written", debts, "owe", _nothing),
    Mutant("debts are not collected", timers, "collect_debts", _always(drive.Effects())),
    Mutant("nobody asks what became of an order", timers, "look", _asking_nobody),
    Mutant("after a crash a step is taken for done", executor, "look", _always((executor.Answer.DONE, {}, ""))),
    Mutant("the order of a crashed agent is forgotten", Ledger, "unfinished", _always([])),
    Mutant("an undo draws no new epoch", START, "raises", lambda real: False),
    Mutant("nobody wakes what sleeps", timers, "_asleep", _always([])),
)


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """Break the product for a while; the tables' rows are frozen for everybody else."""
    real = getattr(mutant.owner, mutant.name)
    put = object.__setattr__ if isinstance(mutant.owner, protocols.HostStep) else setattr
    put(mutant.owner, mutant.name, mutant.make(real))
    try:
        yield
    finally:
        put(mutant.owner, mutant.name, real)


def hunt(index: int, seeds: int) -> tuple[int, int, str]:
    """Run seeds until one sees the mutant; return the index, the count (0: none did) and the finding.

    A seed in which the whole product fails too says nothing of the mutant.
    """
    for seed in range(1, seeds + 1):
        found = _seen(index, seed)
        if found and not play(seed).broken:
            return index, seed, found
    return index, 0, "not found"


def _seen(index: int, seed: int) -> str | None:
    with broken(MUTANTS[index]):
        try:
            return play(seed).broken
        except Exception as error:  # whatever a broken product raises, it was noticed
            return f"{type(error).__name__}: {error}"


def main() -> int:
    """Print the table; fail if a mutant lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="at most so many seeds for each mutant")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    alive = 0
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=1) as pool:
        hunts = pool.imap_unordered(functools.partial(hunt, seeds=given.seeds), range(len(MUTANTS)))
        for index, seeds, found in hunts:
            alive += not seeds
            print(f"{MUTANTS[index].title:<48} {seeds or '-':>5}  {found[:100]}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
