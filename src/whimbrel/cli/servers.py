"""List servers, with what an operator wants to know of each: where it is and what it is doing."""

from __future__ import annotations

from typing import Any

import click

from whimbrel.cli.cloud import Cloud
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import talks_to_cloud
from whimbrel.cli.output import listing, print_json


@talks_to_cloud()
@click.option("--all-projects", is_flag=True, help="Those of every project (administrators).")
@click.option("--host", help="Only those on this host (administrators).")
def servers(cloud: Cloud, all_projects: bool, host: str | None, as_json: bool) -> Exit:
    """List servers."""
    query: dict[str, str | int] = {"all_tenants": 1} if all_projects or host else {}
    if host:
        query["host"] = host
    found = cloud.get("compute", "/servers/detail", **query)
    if as_json:
        print_json(found)
        return Exit.OK
    listing(
        ["ID", "Name", "Status", "Doing", "Host", "Addresses", "Flavor"],
        [_row(server) for server in found["servers"]],
        nothing="There are no servers here; an administrator sees those of all projects with --all-projects.",
    )
    return Exit.OK


def _row(server: dict[str, Any]) -> list[str]:
    addresses = [one["addr"] for network in server.get("addresses", {}).values() for one in network]
    flavor = server.get("flavor", {})
    return [
        server["id"],
        server["name"],
        server["status"],
        server.get("OS-EXT-STS:task_state") or "",
        server.get("OS-EXT-SRV-ATTR:host") or "",
        ", ".join(addresses),
        flavor.get("original_name") or flavor.get("id", ""),
    ]
