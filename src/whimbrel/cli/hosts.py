"""List hosts, with the room that is left on each."""

from __future__ import annotations

from typing import Any

from whimbrel.cli.cloud import Cloud
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import talks_to_cloud
from whimbrel.cli.output import listing, print_json


@talks_to_cloud()
def hosts(cloud: Cloud, as_json: bool) -> Exit:
    """List hosts (administrators): state, guests, and what is claimed of what may be."""
    found = cloud.get("whimbrel", "/hosts")
    if as_json:
        print_json(found)
        return Exit.OK
    listing(
        ["Host", "Address", "State", "Guests", "CPUs", "Memory MiB", "Disk GiB", "Heard of", "Remark"],
        [_row(host) for host in found["hosts"]],
        nothing="No host has reported; start `whimbrel agent` on one.",
    )
    return Exit.OK


def _row(host: dict[str, Any]) -> list[str]:
    room = [f"{host['claimed'][part]} of {host['limit'][part]}" for part in ("vcpus", "ram_mb", "disk_gb")]
    state = str(host["state"]) if host["enabled"] else f"{host['state']}, disabled"
    return [
        host["name"],
        host["address"],
        state,
        str(host["guests"]),
        *room,
        host["heard_at"],
        host["disabled_reason"] or "",
    ]
