"""`make bench-transfer`: what hosts add to a downtime, by size of disk; and the copy beside scp, rsync and others.

The share is from the moment at which the guest is off (or held) at the source to that at which it is let run at the
target, as the journal has it; the guest's own shutdown and boot are not in it. The modes take turns in one run.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from pathlib import Path

from benchmarks import copying, live, picture
from benchmarks.cloud import SELDOM, Cloud
from benchmarks.copying import Found
from benchmarks.measure import keep, kept
from benchmarks.moves import host_of, ready, sent_bytes, steps
from whimbrel.lab import Lab
from whimbrel.migration.messages import WITH_MEMORY

NAME = "transfer"
DOCS = Path(__file__).parents[1] / "docs"
PEER = {200: 2.22, 1024: 4.63, 2048: 12.86}
"""Seconds that OpenStack Nova's hosts took on the same kind of machine, by MiB of data in a qcow2 disk."""

PARTS = ["downtime", "live", "copy", "rest", "wires"]
MODES = {"cold": "cold", "warm": "auto", "suspended": "suspended", "live": None}
"""The ways of moving, and what the server's metadata say of it under `whimbrel:move`."""
ROW = re.compile(r"downtime by hosts, (\w+), (\d+) MiB of data")


def main() -> None:
    """Measure, keep the rows, and write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--sizes", default="200,1024,2048", help="MiB of data, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--moves", type=int, default=100, help="live moves of one guest in a row")
    parser.add_argument("--beside", type=int, default=20, help="of them in turns with as many by virsh")
    parser.add_argument("--gib", type=int, default=4, help="GiB of random data that are copied in every way")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as path:
        lab = Lab.up(Path(path) / "lab", hosts=2)
        try:
            cloud = Cloud(Path(lab.clouds_yaml))
            if "downtime" in given.parts:
                _downtime(lab, cloud, [int(word) for word in given.sizes.split(",")], given.rounds)
            if "live" in given.parts:
                _live(lab, cloud, given.beside, given.moves)
            if "copy" in given.parts:
                _copy(lab, cloud, given.gib, given.rounds)
            if "rest" in given.parts:
                _rest(lab, cloud, given.gib)
            if "wires" in given.parts:  # the last one: it changes a host's settings
                _wires(lab, cloud, given.rounds)
        finally:
            lab.down()


def _downtime(lab: Lab, cloud: Cloud, sizes: list[int], rounds: int) -> None:
    for size in sizes:
        for mode, values in _by_mode(lab, cloud, size, rounds).items():
            # A guest that does not boot anew is compared with no cold migration.
            peer = None if mode in WITH_MEMORY else PEER.get(size)
            keep(NAME, f"downtime by hosts, {mode}, {size} MiB of data", "s", values, peer, 0.8)
    rows: dict[str, dict[int, float]] = {mode: {} for mode in MODES} | {"Nova": PEER}
    for what, seconds in kept(NAME).items():
        if found := ROW.fullmatch(what):
            rows[found[1]][int(found[2])] = seconds
    sizes = sorted({size for row in rows.values() for size in row})
    head = ["", *(f"{size} MiB" for size in sizes)]
    lines = [[name, *(f"{row[s]:.2f} s" if s in row else "" for s in sizes)] for name, row in rows.items()]
    _publish("downtime", head, lines)
    drawn = picture.lines(rows, "downtime by the hosts, seconds", "data in the disk, MiB")
    (DOCS / "transfer.svg").write_text(drawn, encoding="utf-8")


def _copy(lab: Lab, cloud: Cloud, gib: int, rounds: int) -> None:
    found = copying.measure(lab, cloud, gib, rounds)
    plain = statistics.median(found["scp"].speeds)

    def row(name: str, one: Found) -> list[str]:
        speed = statistics.median(one.speeds)
        return [name, f"{speed:.0f} MiB/s", f"{speed / plain:.2f}", f"{statistics.median(one.costs):.2f} s"]

    _publish("copy", ["", "speed", "of scp's", "processor time per GiB"], [row(*pair) for pair in found.items()])
    speeds = {name: statistics.median(one.speeds) for name, one in found.items()}
    costs = {name: statistics.median(one.costs) for name, one in found.items()}
    at_rest, running = (
        {part: statistics.median(values) for part, values in found[name].shares.items()}
        for name in (copying.AT_REST, copying.RUNNING)
    )
    drawn = picture.bars(
        [
            ("MiB per second", speeds),
            ("processor seconds per GiB, both hosts", costs),
            ("where Whimbrel's go, at rest", at_rest),
            ("where Whimbrel's go, of a running guest", running),
        ],
        ours=("Whimbrel", *at_rest),
    )
    (DOCS / "copying.svg").write_text(drawn, encoding="utf-8")


def _rest(lab: Lab, cloud: Cloud, gib: int) -> None:
    rest = [
        ["bytes on the wire over allocated, 256 MiB in a disk of 20 GiB", f"{copying.empty_disk(lab, cloud):.3f}"],
        [f"bytes after a cut at half over the whole, {gib} GiB", f"{copying.resumed(lab, cloud, gib, 3):.2f}"],
    ]
    peaks = copying.memory(lab, cloud, ((2, 256), (20, 256), (20 + gib, gib * 1024)))
    rest += [[f"memory of an agent or receiver, disk of {size} GiB", f"{peak:.0f} MiB"] for size, peak in peaks.items()]
    _publish("rest", ["", ""], rest)


def _wires(lab: Lab, cloud: Cloud, rounds: int) -> None:
    head = ["data", "wire", "never compressed", "as the engine decides", "bytes sent over held"]
    lines = [
        [one.data, one.speed, f"{one.plain:.1f} s", f"{one.chosen:.1f} s", f"{one.share:.2f}"]
        for one in copying.compressed(lab, cloud, 512, rounds)
    ]
    _publish("wires", head, lines)


def _by_mode(lab: Lab, cloud: Cloud, size: int, rounds: int) -> dict[str, list[float]]:
    """Move one server in each mode, in turns; return the hosts' share of each move."""
    flavor = cloud.flavor(f"disk{size}", vcpus=1, ram=128, disk=size // 1024 + 1)
    server = cloud.create(f"data{size}", flavor, user_data=f"writer.interval_ms=50\nfill_mib={size}\n")
    boots = 1
    ready(lab, cloud, server, boots, size)
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
            if mode not in WITH_MEMORY:
                boots += 1
                ready(lab, cloud, server, boots, size)
            if mode != "live":
                cloud.timed(server, {"confirmResize": None}, "ACTIVE")
    keep(NAME, f"bytes on the wire over allocated, cold, {size} MiB", "", wires, 1.0, 1.03)
    cloud.delete(server)
    return found


def _moved(cloud: Cloud, server: str, mode: str) -> float:
    """Move the server; return the hosts' share of its downtime in seconds."""
    if mode == "live":
        cloud.action(server, {"os-migrateLive": {"host": None, "block_migration": "auto"}})
        cloud.wait(server, "ACTIVE", poll=SELDOM)
    else:
        cloud.post(f"/servers/{server}/metadata", {"metadata": {"whimbrel:move": MODES[mode]}})
        cloud.action(server, {"migrate": None})
        cloud.wait(server, "VERIFY_RESIZE", poll=SELDOM)
    facts = _facts(cloud, server)
    down, up = ("move_memory", "resume_guest") if mode in WITH_MEMORY else ("stop_guest", "start_guest")
    return float(facts[up]["running_at"] - facts[down]["stopped_at"])


def _facts(cloud: Cloud, server: str) -> dict[str, dict[str, float]]:
    return {step["step"]: step.get("facts") or {} for step in steps(cloud, server)}


def _live(lab: Lab, cloud: Cloud, beside: int, moves: int) -> None:
    head = ["", "moves", "longest gap", "when nothing moves", "whole move", "failed", "record missing", "started anew"]

    def span(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"

    lines = [
        [
            who,
            f"{len(one.whole)}",
            *map(span, (one.gaps, one.quiet, one.whole)),
            *(f"{sum(marks):.0f}" for marks in (one.failed, one.broken, one.anew)),
        ]
        for who, one in live.in_turns(lab, cloud, beside, moves).items()
    ]
    _publish("live", head, lines)


def _publish(name: str, head: list[str], rows: list[list[str]]) -> None:
    """Write a table in place of the one that stands between its marks."""
    path = DOCS / "transfer.md"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    path.write_text("\n".join([before + begin, "", *lines, "", end]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
