"""What an order carries: the whole work, so that an agent needs to know nothing but what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from whimbrel.domain.migration import Kind, Verb, Where
from whimbrel.domain.server import PowerAction
from whimbrel.migration.messages import Order, Place, Work
from whimbrel.migration.protocols import HostStep, Protocol
from whimbrel.store import journal, migrations, placing, servers_core
from whimbrel.store.tables import hosts

TicketUrl = Callable[[str], str]
"""Makes the address, with a short-lived ticket, at which a host may fetch an image of this id."""


_PLACES = select(hosts.c.name, hosts.c.address).where(
    (hosts.c.name == bindparam("a")) | (hosts.c.name == bindparam("b"))
)
_HEARD_AT = select(hosts.c.heard_at).where(hosts.c.name == bindparam("name"))


def host_for(migration: Row[Any], where: Where) -> str | None:
    """Return the host that does steps of this place; None when this migration has no such host."""
    host: str | None = migration.source if where is Where.SOURCE else migration.target
    return host


QUIET = 20.0
"""A host whose last heartbeat is older than this, in seconds, has been silent since then, order or no order."""


def last_word(tx: Connection, host: str, now: float) -> float:
    """Return since when this host's silence counts: now, or its last heartbeat if it has been quiet for a while."""
    heard = tx.execute(_HEARD_AT, {"name": host}).scalar_one_or_none()
    return heard if heard is not None and now - heard > QUIET else now


def build(
    tx: Connection,
    migration: Row[Any],
    table: Protocol,
    step: HostStep,
    verb: Verb,
    *,
    grace: int,
    ticket_url: TicketUrl,
) -> Order:
    """Draw the numbers and write the order for one step; an undo that lets another host run gets a new epoch."""
    host = host_for(migration, step.where)
    assert host is not None
    server = servers_core.next_number(tx, migration.server_id, host, raise_epoch=verb is Verb.UNDO and step.raises)
    return Order(
        host=host,
        server=migration.server_id,
        migration=migration.id,
        segment=migration.segment,
        attempt=migrations.attempt_label(migration),
        protocol=table.name,
        version=table.version,
        step=step.name,
        verb=verb,
        epoch=server.epoch,
        number=server.order_number,
        limit=step.limit.of(grace),
        work=replace(_work(tx, migration, server, grace, ticket_url), was_running=_is_to_run(migration, step)),
        results=journal.results(tx, migration.id, migration.attempt),
        request_id=migration.segments[migration.segment]["request_id"],
    )


def _is_to_run(migration: Row[Any], step: HostStep) -> bool:
    """Return whether the guest is to run: as it did before, unless it was asked to stay stopped at the target."""
    stays_stopped = migration.kind == Kind.EVACUATION and migration.action == PowerAction.STOP
    return bool(migration.was_running and not (stays_stopped and step.where is Where.TARGET))


def _work(tx: Connection, migration: Row[Any], server: Row[Any], grace: int, ticket_url: TicketUrl) -> Work:
    places = {row.name: row for row in tx.execute(_PLACES, {"a": migration.source, "b": migration.target})}
    root_disk = server.root_disk or "qcow2"
    image = servers_core.image_of(server.image)
    if image is not None:
        image = servers_core.image_of(server.image, ticket_url(image.id))
    guest = servers_core.guest_of(tx, server, migration.new_flavor, root_disk)
    same = migration.new_flavor == migration.old_flavor
    return Work(
        guest=guest,
        old=guest if same else servers_core.guest_of(tx, server, migration.old_flavor, root_disk),
        image=image,
        source=_place(places.get(migration.source)),
        target=_place(places.get(migration.target)),
        was_running=migration.was_running,
        grace=grace,
        action=PowerAction(migration.action) if migration.action else None,
        manner=placing.manner(migration),
    )


def _place(row: Any | None) -> Place | None:
    return None if row is None else Place(row.name, row.address)
