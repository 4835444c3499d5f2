"""`whimbrel lab`: a cloud of several hosts on this machine, to try Whimbrel and to break it on purpose."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from whimbrel.domain.errors import NotFound
from whimbrel.lab import Lab
from whimbrel.lab.logs import Wanted, entries
from whimbrel.lab.processes import ENVIRONMENT, enter

DEFAULT_DIR = ".lab"


def _in_dir(command: Any) -> Any:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_DIR,
        envvar="WHIMBREL_LAB",
        show_default=True,
        show_envvar=True,
        help="Where the lab lives.",
    )(command)


@click.group()
def lab() -> None:
    """Make hosts on this machine, move servers between them, and break things on purpose."""


@lab.command()
@_in_dir
@click.option("--hosts", default=2, show_default=True, help="How many hosts.")
@click.option("--name", help="The lab's name, in network namespaces.  [default: labK, K from its subnet]")
@click.option("--split", is_flag=True, help="Run api, scheduler and conductor as processes of their own.")
@click.option("--bare", is_flag=True, help="Only hosts and broker: no control plane, no agents.")
def up(directory: Path, hosts: int, name: str | None, split: bool, bare: bool) -> None:
    """Make a lab, or say that it is up."""
    try:
        running = Lab.open(directory).facts.ready
    except NotFound:
        running = False
    made = Lab.up(directory, hosts=hosts, name=name, split=split, services=not bare)
    click.echo(f"The lab {made.facts.name} {'is up already' if running else 'is up'}: {made.dir}")
    if made.facts.services:
        click.echo(f"API  {made.api_url}")
        click.echo(f"Use  export OS_CLIENT_CONFIG_FILE={made.clouds_yaml} OS_CLOUD=admin")


@lab.command()
@_in_dir
def down(directory: Path) -> None:
    """End the lab and remove all of it but its logs, also after an `up` that was killed."""
    try:
        found = Lab.open(directory)
    except NotFound as error:
        click.echo(str(error))
        return
    found.down()
    click.echo(f"The lab {found.facts.name} is down; its logs stay in {found.dir / 'logs'}.")


@lab.command()
@_in_dir
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(directory: Path, as_json: bool) -> None:
    """Show where things are and what runs."""
    found = Lab.open(directory)
    facts = found.status()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        if key != "hosts" and value:
            table.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
    for host in facts["hosts"]:
        table.add_row(f"host {host['name']}", f"{host['address']}  {'up' if host['pid'] else 'DOWN'}")
    for role, pid in found.running().items():
        table.add_row(role, f"pid {pid}" if pid else "not running")
    Console().print(table)


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@_in_dir
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(directory: Path, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST, as in: whimbrel lab exec h1 -- virsh list --all"""
    inside = [*enter(Lab.open(directory).host(host).up()), "env", "--chdir=/", *command]
    os.execvpe(inside[0], inside, {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")})


@lab.command()
@_in_dir
@click.argument("host")
def crash(directory: Path, host: str) -> None:
    """Cut HOST's power: everything on it dies at once."""
    Lab.open(directory).host(host).crash()
    click.echo(f"{host} is down.")


@lab.command()
@_in_dir
@click.argument("host")
def boot(directory: Path, host: str) -> None:
    """Start HOST again after a crash, with its disks, its domain definitions and an empty /run."""
    Lab.open(directory).host(host).boot()
    click.echo(f"{host} is up.")


@lab.command()
@_in_dir
@click.argument("host")
@click.argument("state", type=click.Choice(["up", "down"]))
def link(directory: Path, host: str, state: str) -> None:
    """Plug HOST's network cables in or pull them out."""
    Lab.open(directory).link(host, up=state == "up")
    click.echo(f"{host}'s link is {state}.")


@lab.command()
@_in_dir
@click.argument("host")
@click.argument("rate")
def limit(directory: Path, host: str, rate: str) -> None:
    """Limit HOST's link to RATE, as in 200mbit; `none` lifts the limit."""
    Lab.open(directory).limit(host, None if rate == "none" else rate)
    click.echo(f"{host}'s link has no limit." if rate == "none" else f"{host}'s link is limited to {rate}.")


@lab.command()
@_in_dir
@click.argument("host")
@click.argument("size")
def disk(directory: Path, host: str, size: str) -> None:
    """Give HOST an empty disk of SIZE MiB for its servers, to see it run full; `none` takes it off again."""
    if size != "none" and not size.isdigit():
        raise click.BadParameter("SIZE is a number of MiB or `none`.")
    Lab.open(directory).host(host).limit_disk(None if size == "none" else int(size))
    click.echo(f"{host} has its own disk." if size == "none" else f"{host} has a disk of {size} MiB.")


@lab.command()
@_in_dir
@click.argument("role")
@click.option("--server", help="With qemu@HOST: only the process of the server with this UUID.")
def kill(directory: Path, role: str, server: str | None) -> None:
    """Kill ROLE or ROLE@HOST at once: api, scheduler, conductor, controller, rabbitmq, agent, libvirtd, sshd, qemu."""
    name, host = _split(role)
    killed = Lab.open(directory).kill(name, host, server=server)
    click.echo(f"{role} is killed." if killed else f"{role} was not running.")


@lab.command()
@_in_dir
@click.argument("role")
def start(directory: Path, role: str) -> None:
    """Start ROLE or ROLE@HOST again."""
    name, host = _split(role)
    click.echo(f"{role} runs as pid {Lab.open(directory).start(name, host)}.")


@lab.command()
@_in_dir
@click.argument("role", required=False)
@click.option("--request", help="Only lines of this request id.")
@click.option("--migration", help="Only lines of this migration.")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines come.")
def logs(directory: Path, role: str | None, request: str | None, migration: str | None, follow: bool) -> None:
    """Show what all processes (or ROLE, or ROLE@HOST) logged, in the order of time."""
    dir = directory.absolute() / "logs"
    if not dir.is_dir():
        raise NotFound(f"There are no logs in {dir}; name the lab's --dir.")
    for entry in entries(dir, Wanted(role, request, migration), follow=follow):
        click.echo(entry.render())


def _split(role: str) -> tuple[str, str | None]:
    name, _, host = role.partition("@")
    return name, host or None
