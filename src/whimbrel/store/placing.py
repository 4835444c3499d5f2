"""What is asked before a server moves: a scheduler, where it could go, and its own host, how it would go.

Both questions are about a migration's row, so a plan asks them of one that is never committed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.domain.claim import resources_of
from whimbrel.domain.migration import Kind
from whimbrel.domain.server import Manner
from whimbrel.domain.tpm import tpm_of
from whimbrel.migration.messages import Foresee, SelectTargets
from whimbrel.migration.protocols import Protocol
from whimbrel.store import servers_core


def targets(tx: Connection, migration: Row[Any], table: Protocol, *, same_host: bool) -> SelectTargets:
    """Return the question for hosts; `same_host` is whether a resize may stay where it is."""
    server = servers_core.load(tx, migration.server_id)
    properties = server.image_properties
    flavor = servers_core.flavor_of(migration.new_flavor)
    need = resources_of(flavor)
    return SelectTargets(
        vcpus=need.vcpus,
        ram_mb=need.ram_mb,
        disk_gb=need.disk_gb,
        architecture=properties.get("hw_architecture") or properties.get("architecture") or "",
        exclude=tuple(migration.tried),
        source=migration.source,
        same_host_allowed=migration.kind == Kind.RESIZE and same_host,
        forced_host=migration.forced_host,
        protocol=table.name,
        version=table.version,
        uefi=servers_core.is_uefi(server),
        tpm=tpm_of(properties, flavor.extra_specs) is not None,
    )


def manner(migration: Row[Any]) -> Manner | None:
    """Return in which manner the server is to be moved; None where its host's settings decide."""
    found = migration.segments[0].get("manner")
    return None if found is None else Manner(found)


def way(tx: Connection, migration: Row[Any]) -> Foresee:
    """Return the question to the server's own host."""
    server = servers_core.load(tx, migration.server_id)
    guest = servers_core.guest_of(tx, server, migration.old_flavor, server.root_disk or "qcow2")
    return Foresee(
        server=server.id,
        protocol=migration.segments[0]["protocol"],
        manner=manner(migration),
        was_running=migration.was_running,
        disks=tuple(guest.disks),
    )
