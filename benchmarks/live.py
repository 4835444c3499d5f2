"""Live moves as a guest's users see them: the longest gap between two of its records, Whimbrel beside virsh.

Both guests have the same image, definition and memory, and write a record every 10 ms; they move in turns in one run,
between the same two hosts, and while one moves the other one is suspended.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.cloud import Cloud
from benchmarks.measure import keep
from benchmarks.wanderers import BOOT, ByVirsh, Guest, Ours
from whimbrel.lab import Lab

NAME = "transfer"
QUIET = 2.0
"""Seconds before each move in which nothing moves."""
AFTERWARDS = 2.0
"""Seconds that still belong to a move after its command has ended."""
SILENT = 60.0
"""Seconds without a record after which a guest is lost."""


@dataclass
class Found:
    """What was seen of a number of moves, one by one."""

    gaps: list[float] = field(default_factory=list)
    """Seconds; of a guest that was lost, until it was given up. Where the move failed and the guest lives, nothing."""
    quiet: list[float] = field(default_factory=list)
    """The longest gap in the seconds before the move."""
    whole: list[float] = field(default_factory=list)
    """Seconds from the order to the end."""
    held: list[float] = field(default_factory=list)
    """Seconds for which Whimbrel's journal has the guest held."""
    failed: list[float] = field(default_factory=list)
    """1 where the move did not come about."""
    broken: list[float] = field(default_factory=list)
    """1 where a record's number was missing or came twice."""
    anew: list[float] = field(default_factory=list)
    """1 where the guest's kernel gave up, where it booted anew, or where no guest was left that writes."""


def in_turns(lab: Lab, cloud: Cloud, beside: int, moves: int) -> dict[str, Found]:
    """Move Whimbrel's guest and virsh's in turns, `beside` times each, then the former alone, `moves` times in all.

    Return what was found by who moved.
    """
    together, other, alone = Found(), Found(), Found()
    with ExitStack() as stack:
        ours = Ours(lab, cloud, stack)
        if beside:
            with ExitStack() as shorter:
                theirs = ByVirsh(lab, cloud, shorter)
                for _ in range(beside):
                    _move(ours, together, theirs)
                    _move(theirs, other, ours)
                _verify(theirs, "virsh")
        for _ in range(moves - beside):
            _move(ours, alone)
        _verify(ours, "Whimbrel")
        found = {"Whimbrel, in turns": together, "virsh, in turns": other, "Whimbrel, alone": alone}
        _keep(found)
        held = together.held + alone.held
        keep(NAME, f"held in {len(held)} live moves in a row, emulated guest", "s", held, None, 0.5)
    return {who: one for who, one in found.items() if one.gaps}


def _keep(found: dict[str, Found]) -> None:
    for who, one in found.items():
        if not one.gaps:
            continue
        keep(NAME, f"longest gap between records in a live move, {who}", "s", one.gaps, None, None)
        keep(NAME, f"the same before the move, {who}", "s", one.quiet, None, None)
        keep(NAME, f"whole live move, {who}", "s", one.whole, None, None)
        keep(NAME, f"live moves that failed, {who}", "", one.failed, None, None)
        keep(NAME, f"live moves with a record missing or twice, {who}", "", one.broken, None, None)
        keep(NAME, f"live moves after which the guest was started anew, {who}", "", one.anew, None, None)


def _move(guest: Guest, found: Found, bystander: Guest | None = None) -> None:
    """Move a guest once, and note what is seen of its records from a little before until a little after."""
    records = guest.records
    if not records.wait_after(time.monotonic(), 1, SILENT):
        print(f"{guest.name}'s guest has ended since: {[text for _, text in records.panics][-1:]}", flush=True)
        found.anew[-1:] = [1.0]
        guest.revive()
    if bystander is not None:
        bystander.halt()
    time.sleep(QUIET)
    began = time.monotonic()
    moved = guest.move()
    ended = time.monotonic()
    time.sleep(AFTERWARDS)
    alive = records.wait_after(ended, 10, SILENT)
    now = time.monotonic()
    booted = [f"boot of {one.total} records" for one in records.verdicts if one.at > guest.since]
    signs = booted + [f"panic: {text}" for at, text in records.panics if at > guest.since]
    if not alive:
        signs.append("no record any more")
    breaks = records.breaks(guest.since, now)
    if alive and not moved.complaint:
        found.gaps.append(records.longest_gap(began, ended + AFTERWARDS))
    elif not alive:
        found.gaps.append(now - records.times[-1])
    found.quiet.append(records.longest_gap(began - QUIET, began))
    found.whole.append(moved.seconds)
    found.held += [] if moved.held is None else [moved.held]
    found.failed.append(float(bool(moved.complaint)))
    found.broken.append(float(bool(breaks)))
    found.anew.append(float(bool(signs)))
    signs += [f"record {later} after {earlier}" for earlier, later in breaks[:5]]
    if signs or moved.complaint:
        print(f"{guest.name}, move {len(found.whole)}: {'; '.join([moved.complaint, *signs])}", flush=True)
    guest.since = now
    if not alive:
        guest.revive()
    if bystander is not None:
        bystander.go_on()


def _verify(guest: Guest, who: str) -> None:
    """Let the guest read back all that it has said to have written; what is lacking is kept too."""
    began = time.monotonic()
    guest.switch_on()
    guest.records.wait_after(time.monotonic(), 10, BOOT)
    verdict = next((one for one in guest.records.verdicts if one.at > began), None)
    last = guest.records.numbers[guest.records.before(verdict.at if verdict else began)]
    intact = verdict.intact if verdict else 0
    print(f"{who}: the last record was {last}, and after all moves the guest read back {verdict}", flush=True)
    keep(NAME, f"records lost after all live moves, {who}", "", [max(0, last - intact)], None, 0)
    guest.since = time.monotonic()
