"""Writes the results of the fault runs down as people read them: `results/faults.md`."""

from __future__ import annotations

import csv
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.measure import RESULTS
from tests.fault.cells import EVERY, FAULTS, MOVES, cells_of

CELL_ROWS = RESULTS / "faults.csv"
PEER_ROWS = RESULTS / "faults_peer.csv"
TABLE = RESULTS / "faults.md"

PEER = {
    "(i)": (
        "RESIZE while it was down, then ACTIVE though the guest is off, then SHUTOFF",
        "nowhere",
        "a copier that ran on, a full copy at the target, a migration `migrating` for ever, a claim on the wrong host",
        "start it, remove the copy, mend the claim",
    ),
    "(ii)": (
        "RESIZE / `resize_finish` for ever",
        "nowhere",
        "the source's directory and its domain, which stay even after DELETE",
        "reset the state, hard reboot; `rm -rf` and `virsh undefine` at the source",
    ),
    "(iii-a)": ("ACTIVE", "yes, never stopped", "none", "mend known_hosts, try again"),
    "(iii-b)": ("ACTIVE", "yes, never stopped", "none", "mend the key, try again"),
    "(iv)": ("ERROR", "nowhere", "none", "reset the state, wait for SHUTOFF, start"),
    "(v)": (
        "ERROR, 60 s after the broker was back",
        "nowhere",
        "the source's directory under another name, a complete copy at the target",
        "rename the directory by hand, reset the state, hard reboot, remove the copy",
    ),
    "(extra)": ("deleted", "-", "a partial copy of 1.5 GB at the target", "`rm -rf` at the target"),
}
"""What OpenStack Nova 34.0.0 did: final state, where the guest ran, what was left over, what an operator had to do."""


def write_table() -> None:
    """Write the whole document anew from the raw rows."""
    lines = ["# Faults", "", *_peer(), "", *_cells()]
    TABLE.write_text("\n".join(lines) + "\n")


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- beside the peer --------------------------------------------------------------------------------


