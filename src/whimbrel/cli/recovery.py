"""The commands for a host that is down: prove that it is, and make its servers anew elsewhere."""

from __future__ import annotations

import click

from whimbrel.cli.cloud import Cloud
from whimbrel.cli.errors import Exit
from whimbrel.cli.migrate import begun
from whimbrel.cli.options import Staying, may_stay, talks_to_cloud
from whimbrel.cli.output import print_json
from whimbrel.domain.errors import NotFound

YES = click.option("--yes", is_flag=True, help="Do not ask.")


@talks_to_cloud()
@click.argument("server")
@click.option("--host", help="The target. Without it the scheduler chooses, and has alternates.")
@YES
@may_stay
def evacuate(cloud: Cloud, server: str, host: str | None, yes: bool, staying: Staying, as_json: bool) -> Exit:
    """Make SERVER (a name or an id), whose host is down, anew from its image on another host.

    THE DATA ON THE OLD HOST'S DISKS IS NOT THERE AFTERWARDS: hosts share no storage. The server keeps its id, addresses
    and flavor. Nothing is started before it is proved that the old host cannot run it (see `whimbrel fence`); when
    that host comes back, it removes its stale copy.
    """
    found = cloud.server(server)
    old = found.get("OS-EXT-SRV-ATTR:host") or "its host"
    warning = (
        f"{found['name']} is made anew from its image. What was written to its disks on {old} will be lost: "
        f"{old} removes them when it comes back."
    )
    click.echo(warning, err=True)
    if not yes:
        click.confirm("Go on?", abort=True, err=True)
    cloud.act(found["id"], {"evacuate": {"host": host} if host else {}})
    return begun(cloud, found, staying, as_json=as_json)


@talks_to_cloud()
@click.argument("host")
@click.option("--boot", help="The boot that you looked at, as `whimbrel hosts --json` shows it; the newest without it.")
@click.option("--reason", help="What you saw; it stands in the journal of what goes on because of it.")
@YES
def fence(cloud: Cloud, host: str, boot: str | None, reason: str | None, yes: bool, as_json: bool) -> Exit:
    """Say that HOST is off, so that what waits for its word may go on without it.

    Only say so when you have seen it: its guests are started elsewhere. What a guest may have written there since it
    was handed over is given up. The word is about one boot, and void as soon as the host is heard again.
    """
    rows = cloud.get("whimbrel", "/hosts")["hosts"]
    row = next((row for row in rows if row["name"] == host), None)
    if row is None:
        raise NotFound(f"There is no host {host}; `whimbrel hosts` lists them.")
    if not yes:
        click.echo(f"{host} was last heard at {row['heard_at']}, in boot {row['boot']}.", err=True)
        click.confirm(f"Is {host} off, and does it stay off until it boots anew?", abort=True, err=True)
    body = {"boot": boot or row["boot"], **({"reason": reason} if reason else {})}
    told = cloud.post("whimbrel", f"/hosts/{host}/fence", body)
    if as_json:
        print_json(told)
    else:
        click.echo(f"{host} is proved to be off; {told['fence']['wakes']} migrations that waited for it go on.")
    return Exit.OK
