"""`make bench-transfer`: the hosts' share of a guest's downtime by the size of its disk, in three ways; and a picture.

The share is from the moment at which the guest is off (or held) at the source to that at which it is let run at the
target, as the journal has it; the guest's own shutdown and boot are not in it. The modes take turns in one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.cloud import Cloud
from benchmarks.measure import keep
from benchmarks.moves import host_of, ready, sent_bytes, steps
from whimbrel.lab import Lab

NAME = "transfer"
DOCS = Path(__file__).parents[1] / "docs"
PEER = {200: 2.22, 1024: 4.63, 2048: 12.86}
"""Seconds that OpenStack Nova's hosts took on the same kind of machine, by MiB of data in a qcow2 disk."""

MODES = ("cold", "warm", "live")
COLOURS = {"cold": "#b5532a", "warm": "#2a6fb5", "live": "#2a8f4f", "Nova": "#888888"}

Table = dict[str, dict[int, float]]
"""Seconds by mode and MiB."""


def main() -> None:
    """Measure, keep the rows, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="200,1024,2048", help="MiB of data, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--moves", type=int, default=20, help="live moves in a row of the last part")
    given = parser.parse_args()
    sizes = [int(word) for word in given.sizes.split(",")]
    table: Table = {mode: {} for mode in MODES}
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as path:
        lab = Lab.up(Path(path) / "lab", hosts=2)
        try:
            cloud = Cloud(Path(lab.clouds_yaml))
            for size in sizes:
                for mode, values in _by_mode(lab, cloud, size, given.rounds).items():
                    peer = PEER.get(size) if mode != "live" else None
                    keep(NAME, f"downtime by hosts, {mode}, {size} MiB of data", "s", values, peer, 0.8)
                    table[mode][size] = statistics.median(values)
            _in_a_row(lab, cloud, given.moves)
        finally:
            lab.down()
    _publish(table)


def _by_mode(lab: Lab, cloud: Cloud, size: int, rounds: int) -> dict[str, list[float]]:
    """Move one server in each mode, in turns; return the hosts' share of each move."""
    flavor = cloud.flavor(f"disk{size}", vcpus=1, ram=128, disk=max(1, size * 3 // 1024))
    server = cloud.create(f"data{size}", flavor, user_data=f"writer.interval_ms=50\nfill_mib={size}\n")
    boots = 1
    ready(lab, cloud, server, boots)
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    wires = []
    for _ in range(rounds):
        for mode in MODES:
            source = lab.host(host_of(cloud, server))
            before = sent_bytes(source)
            found[mode].append(_moved(cloud, server, mode))
            facts = _facts(cloud, server)
            allocated = (facts.get("copy_disks") or facts["move_memory"])["allocated"]
            if mode == "cold":
                wires.append((sent_bytes(source) - before) / allocated)
            if mode != "live":
                boots += 1
                ready(lab, cloud, server, boots)
                cloud.timed(server, {"confirmResize": None}, "ACTIVE")
    keep(NAME, f"bytes on the wire over allocated, cold, {size} MiB", "", wires, 1.0, 1.03)
    cloud.delete(server)
    return found


def _moved(cloud: Cloud, server: str, mode: str) -> float:
    """Move the server; return the hosts' share of its downtime in seconds."""
    if mode == "live":
        cloud.timed(server, {"os-migrateLive": {"host": None, "block_migration": "auto"}}, "ACTIVE")
        facts = _facts(cloud, server)
        return float(facts["resume_guest"]["running_at"] - facts["move_memory"]["stopped_at"])
    cloud.post(f"/servers/{server}/metadata", {"metadata": {"whimbrel:move": "cold" if mode == "cold" else "auto"}})
    cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE")
    facts = _facts(cloud, server)
    return float(facts["start_guest"]["running_at"] - facts["stop_guest"]["stopped_at"])


def _facts(cloud: Cloud, server: str) -> dict[str, dict[str, float]]:
    return {step["step"]: step.get("facts") or {} for step in steps(cloud, server)}


def _in_a_row(lab: Lab, cloud: Cloud, moves: int) -> None:
    """Move one guest live again and again; a guest that was started anew would verify its disk once more."""
    server = cloud.create("wanderer", cloud.flavor("small"), user_data="writer.interval_ms=50\n")
    ready(lab, cloud, server, 1)
    gaps = []
    for _ in range(moves):
        gaps.append(_moved(cloud, server, "live"))
        console = lab.console(host_of(cloud, server), server)
        if "WRITER VERIFY" in console or "panic" in console:
            raise RuntimeError(f"after {len(gaps)} live moves the guest was started anew:\n{console[-1500:]}")
    keep(NAME, f"held in {moves} live moves in a row, emulated guest", "s", gaps, None, 0.5)
    cloud.delete(server)


def _publish(table: Table) -> None:
    sizes = sorted({size for row in table.values() for size in row})
    rows = {**table, "Nova": {size: PEER[size] for size in sizes if size in PEER}}
    lines = ["| | " + " | ".join(f"{size} MiB" for size in sizes) + " |", "| --- |" + " --- |" * len(sizes)]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[s]:.2f} s" if s in values else "" for s in sizes) + " |")
    text = (DOCS / "transfer.md").read_text(encoding="utf-8")
    head = text.split("<!-- table -->")[0]
    (DOCS / "transfer.md").write_text(head + "<!-- table -->\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (DOCS / "transfer.svg").write_text(_picture(rows, sizes), encoding="utf-8")


def _picture(rows: Table, sizes: list[int]) -> str:
    """Draw seconds against MiB, a line for each row."""
    width, height, left, low = 640, 360, 60, 40
    most = max(value for row in rows.values() for value in row.values())

    def place(size: int, value: float) -> tuple[float, float]:
        return left + (width - left - 90) * size / sizes[-1], height - low - (height - low - 20) * value / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left} 15V{height - low}H{width - 85}" fill="none" stroke="black"/>',
        f'<text x="{left}" y="12">downtime by the hosts, seconds</text>',
        f'<text x="{width - 200}" y="{height - 6}">data in the disk, MiB</text>',
    ]
    for size in sizes:
        x, _ = place(size, 0)
        parts.append(f'<text x="{x:.0f}" y="{height - low + 18}" text-anchor="middle">{size}</text>')
    for value in (most / 2, most):
        _, y = place(0, value)
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{value:.1f}</text>')
    for name, row in rows.items():
        points = [place(size, row[size]) for size in sizes if size in row]
        if not points:
            continue
        path = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        x, y = points[-1]
        parts.append(f'<text x="{x + 8:.0f}" y="{y + 4:.0f}" fill="{COLOURS[name]}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
