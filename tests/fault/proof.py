"""`make proof`: the matrix of step, side and fault, cell by cell; it goes on where it stopped.

python -m tests.fault.proof real cold revert --seed 1 --minutes 30
"""

from __future__ import annotations

import argparse
import csv
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.fault_table import write_table
from tests.fault.bench import ROOT, Bench
from tests.fault.cells import MOVES, Cell, Shot, cells_of, shots_of
from tests.fault.fakebench import FakeBench
from tests.fault.matrix import Matrix, Row
from whimbrel.ops import clock

RESULTS = ROOT / "benchmarks/results/faults.csv"
COLUMNS = (
    "where",
    "protocol",
    "step",
    "edge",
    "fault",
    "away_s",
    "outcome",
    "ran_again_s",
    "findings",
    "time",
    "commit",
)
PLACE = re.compile(r"/\S*/hosts/")
"""Where a lab happens to lie is nothing to keep."""
BENCHES: dict[str, type[Bench]] = {"real": Bench, "fake": FakeBench}
SIZES = {"real": 3, "fake": 10}
"""Servers in a shot; real ones would wait for each other's boots on a small machine."""


def done(where: str) -> set[Cell]:
    """Return the cells that have a row."""
    if not RESULTS.exists():
        return set()
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["where"] == where]
    return {Cell(row["protocol"], row["step"], row["edge"], row["fault"]) for row in rows}


def keep(where: str, rows: list[Row]) -> None:
    """Append rows to the results."""
    RESULTS.parent.mkdir(exist_ok=True)
    fresh = not RESULTS.exists()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    now = datetime.fromtimestamp(clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with RESULTS.open("a", newline="") as file:
        table = csv.writer(file)
        if fresh:
            table.writerow(COLUMNS)
        for row in rows:
            ran = "" if row.ran_again is None else f"{row.ran_again:.1f}"
            said, outcome = (PLACE.sub("", text) for text in (" | ".join(row.findings), row.outcome))
            table.writerow([where, *row.cell.key, f"{row.away:g}", outcome, ran, said, now, commit])


def interleaved(protocols: tuple[str, ...], size: int, seed: int, *, fake: bool, wanted: set[Cell]) -> Iterator[Shot]:
    """Yield the shots of all protocols mixed, so that each is as far as the others whenever the proof is stopped."""
    streams = [[*shots_of(name, size, seed, fake=fake, wanted=wanted)] for name in protocols]
    places = [(number / len(stream), shot) for stream in streams for number, shot in enumerate(stream)]
    yield from (shot for _, shot in sorted(places, key=lambda place: place[0]))


def run(where: str, protocols: tuple[str, ...], seed: int, minutes: float) -> int:
    """Try what has no row yet for so many minutes; return how many cells had findings."""
    wanted = set(cells_of(protocols, fake=where == "fake")) - done(where)
    print(f"{len(wanted)} cells to try", flush=True)
    end, bad = clock.monotonic() + 60 * minutes, 0
    kind, size = BENCHES[where], SIZES[where]
    with tempfile.TemporaryDirectory(prefix="whimbrel-proof-") as dir, kind.up(Path(dir)) as bench:
        bench.cloud.flavor("other", vcpus=1, ram=160, disk=1)
        matrix = Matrix(bench, size)
        for shot in interleaved(protocols, size, seed, fake=bench.fake, wanted=wanted):
            if clock.monotonic() > end:
                break
            began = clock.monotonic()
            try:
                rows = matrix.try_shot(shot)
            except Exception:  # the other cells must be tried whatever happens in this one
                traceback.print_exc()
                bench.gates.open()
                bench.mend()
                matrix.renew()
                continue
            keep(where, rows)
            write_table()
            bad += sum(bool(row.findings) for row in rows)
            for row in rows:
                ran = "-" if row.ran_again is None else f"{row.ran_again:.1f} s"
                print(" ".join(row.cell.key), f"away {row.away:g}", "->", row.outcome, ran, *row.findings, flush=True)
            print(f"  {clock.monotonic() - began:.1f} s", flush=True)
    return bad


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.proof", description=__doc__)
    parser.add_argument("where", choices=("real", "fake"))
    parser.add_argument("protocols", nargs="*", default=list(MOVES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the lab is taken down
    sys.exit(1 if run(given.where, tuple(given.protocols), given.seed, given.minutes) else 0)


if __name__ == "__main__":
    main()
