"""How a migration looks while it runs: a live table on a terminal, lines in a log, JSON for a program."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from whimbrel.cli.documents import Migration, Progress, Step, plain
from whimbrel.cli.options import Staying
from whimbrel.cli.output import (
    console,
    duration,
    elapsed,
    heading,
    mebibytes,
    place,
    print_json,
    segment_title,
    step_rows,
)
from whimbrel.ops import clock

FRAMES_PER_SECOND = 8
LINE_EVERY = 3.0
"""Seconds between two lines of progress where there is no terminal."""
BAR_WIDTH = 32


class View(Protocol):
    """Shows each state of a migration as it comes."""

    def show(self, migration: Migration) -> None:
        """Show a state; the same one may come twice."""

    def __enter__(self) -> View:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""


def view_for(migration: Migration, staying: Staying, *, as_json: bool) -> View:
    """Choose the view: for a program, for somebody who only waits, for a terminal, or for a log."""
    if as_json:
        return JsonLines(only_last=not staying.watch)
    if not staying.watch:
        return Quiet()
    return Board(migration) if sys.stdout.isatty() else Lines()


class Quiet:
    """Shows nothing."""

    def show(self, migration: Migration) -> None:
        """Nothing to show."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""


class JsonLines(Quiet):
    """One JSON document for each change, or only the last one."""

    def __init__(self, *, only_last: bool) -> None:
        self._only_last = only_last
        self._shown: Migration | None = None

    def show(self, migration: Migration) -> None:
        """Print the state if it is a new one."""
        if migration == self._shown or (self._only_last and not migration.resting):
            return
        self._shown = migration
        print_json({"migration": plain(migration)})


class Lines(Quiet):
    """One line for each change of a step, and one each few seconds for the bytes."""

    def __init__(self) -> None:
        self._heading = ""
        self._began_at: int | None = None
        self._marks: dict[tuple[int, int, str], str | None] = {}
        self._progress_at = 0.0

    def show(self, migration: Migration) -> None:
        """Print what is new in this state."""
        if self._heading != heading(migration):  # a target is chosen, or another one
            self._heading = heading(migration)
            click.echo(self._heading)
        if self._began_at is None:
            over = migration.window_open and migration.verdict is not None  # the next segment is about to begin
            self._began_at = migration.segment + over
        for index, segment in enumerate(migration.segments[self._began_at :]):
            for attempt in segment.attempts:
                for step in attempt.steps:
                    self._step((index, attempt.attempt, step.step), step)
        progress = migration.progress
        if progress is not None and any(step.running and step.step == progress.step for step in migration.steps):
            self._bytes(progress)

    def _step(self, key: tuple[int, int, str], step: Step) -> None:
        if self._marks.setdefault(key, None) == step.mark:
            return
        self._marks[key] = step.mark
        said = [step.step.ljust(14), place(step).ljust(14), str(step.mark).ljust(8)]
        said += [] if step.running else [elapsed(step)]
        said += [step.reason] if step.reason else []
        self._say("  ".join(said))

    def _bytes(self, progress: Progress) -> None:
        if clock.monotonic() - self._progress_at >= LINE_EVERY:
            self._progress_at = clock.monotonic()
            self._say(f"{progress.step.ljust(14)}  {amount(progress)}")

    @staticmethod
    def _say(text: str) -> None:
        click.echo(f"{clock.iso(clock.now())[11:19]}  {text}".rstrip())


class Board:
    """The newest attempt's table, ticked off as it goes, and a bar for the bytes."""

    def __init__(self, migration: Migration) -> None:
        self._migration = migration
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self._draw, console=console(), refresh_per_second=FRAMES_PER_SECOND)

    def __enter__(self) -> Board:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, migration: Migration) -> None:
        """Draw this state, and keep what an earlier attempt came to above it."""
        before = self._migration
        if (migration.segment, migration.attempt) != (before.segment, before.attempt) and before.steps:
            ended = _came_of(migration, before)
            self._live.console.print(Text(ended, "yellow" if migration.segment == before.segment else "dim"))
        self._migration = migration

    def _draw(self) -> RenderableType:
        migration = self._migration
        parts: list[RenderableType] = [Text(heading(migration), "bold")]
        if migration.segments:
            segment = migration.segments[min(migration.segment, len(migration.segments) - 1)]
            parts.append(Text(segment_title(segment, migration.attempt, migration.target), "dim"))
        parts.append(step_rows(migration.steps, why=False) if migration.steps else self._choosing())
        parts += [self._bar(step, migration.progress) for step in migration.steps if step.running]
        return Group(*parts)

    def _choosing(self) -> RenderableType:
        if self._migration.resting:
            return Text("")
        self._spinner.update(text=Text("choosing a target"))
        return self._spinner

    def _bar(self, step: Step, progress: Progress | None) -> RenderableType:
        if progress is None or progress.step != step.step or not progress.total:
            self._spinner.update(text=Text(f"{step.step}: {step.why}", "dim", no_wrap=True, overflow="ellipsis"))
            return self._spinner
        row = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=progress.total, completed=progress.done, width=BAR_WIDTH)
        row.add_row(Text(step.step, "cyan"), bar, amount(progress))
        return row


def _came_of(migration: Migration, before: Migration) -> str:
    """Say what came of the attempt that is over."""
    if migration.segment != before.segment:
        return f"{before.segments[before.segment].protocol}: done"
    reason = migration.reason or "it did not work out"
    return f"attempt {before.attempt} on {before.target} was undone: {reason}"


def amount(progress: Progress) -> str:
    """Write how far a copy is: percent, bytes, rate, what is left, and what is to be expected while the guest runs."""
    share = f"{100 * progress.done // progress.total:3} %  " if progress.total else ""
    left = f", {duration(progress.eta)} left" if progress.eta is not None else ""
    what = "" if progress.phase == "disks" else f"  ({progress.phase})"
    moved = f"{mebibytes(progress.done)} of {mebibytes(progress.total)}, {mebibytes(progress.rate)}/s"
    return f"{share}{moved}{left}{what}{_outlook(progress)}"


def _outlook(progress: Progress) -> str:
    if progress.dirty_rate is None:
        return ""
    off = f", {duration(progress.downtime)} to send if it stopped now" if progress.downtime is not None else ""
    return f"  (round {progress.round}: the guest writes {mebibytes(progress.dirty_rate)}/s{off})"
