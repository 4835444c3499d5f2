"""What an operator needs to let a new host in: its broker user, the keys that it shall obey, and keys of its own."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click

from whimbrel.bus import queues
from whimbrel.bus.signing import Signer
from whimbrel.domain.errors import Invalid
from whimbrel.identity import enrolment
from whimbrel.identity.authority import SshAuthority
from whimbrel.ops import ids, settings

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")

CONFIG = click.option(
    "--config",
    required=True,
    envvar="WHIMBREL_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings file (TOML): of the agent for `enroll`, of the controller otherwise.",
)


@click.group()
def host() -> None:
    """Let a host in, and change its keys."""


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


@host.command("enroll")
@CONFIG
def enroll(config: Path) -> None:
    """Give this host new keys for its channels, and an sshd for them; run it again to change the keys.

    It writes `agent.channel_dir`. The agent tells the conductor by itself; the old keys are worth nothing a few
    minutes later.
    """
    agent = settings.load(config).agent
    if agent is None:
        raise Invalid(f"{config} has no [agent] table; enroll a host with the settings of its agent.")
    place = Path(agent.channel_dir)
    receiver = [sys.executable, "-I", "-m", "whimbrel.agent.disks.receive", "--config", str(config.absolute())]
    made = enrolment.Enrolment(
        agent.host, agent.address, agent.channel_port, agent.channel_authorities, receiver, place
    )
    enrolment.enroll(place, made)
    click.echo(f"{agent.host} is enrolled; its keys are in {place}. Now let sshd read them:")
    click.echo(f"  systemctl enable {place}/{enrolment.UNIT} && systemctl restart {enrolment.UNIT}")


@host.command("authority")
@CONFIG
def authority(config: Path) -> None:
    """Print the public key that signs passes here, for `channel_authorities` in every host's agent.toml.

    The key itself is made now if there is none yet, as at the controller's first start.
    """
    click.echo(SshAuthority.load(Path(settings.load(config).channels.authority_file)).public_key)


@host.command("controller-key")
@CONFIG
def controller_key(config: Path) -> None:
    """Print the public key of this controller, for `controller_keys` in every host's agent.toml.

    The key itself is made now if there is none yet, as at the controller's first start.
    """
    click.echo(Signer.load(Path(settings.load(config).orders.key_file)).public_key)
