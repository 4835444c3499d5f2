"""The options that commands share: which cloud, for whom the output is, and whether to stay until the end."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from whimbrel.cli import login
from whimbrel.cli.cloud import Cloud
from whimbrel.cli.errors import EXIT_CODES, Exit

DAY = 86400.0
"""A copy's own limit, so the default of --timeout."""


@dataclass(frozen=True)
class Staying:
    """How to stay with a migration, for `timeout` seconds at most: `watch` shows each step, `wait` only the end."""

    watch: bool
    wait: bool
    timeout: float

    @property
    def wanted(self) -> bool:
        """Whether to stay at all."""
        return self.watch or self.wait


def talks_to_cloud(name: str | None = None) -> Callable[[Callable[..., Exit]], click.Command]:
    """Make a command of a function of (cloud, as_json, ...) that returns the exit code."""

    def decorate(function: Callable[..., Exit]) -> click.Command:
        @functools.wraps(function)
        def run(os_cloud: str | None, **arguments: Any) -> None:
            context = click.get_current_context()
            chosen = os_cloud or context.find_root().params.get("os_cloud")
            cloud = context.with_resource(Cloud(login.find(chosen, os.environ)))
            context.exit(function(cloud, **arguments))

        command = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(run)
        command = click.option("--os-cloud", metavar="NAME", help="The cloud of clouds.yaml to talk to.")(command)
        return click.command(name, epilog=EXIT_CODES)(command)

    return decorate


def may_stay(function: Callable[..., Exit]) -> Callable[..., Exit]:
    """Add --watch, --wait and --timeout to a command; it gets them as `staying`."""

    @functools.wraps(function)
    def run(*given: Any, watch: bool, wait: bool, timeout: float, **arguments: Any) -> Exit:
        return function(*given, staying=Staying(watch, wait, timeout), **arguments)

    stays = with_timeout(run)
    stays = click.option("--wait", is_flag=True, help="Stay until it has ended, and say how.")(stays)
    return click.option("--watch", is_flag=True, help="Stay until it has ended, and show each step.")(stays)


def with_timeout(function: Callable[..., Exit]) -> Callable[..., Exit]:
    """Add --timeout to a command."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=DAY,
        metavar="SECONDS",
        help="How long to stay at most (the migration goes on without).  [default: a day]",
    )(function)
