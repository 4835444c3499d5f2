"""The commands that move a server: migrate and resize begin, cancel turns back, confirm and revert close the window."""

from __future__ import annotations

import re
from typing import Any

import click

from whimbrel.cli import plan
from whimbrel.cli.cloud import Cloud
from whimbrel.cli.documents import Migration, plain
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import Staying, may_stay, talks_to_cloud
from whimbrel.cli.output import print_json
from whimbrel.cli.watch import stay
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Outcome
from whimbrel.domain.server import MOVE, Manner

_MANNERS = "Copy the disks while the guest runs (warm), after it has stopped (cold), or as it can be done (auto)"
_ELSE = f"Without it the server's metadata ({MOVE}) or its host's settings decide."
_planned = click.option("--plan", "planned", is_flag=True, help="Only say what would happen, and begin nothing.")


@talks_to_cloud()
@click.argument("server")
@click.option("--host", help="The target. Without it the scheduler chooses, and has alternates.")
@click.option("--live", is_flag=True, help="Move the guest while it runs; it is not asked to shut down.")
@click.option(
    "--move",
    type=click.Choice([manner.value for manner in Manner]),
    help=f"{_MANNERS}; or hold the guest while its memory follows them, so that it does not boot (suspended). {_ELSE}",
)
@_planned
@may_stay
def migrate(
    cloud: Cloud,
    server: str,
    host: str | None,
    move: str | None,
    staying: Staying,
    *,
    live: bool,
    planned: bool,
    as_json: bool,
) -> Exit:
    """Move SERVER (a name or an id) to another host.

    The guest's disks are copied, it is shut down, the rest is copied and verified, and it is started at the target.
    Then it waits in VERIFY_RESIZE, with the source's copy kept, until `whimbrel confirm` or `whimbrel revert`. With
    --live its memory crosses too, it runs on at the target, and there is nothing to confirm. With --move suspended its
    memory crosses while it is held, it goes on in the boot that it was in, and it waits for confirm or revert.
    """
    if live and move:
        raise click.UsageError("--live and --move exclude each other.")
    if live:
        action: dict[str, Any] = {"os-migrateLive": {"host": host, "block_migration": "auto"}}
    else:
        given = ({"host": host} if host else {}) | ({MOVE: move} if move else {})
        action = {"migrate": given or None}
    return _begin(cloud, server, action, staying, planned=planned, as_json=as_json)


@talks_to_cloud()
@click.argument("server")
@click.argument("flavor")
@click.option(
    "--move",
    type=click.Choice([manner.value for manner in Manner if manner is not Manner.SUSPENDED]),
    help=f"{_MANNERS}. {_ELSE}",
)
@_planned
@may_stay
def resize(
    cloud: Cloud, server: str, flavor: str, move: str | None, staying: Staying, *, planned: bool, as_json: bool
) -> Exit:
    """Give SERVER another FLAVOR (each a name or an id); it moves as in `whimbrel migrate`."""
    given = {"flavorRef": cloud.flavor(flavor)["id"]} | ({MOVE: move} if move else {})
    return _begin(cloud, server, {"resize": given}, staying, planned=planned, as_json=as_json)


def _begin(
    cloud: Cloud, server: str, action: dict[str, Any], staying: Staying, *, planned: bool, as_json: bool
) -> Exit:
    found = cloud.server(server)
    if planned:
        return plan.tell(cloud, found, action, as_json=as_json)
    cloud.act(found["id"], action)
    return begun(cloud, found, staying, as_json=as_json)


@talks_to_cloud()
@click.argument("server")
@may_stay
def confirm(cloud: Cloud, server: str, staying: Staying, as_json: bool) -> Exit:
    """Keep SERVER where it is now: its old copy at the source is deleted."""
    return _closed(cloud, server, Outcome.CONFIRMED, staying, as_json=as_json)


