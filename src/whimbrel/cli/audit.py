"""Compare what is written down with what the hosts have, and mend what is safe to mend."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click
from rich.text import Text

from whimbrel.cli.cloud import Cloud
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import talks_to_cloud
from whimbrel.cli.output import console, print_json


@talks_to_cloud()
@click.option("--repair", is_flag=True, help="Mend what is provably safe to mend.")
@click.option("--host", help="Tell (and mend) only what is on this host.")
def audit(cloud: Cloud, repair: bool, host: str | None, as_json: bool) -> Exit:
    """Compare what is written down with what the hosts have (administrators).

    Asks every host for its directories, guests, processes and ledger, and tells each difference with its remedy. What
    is found is looked at a second time, some seconds later, so that nothing that merely changes counts as drift.
    """
    query = f"?host={quote(host)}" if host else ""
    found = cloud.post("whimbrel", f"/audit{query}", {"repair": repair})["audit"]
    if as_json:
        print_json({"audit": found})
    else:
        _tell(found)
    return Exit.DRIFT if found["drift"] else Exit.OK


def _tell(found: dict[str, Any]) -> None:
    for finding in found["findings"]:
        _tell_one(finding)
    looked = f"{len(found['hosts'])} hosts looked at in {found['seconds']:.1f} s"
    mended = sum(one["repaired"] for one in found["findings"])
    mendable = sum(one["repairable"] and not one["repaired"] for one in found["findings"])
    counted = "1 difference" if found["drift"] == 1 else f"{found['drift']} differences"
    parts = [counted if found["drift"] else "no drift", looked]
    parts += [f"{mended} mended"] if mended else []
    parts += [f"{mendable} can be mended with --repair"] if mendable else []
    click.echo(", ".join(parts) + ".")


def _tell_one(finding: dict[str, Any]) -> None:
    """Print a line that says what it is and where, then what was seen, and what to do."""
    if finding["repaired"]:
        sign, color = "✓", "green"
    else:
        sign, color = ("✗", "red") if finding["drift"] else ("·", "dim")
    where = " ".join(filter(None, [finding["host"], finding["server_name"], finding["server_id"]]))
    console().print(Text.assemble((f"{sign} {finding['kind']}", color), ("  " + _visible(where), "bold")))
    remedy = "Mending it is ordered." if finding["repaired"] else finding["remedy"]
    # Not wrapped, so that a command in it can be copied whole.
    console().print(Text(f"    {_visible(finding['detail'])}"), soft_wrap=True)
    console().print(Text(f"    → {remedy}", "dim"), soft_wrap=True)


def _visible(text: str) -> str:
    """Return what hosts have said without what would command the terminal: file names may hold anything."""
    return "".join(character if character.isprintable() else "�" for character in text)
