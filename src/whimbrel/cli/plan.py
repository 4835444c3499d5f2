"""What a move would be, beforehand: `--plan` of `whimbrel migrate` and `whimbrel resize`. Nothing is begun."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from whimbrel.cli.cloud import Cloud
from whimbrel.cli.documents import Refusal, Step, Target
from whimbrel.cli.errors import Exit
from whimbrel.cli.output import HIDDEN, console, mebibytes, print_json, refusal_lines, step_rows
from whimbrel.domain.errors import Unavailable

WAYS = {
    "live": "live: the guest runs on, and its memory crosses after its disks",
    "suspended": "suspended: it is held while its memory crosses after its disks, and goes on at the target",
    "warm": "warm: its disks are copied while it runs; it is off for the last of them",
    "cold": "cold: its disks are copied while it is off",
    "none": "it cannot be moved so",
}


class Plan(msgspec.Struct):
    """A plan as the API tells it."""

    way: str
    possible: bool
    allocated_bytes: int
    protocol: str
    reason: str | None = None
    source: str | None = None
    targets: list[Target] = []
    refusals: list[Refusal] = []
    steps: list[Step] = []


def tell(cloud: Cloud, server: dict[str, Any], action: dict[str, Any], *, as_json: bool) -> Exit:
    """Ask for the plan of an action and show it; the exit code says whether the action could be done."""
    document = cloud.post("whimbrel", f"/servers/{server['id']}/plan", action)
    try:
        plan = msgspec.convert(document["plan"], Plan)
    except (msgspec.ValidationError, KeyError) as error:
        raise Unavailable(f"The API's answer is not what this release expects: {error}.") from error
    if as_json:
        print_json(document)
    else:
        _draw(plan, server["name"])
    return Exit.OK if plan.possible else Exit.REFUSED


def _draw(plan: Plan, name: str) -> None:
    click.echo(f"{name}, {mebibytes(plan.allocated_bytes)} on {plan.source or HIDDEN}: {WAYS.get(plan.way, plan.way)}.")
    if plan.reason:
        click.echo(f"  {plan.reason}")
    hosts = ", then ".join(f"{target.host or HIDDEN} (weight {target.weight:g})" for target in plan.targets)
    click.echo(f"Targets: {hosts or 'none'}.")
    for line in refusal_lines(plan.refusals):
        click.echo(line)
    if plan.possible:
        click.echo(f"The steps of {plan.protocol}:")
        console().print(step_rows(plan.steps, why=True))
    click.echo("Nothing was begun." if plan.possible else "It would not be done.")
