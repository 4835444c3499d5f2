"""Follow a migration to where it rests: live on a terminal, as lines or JSON elsewhere, and then say how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import click
import msgspec

from whimbrel.cli.cloud import Cloud, migration_of
from whimbrel.cli.documents import Migration, Progress
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import Staying, talks_to_cloud, with_timeout
from whimbrel.cli.output import moment, refusal_lines
from whimbrel.cli.views import View, view_for
from whimbrel.domain.errors import Unavailable
from whimbrel.domain.migration import Kind, Outcome
from whimbrel.ops import clock

SILENCE = 45.0
"""The API sends a sign of life more often than this, in seconds."""
RETRY_AFTER = 0.5
PATIENCE = 60.0
"""How long the API may be away, in seconds: it may be being restarted, and the migration goes on meanwhile."""


@talks_to_cloud()
@click.argument("migration", metavar="MIGRATION|SERVER")
@with_timeout
def watch(cloud: Cloud, migration: str, timeout: float, as_json: bool) -> Exit:
    """Follow a migration live until it has ended, waits for its confirm or revert, or needs help.

    Name it by its number or its uuid, or name the server. With --json each change is one line.
    """
    return stay(cloud, cloud.find_migration(migration), Staying(True, False, timeout), as_json=as_json)


def stay(cloud: Cloud, migration: Migration, staying: Staying, *, as_json: bool, wanted: Outcome | None = None) -> Exit:
    """Follow a migration until it rests, say how it ended, and return the exit code; `wanted` is what was asked for."""
    try:
        with view_for(migration, staying, as_json=as_json) as view:
            rested = follow(cloud, migration, view, clock.monotonic() + staying.timeout)
    except KeyboardInterrupt:
        click.echo(f"Migration {migration.id} goes on; see `whimbrel watch {migration.id}`.", err=True)
        raise
    return conclude(rested, wanted, as_json=as_json)


def follow(cloud: Cloud, migration: Migration, view: View, deadline: float) -> Migration:
    """Show each change until the migration rests, and return it; Unavailable at the deadline (monotonic)."""
    for state in _states(cloud, migration, deadline):
        view.show(state)
        if state.resting:
            return state
    raise AssertionError("the states never end by themselves")


def conclude(migration: Migration, wanted: Outcome | None, *, as_json: bool) -> Exit:
    """Say how a migration rests, unless for a program, and return the exit code."""
    told = [] if as_json else _told(migration)
    for line in told:
        click.echo(line, err=migration.failed or migration.needs_fence)
    if not migration.open:
        return Exit.FAILED if migration.failed and migration.outcome != wanted else Exit.OK
    if migration.needs_fence:
        return Exit.NEEDS_FENCE
    return Exit.FAILED if wanted is not None else Exit.OK


def _told(migration: Migration) -> list[str]:
    name, number = migration.name, migration.id
    match migration.outcome:
        case Outcome.CONFIRMED:
            return [f"Confirmed: {name} stays on {migration.target}; its copy on {migration.source} is gone."]
        case Outcome.REVERTED:
            return [f"Reverted: {name} is back on {migration.source}."]
        case Outcome.ERROR | Outcome.CANCELLED:
            ending = "was cancelled" if migration.outcome == Outcome.CANCELLED else "ended in error"
            place = f" on {migration.source}" if migration.source else ""
            refused = refusal_lines(migration.refusals) if not migration.targets else []
            reason = "No host could take it:" if refused else migration.reason or ""
            return [f"Migration {number} {ending}; {name} is{place} as it was. {reason}".rstrip(), *refused]
        case str() if migration.kind == Kind.EVACUATION:
            return [f"Evacuated: {name} is on {migration.target}, made anew from its image."]
        case str() if migration.kind == Kind.LIVE:
            return [f"Moved: {name} runs on at {migration.target}; nothing of it is on {migration.source}."]
        case str():
            return [f"Done: {migration.action or migration.kind} of {name}."]
    if migration.needs_fence:
        host = migration.fence or "a host"
        return [
            f"Migration {number} needs a proof: {host} is silent, and only it can say whether {name} runs.",
            f"Bring {host} back (its network, its agent), and the migration goes on by itself;",
            f"or, when you have seen that it is off, say so with `whimbrel fence {host}`.",
        ]
    lines = [migration.reason] if migration.reason else []
    lines.append(f"{name} is on {migration.target}, in VERIFY_RESIZE: its copy on {migration.source} is kept.")
    if migration.window_closes_at is not None:
        lines.append(f"It is confirmed by itself at {moment(migration.window_closes_at)}.")
    return [*lines, f"confirm with `whimbrel confirm {name}`, revert with `whimbrel revert {name}`"]


def _states(cloud: Cloud, migration: Migration, deadline: float) -> Iterator[Migration]:
    """Yield the migration as it is, then each change; a broken stream is taken up again."""
    reached = clock.monotonic()
    while True:
        try:
            migration = cloud.migration(migration.id)
            reached = clock.monotonic()
            yield migration
            for change in _streamed(cloud, migration, deadline):
                reached = clock.monotonic()
                yield change
        except Unavailable:
            if clock.monotonic() > min(reached + PATIENCE, deadline):
                raise
        if clock.monotonic() > deadline:
            raise Unavailable(
                f"Migration {migration.id} has not ended within the time given; it goes on, "
                f"see `whimbrel watch {migration.id}`."
            )
        Event().wait(RETRY_AFTER)


def _streamed(cloud: Cloud, migration: Migration, deadline: float) -> Iterator[Migration]:
    """Yield what the live stream tells until it ends or the deadline has passed."""
    silence = max(RETRY_AFTER, min(SILENCE, deadline - clock.monotonic()))
    with cloud.stream("whimbrel", f"/migrations/{migration.id}/events", silence) as lines:
        for event, data in _events(lines, deadline):
            if event == "migration":
                migration = migration_of(msgspec.json.decode(data)["migration"])
            elif event == "progress":
                migration = msgspec.structs.replace(migration, progress=msgspec.json.decode(data, type=Progress))
            yield migration


def _events(lines: Iterator[str], deadline: float) -> Iterator[tuple[str, str]]:
    """Yield (event, data). Comments, the signs of life, count too: at each of them the deadline is looked at."""
    event, data = "", list[str]()
    for line in lines:
        if clock.monotonic() > deadline:
            return
        name, _, value = line.partition(":")
        if line == "" and data:
            yield event, "\n".join(data)
            event, data = "", list[str]()
        elif name == "event":
            event = value.strip()
        elif name == "data":
            data.append(value.strip())
