"""Migrations in OpenStack's words, for `os-migrations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whimbrel.api.call import Version
from whimbrel.api.views.state import migration_status
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
