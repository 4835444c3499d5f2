"""What an operator needs to let a new host in: the broker user of its agent, and the key that it shall obey."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from whimbrel.bus import queues
from whimbrel.bus.signing import Signer
from whimbrel.domain.errors import Invalid
from whimbrel.ops import ids, settings

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")


@click.group()
def host() -> None:
    """Let a host in."""


@host.command("broker-user")
@click.argument("name")
@click.option("--vhost", default="/", show_default=True, help="The broker's virtual host.")
def broker_user(name: str, vhost: str) -> None:
    """Print the commands that make the broker user of host NAME, with a new password, and its line for agent.toml.

    They are for a shell on a machine of the RabbitMQ cluster: `whimbrel host broker-user h1 | ssh broker sudo sh`.
    Nothing is changed or kept here.
    """
    if not HOST_NAME.fullmatch(name):
        raise Invalid(f"{name!r} is no name of a host: letters, digits, dots and hyphens, as in agent.host.")
    user, password = queues.agent(name), ids.new_secret(24)
    may = queues.permissions(name)
    rights = shlex.join(["--vhost", vhost, user, may.configure, may.write, may.read])
    click.echo(f"printf %s {password} | rabbitmqctl add_user {user}")
    click.echo(f"rabbitmqctl set_permissions {rights}")
    click.echo(f"# In {name}'s agent.toml, which only root may read, under [broker]:")
    click.echo(f'# url = "amqps://{user}:{password}@BROKER:5671/"')


@host.command("controller-key")
@click.option(
    "--config",
    required=True,
    envvar="WHIMBREL_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The controller's settings file (TOML).",
)
def controller_key(config: Path) -> None:
    """Print the public key of this controller, for `controller_keys` in every host's agent.toml.

    The key itself is made now if there is none yet, as at the controller's first start.
    """
    click.echo(Signer.load(Path(settings.load(config).orders.key_file)).public_key)
