"""The commands that run Whimbrel itself: one for each role, and the database's upgrade."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whimbrel import roles
from whimbrel.domain.errors import SettingsError
from whimbrel.ops import settings

if TYPE_CHECKING:
    from whimbrel.store.engine import Store


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
        roles.run(name, config)

    summary = (roles.ROLES[name].__doc__ or "").partition("\n")[0]
    text = f"{summary}\n\nIt ends in good order on SIGTERM, with exit code 0; what it was doing is written down."
    if name == "agent":
        keys = " and ".join(f"agent.{key}" for key in settings.RENEWED)
        text += (
            f"\n\nOn SIGHUP it reads {keys} again, also for the copies that run; all else counts from the next start."
        )
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

    with _store(config) as store:
        click.echo(f"The database is at schema {schema.upgrade(store)}.")


@db.command()
@_with_config
def restored(config: Path) -> None:
    """Say that the database was put back to an older state: run this after a restore, before any conductor.

    Nothing is ordered for a server then until every host has been heard (or was forced down) and has told which
    servers it runs.
    """
    from whimbrel.store import doubts

    with _store(config) as store:
        count = store.write_now(doubts.doubt_everything)
    click.echo(f"{count} servers are left alone until every host has been heard; start the conductors now.")


@contextlib.contextmanager
def _store(config: Path) -> Iterator[Store]:
    from whimbrel.store.engine import Store

    conf = settings.load(config)
    if conf.database is None:
        raise SettingsError(f"{config} names no database; add a [database] table with its `url`.")
    store = Store(conf.database.url)
    try:
        yield store
    finally:
        store.close()
