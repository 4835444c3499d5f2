"""Migrations in OpenStack's words, for `os-migrations` and for the live ones in progress of a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whimbrel.api.call import Version
from whimbrel.api.views.state import migration_status
from whimbrel.migration.messages import Phase, Progress
from whimbrel.ops import clock
from whimbrel.store.moves import Move


def listed(move: Move, version: Version, *, hosts: bool, addresses: Mapping[str, str]) -> dict[str, Any]:
    """Return a migration as the list shows it; `hosts` is whether the reader may see their names."""
    row = move.row
    view = {
        "id": row.id,
        "instance_uuid": row.server_id,
        "status": migration_status(row, move.marks),
        "source_compute": row.source if hosts else None,
        "source_node": row.source if hosts else None,
        "dest_compute": row.target if hosts else None,
        "dest_node": row.target if hosts else None,
        "dest_host": addresses.get(row.target) if hosts else None,
        "old_instance_type_id": row.old_flavor.get("number"),
        "new_instance_type_id": row.new_flavor.get("number"),
        "created_at": clock.iso_micro(row.created_at),
        "updated_at": clock.iso_micro(row.updated_at),
    }
    if version >= (2, 23):
        view["migration_type"] = row.kind
    if version >= (2, 59):
        view["uuid"] = row.uuid
    if version >= (2, 80):
        view |= {"user_id": row.user_id, "project_id": row.project_id}
    return view


def in_progress(
    move: Move, word: Progress | None, version: Version, *, hosts: bool, addresses: Mapping[str, str]
) -> dict[str, Any]:
    """Return a live migration in progress; bytes are those of the round that `word` tells of, of memory or of disks."""
    row = move.row
    about = "memory" if word is not None and word.phase is Phase.MEMORY else "disk"
    view: dict[str, Any] = {
        "id": row.id,
        "server_uuid": row.server_id,
        "status": migration_status(row, move.marks),
        "source_compute": row.source if hosts else None,
        "source_node": row.source if hosts else None,
        "dest_compute": row.target if hosts else None,
        "dest_node": row.target if hosts else None,
        "dest_host": addresses.get(row.target) if hosts else None,
        "created_at": clock.iso_micro(row.created_at),
        "updated_at": clock.iso_micro(row.updated_at),
    }
    for kind in ("memory", "disk"):
        told = word if kind == about else None
        view[f"{kind}_total_bytes"] = told.total if told else None
        view[f"{kind}_processed_bytes"] = told.done if told else None
        view[f"{kind}_remaining_bytes"] = told.total - told.done if told else None
    if version >= (2, 59):
        view["uuid"] = row.uuid
    if version >= (2, 80):
        view |= {"user_id": row.user_id, "project_id": row.project_id}
    return view
