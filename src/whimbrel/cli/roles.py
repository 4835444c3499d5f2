"""The commands that run Whimbrel itself: one for each role, and the database's upgrade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from whimbrel import roles
from whimbrel.domain.errors import SettingsError
from whimbrel.ops import settings


def _with_config(command: Any) -> Any:
    return click.option(
        "--config",
        required=True,
        envvar="WHIMBREL_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="The settings file (TOML).",
    )(command)


def _role(name: str) -> click.Command:
    def run(config: Path) -> None:
        roles.run(name, settings.load(config))

    summary = (roles.ROLES[name].__doc__ or "").partition("\n")[0]
    text = f"{summary}\n\nIt ends in good order on SIGTERM, with exit code 0; what it was doing is written down."
    return click.command(name, help=text)(_with_config(run))


api = _role("api")
scheduler = _role("scheduler")
conductor = _role("conductor")
agent = _role("agent")
controller = _role("controller")


@click.command()
@_with_config
def keeper(config: Path) -> None:
    """Keep this host's lease: end its guests when it has run out, whatever the agent and the network do.

    It reads the [agent] table. An agent with `lease = true` asks for leases only while a keeper is here.
    """
    roles.keep(settings.load(config))


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
@_with_config
def upgrade(config: Path) -> None:
    """Bring the database to this release's schema, from whatever version it is at; it may be empty."""
    from whimbrel.store import schema
    from whimbrel.store.engine import Store

    conf = settings.load(config)
    if conf.database is None:
        raise SettingsError(f"{config} names no database; add a [database] table with its `url`.")
    store = Store(conf.database.url)
    try:
        click.echo(f"The database is at schema {schema.upgrade(store)}.")
    finally:
        store.close()
