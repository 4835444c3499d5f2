"""Figures of merit: medians, memory as the kernel shares it out, and a row that is kept."""

from __future__ import annotations

import csv
import statistics
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def pss_mib(pid: int) -> float:
    """Return a process's proportional set size with all its children, in MiB."""
    total = 0
    for process in family(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def family(pid: int) -> list[int]:
    """Return the process and everything that descends from it; what ends meanwhile may be missing."""
    found = [pid]
    with suppress(OSError):  # it has ended since
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in thread.read_text().split():
                found += family(int(child))
    return found


def kept(name: str) -> dict[str, float]:
    """Return the newest median of everything that was ever kept in a file."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["what"]: float(row["median"]) for row in csv.DictReader(file)}


def keep(name: str, what: str, unit: str, values: list[float], nova: float | None, goal: float | None) -> None:
    """Print the median with its range beside the peer's figure and the goal, and append every raw value to a file."""
    median = statistics.median(values)
    peer = "" if nova is None else f"  Nova {nova:g}  ratio {median / nova:.3f}"
    reached = "" if goal is None else f"  goal {goal:g} {'reached' if median <= goal else 'MISSED'}"
    print(
        f"{what:58} {median:9.3f} {unit:4} ({min(values):.3f}-{max(values):.3f}, n={len(values)}){peer}{reached}",
        flush=True,
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if fresh:
            rows.writerow(["time", "what", "unit", "median", "values"])
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        rows.writerow([now, what, unit, f"{median:.4f}", " ".join(f"{value:.4f}" for value in values)])