@talks_to_cloud()
@click.argument("server")
@may_stay
def revert(cloud: Cloud, server: str, staying: Staying, as_json: bool) -> Exit:
    """Take SERVER back to the source, as it was there: what was written since the move is given up."""
    return _closed(cloud, server, Outcome.REVERTED, staying, as_json=as_json)


@talks_to_cloud()
@click.argument("migration", metavar="MIGRATION|SERVER")
@may_stay
def cancel(cloud: Cloud, migration: str, staying: Staying, as_json: bool) -> Exit:
    """Turn a migration back before the server is handed over: the guest is where it was, and nothing is left.

    Name it by its number or its uuid, or name the server. A revert that is cancelled leaves the server where it is.
    """
    found = cloud.find_migration(migration)
    cloud.delete("compute", f"/servers/{found.server_id}/migrations/{found.id}")
    return _accepted(cloud, found, staying, Outcome.CANCELLED, as_json=as_json)


@talks_to_cloud()
@click.argument("migration", metavar="MIGRATION|SERVER")
def hurry(cloud: Cloud, migration: str, as_json: bool) -> Exit:
    """Do not wait until little is left to be copied: stop the guest (hold it, in a live move) as soon as that helps."""
    found = cloud.find_migration(migration)
    path = f"/servers/{found.server_id}/migrations/{found.id}/action"
    cloud.post("compute", path, {"force_complete": None})
    return _accepted(cloud, found, Staying(False, False, 0), None, as_json=as_json)


@talks_to_cloud()
@click.argument("migration", metavar="MIGRATION|SERVER")
@click.argument("rate", metavar="RATE|none")
def limit(cloud: Cloud, migration: str, rate: str, as_json: bool) -> Exit:
    """Let a migration send no more than RATE from now on: bytes per second, or 800K, 50M, 1G in units of 1024.

    `none` lifts the limit. Limits of a whole host and of each link are settings of its agent.
    """
    found = cloud.find_migration(migration)
    cloud.put("whimbrel", f"/migrations/{found.id}/limit", {"bytes_per_second": _bytes_per_second(rate)})
    return _accepted(cloud, found, Staying(False, False, 0), None, as_json=as_json)


def _bytes_per_second(rate: str) -> int | None:
    if rate == "none":
        return None
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", rate, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{rate} is no rate; write 50M, 800K, a number of bytes per second, or none.")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def begun(cloud: Cloud, server: dict[str, str], staying: Staying, *, as_json: bool) -> Exit:
    """Say that the server's newest migration was accepted, and stay with it if that is wanted."""
    migration = cloud.newest_migration(server["id"])
    if migration is None:
        raise Conflict(f"The migration of {server['name']} was accepted, but the API does not show it to this user.")
    return _accepted(cloud, migration, staying, None, as_json=as_json)


def _closed(cloud: Cloud, name: str, verdict: Outcome, staying: Staying, *, as_json: bool) -> Exit:
    server = cloud.server(name)
    cloud.act(server["id"], {"confirmResize" if verdict is Outcome.CONFIRMED else "revertResize": None})
    migration = cloud.newest_migration(server["id"])
    if migration is None:
        raise Conflict(
            f"The request was accepted, but the API does not show {server['name']}'s migration to this user."
        )
    return _accepted(cloud, migration, staying, verdict, as_json=as_json)


_ASKED = {Outcome.CONFIRMED: "confirm", Outcome.REVERTED: "revert", Outcome.CANCELLED: "cancel"}


def _accepted(cloud: Cloud, migration: Migration, staying: Staying, verdict: Outcome | None, *, as_json: bool) -> Exit:
    if not as_json:
        what = f"{_ASKED[verdict]} of " if verdict else ""
        click.echo(f"accepted: {what}migration {migration.id} of {migration.name}")
    if staying.wanted:
        return stay(cloud, migration, staying, as_json=as_json, wanted=verdict)
    if as_json:
        print_json({"migration": plain(migration)})
    else:
        click.echo(f"follow it with `whimbrel watch {migration.id}`")
    return Exit.OK
