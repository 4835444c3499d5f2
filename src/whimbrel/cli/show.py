"""Look at migrations: one with its whole table and every reason, or the list."""

from __future__ import annotations

import click
from rich.text import Text

from whimbrel.cli.cloud import Cloud, migration_of
from whimbrel.cli.documents import Migration, plain
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import talks_to_cloud
from whimbrel.cli.output import (
    HIDDEN,
    console,
    duration,
    epoch,
    heading,
    listing,
    moment,
    print_json,
    refusal_lines,
    segment_title,
    step_rows,
)
from whimbrel.cli.views import amount
from whimbrel.ops import clock


@talks_to_cloud()
@click.argument("migration", metavar="MIGRATION|SERVER")
def show(cloud: Cloud, migration: str, as_json: bool) -> Exit:
    """Show a migration: each protocol's table with marks and times, why each row is there, and the scheduler's choice.

    Name it by its number or its uuid, or name the server (then its open migration is shown, else its newest).
    """
    found = cloud.find_migration(migration)
    if as_json:
        print_json({"migration": plain(found)})
    else:
        draw(found)
    return Exit.OK


@talks_to_cloud()
@click.option("--server", help="Only those of this server (a name or an id).")
@click.option("--open", "only_open", is_flag=True, help="Only those that have not ended.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
def migrations(cloud: Cloud, server: str | None, only_open: bool, limit: int, as_json: bool) -> Exit:
    """List migrations, the newest first."""
    query: dict[str, str | int] = {"limit": limit}
    if server is not None:
        query["server"] = cloud.server(server)["id"]
    if only_open:
        query["open"] = "true"
    rows = cloud.get("whimbrel", "/migrations", **query)
    if as_json:
        print_json(rows)
        return Exit.OK
    listing(
        ["ID", "Server", "Kind", "Status", "Where", "Began", "Took", "Reason"],
        [_row(migration_of(row)) for row in rows["migrations"]],
        nothing="There are no migrations.",
    )
    return Exit.OK


def draw(migration: Migration) -> None:
    """Print a migration for a person."""
    out = console()
    out.print(Text(heading(migration), "bold"))
    for label, text in _facts(migration):
        out.print(Text.assemble((f"  {label:<10}", "dim"), text))
    for segment in migration.segments:
        for attempt in segment.attempts:
            out.print()
            out.print(Text(segment_title(segment, attempt.attempt, attempt.target), "bold"))
            out.print(step_rows(attempt.steps, why=True))
    if migration.progress is not None and not migration.resting:
        out.print(f"\n{migration.progress.step}: {amount(migration.progress)}")
    if migration.targets:
        chosen = ", ".join(f"{target.host or HIDDEN} ({target.weight:.2f})" for target in migration.targets)
        out.print(Text(f"\nThe scheduler's targets, best first: {chosen}"))
    if migration.refusals:
        out.print(Text("\n".join(["\nThe scheduler refused:", *refusal_lines(migration.refusals)])))


def _facts(migration: Migration) -> list[tuple[str, str]]:
    facts = [
        ("server", migration.server_id),
        ("status", migration.status),
        ("reason", migration.reason or ""),
        ("fence", f"waits for the word of {migration.fence or HIDDEN}" if migration.needs_fence else ""),
        ("began", moment(migration.created_at)),
        ("ended", moment(migration.finished_at)),
        ("confirms", f"by itself at {moment(migration.window_closes_at)}" if migration.window_closes_at else ""),
        ("request", migration.request_id),
    ]
    return [(label, text) for label, text in facts if text]


def _row(migration: Migration) -> list[str]:
    began, ended = epoch(migration.created_at), epoch(migration.finished_at)
    took = (ended if ended is not None else clock.now()) - began if began is not None else 0.0
    return [
        str(migration.id),
        migration.name,
        migration.action or migration.kind,
        f"needs {migration.fence or HIDDEN}" if migration.needs_fence else migration.status,
        migration.way,
        moment(migration.created_at),
        duration(max(0.0, took)),
        migration.reason or "",
    ]
