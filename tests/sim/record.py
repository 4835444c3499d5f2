"""Writes what the simulation was worth at this commit into `benchmarks/results/simulation.md`.

`python -m tests.sim.record --seeds 1000` plays the seeds, hunts every mutant, and writes what it saw, good or bad.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.sim.mutants import MUTANTS, SEEDS, hunt
from tests.sim.run import Result, play

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "benchmarks" / "results" / "simulation.md"


def _commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def _seeds(first: int, results: list[Result]) -> list[str]:
    """Return the lines about the seeds."""
    totals: Counter[str] = Counter()
    for result in results:
        totals += result.counts
    seconds = sum(result.seconds for result in results)
    broken = [f"seed {result.seed}: {result.broken}" for result in results if result.broken]
    operations = sum(count for name, count in totals.items() if name.startswith("operation "))
    lines = [
        "| what | how much |",
        "| --- | --- |",
        f"| seeds | {first} to {first + len(results) - 1} |",
        f"| virtual hours | {totals['virtual seconds'] / 3600:.1f} |",
        f"| audits | {totals['audits']:,} |",
        f"| requests that were begun | {operations:,} |",
        f"| crashes of a process or its host | {totals['crash at await'] + totals['crash at write']:,} |",
        f"| messages lost, doubled, late | {totals['lost']:,}, {totals['twice']:,}, {totals['late']:,} |",
        f"| CPU seconds per seed | {seconds / len(results):.2f} |",
        f"| seeds in which a promise was broken | {len(broken)} |",
    ]
    return [*lines, *(["", *(f"- {line}" for line in broken)] if broken else [])]


def _mutants(hunts: list[tuple[int, int, str]]) -> list[str]:
    """Return the table of mutants."""
    rows = [
        f"| {MUTANTS[index].title} | {seeds or 'not found'} | {found[:90].replace('|', '/') if seeds else ''} |"
        for index, seeds, found in hunts
    ]
    return [
        "| the product, broken on purpose | seeds until it was seen | what was seen |",
        "| --- | --- | --- |",
        *rows,
    ]


def main() -> int:
    """Play, hunt, write; fail if a seed failed or a mutant lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--hunt", type=int, default=SEEDS, help="at most so many seeds for each mutant")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    commit = _commit()
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(given.processes) as pool:
        results = pool.map(play, range(given.first, given.first + given.seeds), chunksize=8)
    with spawn.Pool(given.processes, maxtasksperchild=1) as pool:
        hunts = pool.map(functools.partial(hunt, seeds=given.hunt), range(len(MUTANTS)), chunksize=1)
    lines = [
        "# The simulation, measured",
        "",
        f"Written by `python -m tests.sim.record` at commit {commit}.",
        "",
        *_seeds(given.first, results),
        "",
        *_mutants(hunts),
    ]
    RECORD.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if any(result.broken for result in results) or not all(seeds for _, seeds, _ in hunts) else 0


if __name__ == "__main__":
    sys.exit(main())
