"""The commands that move a server: migrate and resize begin, cancel turns back, confirm and revert close the window."""

from __future__ import annotations

import click

from whimbrel.cli.cloud import Cloud
from whimbrel.cli.documents import Migration, plain
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import Staying, may_stay, talks_to_cloud
from whimbrel.cli.output import print_json
from whimbrel.cli.watch import stay
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Outcome


@talks_to_cloud()
@click.argument("server")
@click.option("--host", help="The target. Without it the scheduler chooses, and has alternates.")
@click.option("--live", is_flag=True, help="Move the guest while it runs; it is not asked to shut down.")
@may_stay
def migrate(cloud: Cloud, server: str, host: str | None, live: bool, staying: Staying, as_json: bool) -> Exit:
    """Move SERVER (a name or an id) to another host.

    The guest is shut down, its disks are copied and verified, and it is started at the target. Then it waits in
    VERIFY_RESIZE, with the source's copy kept, until `whimbrel confirm` or `whimbrel revert`. With --live its memory
    crosses too, it runs on at the target, and there is nothing to confirm.
    """
    found = cloud.server(server)
    if live:
        cloud.act(found["id"], {"os-migrateLive": {"host": host, "block_migration": "auto"}})
    else:
        cloud.act(found["id"], {"migrate": {"host": host} if host else None})
    return begun(cloud, found, staying, as_json=as_json)


@talks_to_cloud()
@click.argument("server")
@click.argument("flavor")
@may_stay
def resize(cloud: Cloud, server: str, flavor: str, staying: Staying, as_json: bool) -> Exit:
    """Give SERVER another FLAVOR (each a name or an id); it moves as in `whimbrel migrate`."""
    found = cloud.server(server)
    cloud.act(found["id"], {"resize": {"flavorRef": cloud.flavor(flavor)["id"]}})
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
