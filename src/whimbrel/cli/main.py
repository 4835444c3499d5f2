"""The table of commands. Each is imported when it is called, so an agent loads no HTTP client and help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import click

from whimbrel.cli.errors import EXIT_CODES, Exit, tell
from whimbrel.domain.errors import WhimbrelError


@dataclass(frozen=True)
class Entry:
    """One command: where it is, and what it is for. `more` are commands that other modules add to a group."""

    module: str
    name: str
    summary: str
    more: tuple[tuple[str, str], ...] = ()

    def load(self) -> click.Command:
        """Import the command, and those that others add to it."""
        command = _find(self.module, self.name)
        if self.more:
            assert isinstance(command, click.Group)
            for module, name in self.more:
                command.add_command(_find(module, name))
        return command


MOVING = (
    Entry("migrate", "migrate", "Move a server to another host."),
    Entry("migrate", "resize", "Give a server another flavor, on another host."),
    Entry("migrate", "cancel", "Turn a migration back."),
    Entry("migrate", "hurry", "Let a migration wait no longer for little to be left."),
    Entry("migrate", "limit", "Bound how fast a migration copies."),
    Entry("migrate", "confirm", "Keep a moved server where it is now."),
    Entry("migrate", "revert", "Take a moved server back to where it was."),
)
RECOVERING = (
    Entry("recovery", "evacuate", "Make a server of a dead host anew, on another one."),
    Entry("recovery", "fence", "Say that a silent host is off."),
)
LOOKING = (
    Entry("show", "show", "Show a migration step by step, and why."),
    Entry("watch", "watch", "Follow a migration live."),
    Entry("show", "migrations", "List migrations."),
    Entry("servers", "servers", "List servers."),
    Entry("hosts", "hosts", "List hosts."),
    Entry("audit", "audit", "Compare what is written down with what the hosts have."),
)
RUNNING = (
    Entry("roles", "controller", "Run api, scheduler and conductor in one process."),
    Entry("roles", "api", "Run the HTTP API."),
    Entry("roles", "scheduler", "Run the scheduler."),
    Entry("roles", "conductor", "Run the conductor."),
    Entry("roles", "agent", "Run the agent of this host."),
    Entry("roles", "keeper", "Keep this host's lease, so that others may prove it is over."),
    Entry("roles", "db", "Look after the database."),
    Entry("bootstrap", "bootstrap", "Make the first users, projects and network."),
    Entry("host", "host", "Let a host in: its broker user, and the key that it obeys."),
)
TRYING = (Entry("lab", "lab", "A cloud of several hosts on this machine.", more=(("demo", "demo"),)),)
SECTIONS = {
    "Moving servers": MOVING,
    "When a host is down": RECOVERING,
    "Looking": LOOKING,
    "Running Whimbrel": RUNNING,
    "Trying it": TRYING,
}


class Commands(click.Group):
    """The group over the table; whatever is raised on purpose ends as a sentence and an exit code."""

    entries: ClassVar = {entry.name: entry for section in SECTIONS.values() for entry in section}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None when there is none."""
        entry = self.entries.get(cmd_name)
        return entry.load() if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help from the table, without importing any command."""
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(entry.name, entry.summary) for entry in entries])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; bytes that are no UTF-8 text are a usage error, because no name here holds them."""
        for word in args:
            if any("\ud800" <= character <= "\udfff" for character in word):
                raise click.UsageError(f"{word!r} is not UTF-8 text.", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except WhimbrelError as error:
            ctx.exit(tell(error))
        except KeyboardInterrupt:
            ctx.exit(Exit.INTERRUPTED)


@click.command(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="whimbrel", message="whimbrel %(version)s")
@click.option("--os-cloud", metavar="NAME", envvar="OS_CLOUD", help="The cloud of clouds.yaml to talk to.")
def cli(os_cloud: str | None) -> None:
    """Move virtual machines between hosts that share no storage.

    Clouds and users are found as the OpenStack clients find them: in clouds.yaml (./, ~/.config/openstack,
    /etc/openstack, or OS_CLIENT_CONFIG_FILE) with --os-cloud or OS_CLOUD, else in the OS_* variables.
    """


def main() -> None:
    """Run the command line."""
    cli(prog_name="whimbrel")


def _find(module: str, name: str) -> click.Command:
    command = getattr(import_module(f"whimbrel.cli.{module}"), name)
    assert isinstance(command, click.Command)
    return command
