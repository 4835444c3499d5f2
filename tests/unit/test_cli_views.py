"""On a terminal: the table is drawn over, and what an earlier attempt came to stays above it."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from tests.unit.stub_cloud import IN_WINDOW, migration
from whimbrel.cli import views
from whimbrel.cli.cloud import migration_of
from whimbrel.cli.documents import Progress
from whimbrel.cli.output import duration, mebibytes


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system=None, width=120)
    monkeypatch.setattr(views, "console", lambda: console)
    return text


def test_the_board_has_a_bar_for_the_bytes_and_a_tick_for_what_is_done(screen: io.StringIO) -> None:
    copying = migration_of(migration("done", "done", "done", "done", "done", "doing"))
    copying = msgspec.structs.replace(copying, progress=Progress("copy_disks", 2**20, 4 * 2**20, 2**20, 3.0))
    with views.Board(copying) as board:
        board.show(copying)
    text = screen.getvalue()
    assert "25 %  1.0 MiB of 4.0 MiB, 1.0 MiB/s, 3.0 s left" in text
    assert "✓  stop_guest" in text
    assert "▸  copy_disks" in text
    assert "·  start_guest" in text


def test_an_attempt_that_was_undone_is_told_above_the_next_one(screen: io.StringIO) -> None:
    first = migration_of(migration("done", "undone", reason="The disk is full."))
    second = migration("done", "doing", attempt=2, target="h3", reason="The disk is full.")
    with views.Board(first) as board:
        board.show(first)
        board.show(migration_of(second))
        board.show(migration_of(IN_WINDOW | {"attempt": 2}))
    assert screen.getvalue().count("attempt 1 on h2 was undone: The disk is full.") == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.7, "1 min 00 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_written_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_are_written_as_people_do() -> None:
    assert [mebibytes(size) for size in (1536 * 2**10, 20 * 2**30)] == ["1.5 MiB", "20.0 GiB"]