def _peer() -> list[str]:
    rows = _read(PEER_ROWS)
    lines = [
        "## The same faults as on the peer",
        "",
        "OpenStack Nova 34.0.0 and Whimbrel in the same situations: real libvirt, QEMU (TCG), sshd and RabbitMQ, two",
        "hosts, a 10 GiB qcow2 disk with 2 GiB of data (Nova) or 1 GiB (Whimbrel, whose guest reads all of it at each",
        "boot to verify it). `make bench ARGS=faults` repeats Whimbrel's side. Where Nova was hit in a phase that",
        "Whimbrel passes before it stops the guest, a second row hits Whimbrel in a later one too.",
        "",
        "| fault | who | final state | guest runs | left over | the operator must | ran again after | guest off for |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    told = set()
    for row in rows:
        fault = row["fault"]
        name = f"{fault.partition(')')[0].partition(',')[0]})"
        if name in PEER and name not in told:
            told.add(name)
            never = "never by itself" if PEER[name][1] == "nowhere" else ""
            lines.append(_line(fault, "Nova", *PEER[name], never, ""))
        again = "" if not row["ran_again_s"] else "never stopped" if row["down_s"] == "0" else f"{row['ran_again_s']} s"
        off = f"{row['down_s']} s" if row["down_s"] not in ("", "0") else ""
        lines.append(_line(fault, "Whimbrel", row["state"], row["runs_on"], row["leftovers"], _todo(row), again, off))
    return lines


def _line(*words: str) -> str:
    return f"| {' | '.join(words)} |"


def _todo(row: dict[str, str]) -> str:
    if row["state"] in ("VERIFY_RESIZE", "deleted"):
        return "nothing" if row["state"] == "deleted" else "nothing: the move went on"
    return f"mend what the reason names, try again: {row['reason']}"


# --- the matrix ---------------------------------------------------------------------------------------


def _cells() -> list[str]:
    rows = _read(CELL_ROWS)
    lines = ["## Every step, every fault", "", *INTRODUCTION, ""]
    for where, protocols in (("real", MOVES), ("fake", EVERY)):
        mine = [row for row in rows if row["where"] == where]
        all_of_them = len(cells_of(protocols, fake=where == "fake"))
        clean = sum(not row["findings"] for row in mine)
        lines += [
            f"### {'Real guests' if where == 'real' else 'Fake hypervisor'}: {len(mine)} of {all_of_them} cells tried, "
            f"{clean} without a finding",
            "",
        ]
        for protocol in protocols:
            lines += [*_protocol([row for row in mine if row["protocol"] == protocol], protocol), ""]
        found = [row for row in mine if row["findings"]]
        for row in found:
            cell = f"{row['protocol']} {row['step']} {row['edge']}, {row['fault']} ({row['away_s']} s)"
            lines.append(f"* {cell}: {row['findings'][:300]}")
        lines += [""] if found else []
        lines += _outcomes(mine)
    return lines


INTRODUCTION = [
    "A server is held exactly before or after a step (its order in the host's ledger and not begun; its effect there",
    "and not yet written down), the fault strikes, what fell is brought back after a while (short: 1 s; long: five",
    "seconds more than the conductor's patience, which is 8 s here; a link always 20 s), and an auditor that reads",
    "processes, domains, files, taps, ledgers and the database waits until all is as it must be, 90 s at most. Then",
    "the guest itself says whether it found every record that it was promised. Each cell below: outcome of `before` /",
    "`after`, and the seconds from the fault until the guest wrote for good (0: it never stopped), its boot under",
    "emulation on a busy machine included.",
    "",
    "`moved`: it went on to the end. `back`: it ended in error with the guest at the source. `refused`: the revert did",
    "not begin, the guest runs on at the target. `off`: the killed guest stays down and is shown so. `none`: there was",
    "no process to kill. `·`: not tried yet. Raw rows: `faults.csv`.",
]


def _protocol(rows: list[dict[str, str]], protocol: str) -> list[str]:
    if not rows:
        return []
    steps = list(dict.fromkeys(cell.step for cell in cells_of((protocol,), fake=False)))
    faults = [fault for fault in FAULTS if any(row["fault"] == fault for row in rows)]
    by_key = {(row["step"], row["fault"], row["edge"]): row for row in rows}
    lines = [f"| {protocol} | " + " | ".join(faults) + " |", "| --- " * (len(faults) + 1) + "|"]
    for step in steps:
        told = [" / ".join(_short(by_key.get((step, fault, edge))) for edge in ("before", "after")) for fault in faults]
        lines.append(f"| {step} | " + " | ".join(told) + " |")
    return lines


def _short(row: dict[str, str] | None) -> str:
    if row is None:
        return "·"
    if row["findings"]:
        return "**found**"
    outcome = row["outcome"]
    if outcome.startswith("no process"):
        return "none"
    word = outcome.split(":")[0].split(",")[0].replace("back at the source", "back")
    off = " off" if outcome.endswith("guest down and shown so") else ""
    return f"{word}{off} {float(row['ran_again_s']):.0f}" if row["ran_again_s"] else f"{word}{off}"


def _outcomes(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    counted = Counter(_short(row).rstrip(" 0123456789") for row in rows)
    again = defaultdict(list)
    for row in rows:
        if row["ran_again_s"] and float(row["ran_again_s"]):
            again[row["fault"]].append(float(row["ran_again_s"]))
    times = [
        f"| {fault} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |"
        for fault, times in sorted(again.items())
    ]
    return [
        "Outcomes: " + ", ".join(f"{count} {word}" for word, count in counted.most_common()) + ".",
        "",
        "| fault | guests that were off | median until it ran again, s | longest, s |",
        "| --- | --- | --- | --- |",
        *times,
        "",
    ]
