"""How the commands speak: tables for people, one JSON document for programs, and the words for sizes and times."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from whimbrel.cli.documents import Migration, Refusal, Segment, Step
from whimbrel.domain.migration import Mark
from whimbrel.ops import clock

PIPE_WIDTH = 140
"""How wide tables are where there is no terminal, in characters."""

COLORS = {
    Mark.DONE: "green",
    Mark.DOING: "cyan",
    Mark.SKIPPED: "dim",
    Mark.OWED: "yellow",
    Mark.FAILED: "red",
    Mark.LOST: "red",
    Mark.NOT_DONE: "yellow",
    Mark.UNDOING: "yellow",
    Mark.UNDONE: "yellow",
    Mark.UNDO_FAILED: "red",
    Mark.UNDO_LOST: "red",
}
SIGNS = {Mark.DONE: "✓", Mark.DOING: "▸", Mark.SKIPPED: "–", Mark.OWED: "○", Mark.UNDOING: "◂", Mark.UNDONE: "↶"}
PENDING, WRONG = "·", "✗"
HIDDEN = "(a host)"
"""A host whose name this user may not see."""


def console() -> Console:
    """Return the console that standard output is."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False)


def print_json(document: Any) -> None:
    """Print one JSON document on one line."""
    click.echo(msgspec.json.encode(document))


def mebibytes(size: float) -> str:
    """Write a number of bytes as people do: MiB, from 10 GiB on GiB."""
    mib = size / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 10 * 1024 else f"{mib:.1f} MiB"


def duration(seconds: float) -> str:
    """Write seconds as people do: 0.3 s, 12 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def epoch(time: str | None) -> float | None:
    """Return a time of the API's as epoch seconds."""
    return None if time is None else datetime.fromisoformat(time).timestamp()


def moment(time: str | None) -> str:
    """Write a time of the API's to the second; empty when there is none."""
    seconds = epoch(time)
    return "" if seconds is None else clock.iso(seconds)


def listing(columns: list[str], rows: list[list[str]], *, nothing: str) -> None:
    """Print a table, or a sentence when there is nothing to list."""
    if not rows:
        click.echo(nothing)
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console().print(table)


def sign(step: Step) -> Text:
    """Return the sign that stands before a step."""
    if step.mark is None:
        return Text(PENDING, "dim")
    mark = Mark(step.mark)
    return Text(SIGNS.get(mark, WRONG), COLORS[mark])


def elapsed(step: Step) -> str:
    """Write how long a step took, or has taken by now."""
    if step.seconds is not None:
        return duration(step.seconds)
    began = epoch(step.started_at)
    return duration(max(0.0, clock.now() - began)) if step.running and began is not None else ""


def place(step: Step) -> str:
    """Write where a step is done."""
    return f"{step.where} {step.host}" if step.host else step.where


def step_rows(steps: list[Step], *, why: bool) -> Table:
    """Return the protocol's table with marks and times beside each row."""
    table = Table(box=None, pad_edge=False, show_header=why, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(" ")
    for column, width in (("step", 14), ("where", 9), ("mark", 8)):
        table.add_column(column, no_wrap=True, min_width=width)
    table.add_column("time", justify="right", no_wrap=True, min_width=7)
    table.add_column("why" if why else "")
    for step in steps:
        mark = Mark(step.mark) if step.mark else None
        tries = f" ×{step.tries}" if step.tries > 1 else ""
        reason = Text(step.reason, "red" if mark in (Mark.FAILED, Mark.LOST) else "yellow") if step.reason else Text("")
        if why:
            reason = Text("\n").join([reason, Text(step.why, "dim")]) if step.reason else Text(step.why, "dim")
        name = Text(step.step, "bold" if step.running else "dim" if mark is None else "")
        state = Text(f"{mark or ''}{tries}", COLORS[mark] if mark else "")
        table.add_row(sign(step), name, Text(place(step), "dim" if mark is None else ""), state, elapsed(step), reason)
    return table


def segment_title(segment: Segment, attempt: int, target: str | None) -> str:
    """Return the line above an attempt's table."""
    towards = f", target {target}" if target else ""
    return f"{segment.protocol} (version {segment.version}), attempt {attempt}{towards}"


def refusal_lines(refusals: list[Refusal]) -> list[str]:
    """Write, for each refused host, which filter refused it and why."""
    width = max((len(row.host or HIDDEN) for row in refusals), default=0)
    return [f"  {row.host or HIDDEN:<{width}}  {row.filter}: {row.reason}" for row in refusals]


def heading(migration: Migration) -> str:
    """Return the line that says which migration this is."""
    what = " ".join(filter(None, [migration.action or migration.kind, migration.way]))
    return f"migration {migration.id} of {migration.name}: {what}"
