"""Heartbeats: which hosts there are, what boot they are in, and what their guests do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import structlog
from sqlalchemy import Connection, Row, select, update

from whimbrel.conductor import restore
from whimbrel.conductor.drive import Effects
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Kind
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.migration import protocols
from whimbrel.migration.presence import Heartbeat, Lease, Welcome
from whimbrel.ops import clock, ids, settings
from whimbrel.store import fencing, migrations, servers_core
from whimbrel.store.tables import hosts, servers
from whimbrel.store.tables import migrations as migrations_table

_log = structlog.get_logger()

MEASURED = (
    "address", "boot", "ledger", "protocols", "vcpus", "ram_mb", "disk_gb", "reserved_vcpus", "reserved_ram_mb",
    "reserved_disk_gb", "cpu_ratio", "ram_ratio", "disk_ratio", "architecture", "hypervisor", "hypervisor_version",
    "root_disk", "free_disk_gb", "uptime", "lease_kept", "composed", "uefi", "tpm",
)  # fmt: skip
"""What a heartbeat says of the host itself; the columns have the same names."""


def hear(tx: Connection, beat: Heartbeat, conf: settings.Conductor) -> Effects:
    """Write a heartbeat down and answer what it asks; after a reboot, start what ran before, under a new order."""
    known = tx.execute(select(hosts).where(hosts.c.name == beat.host)).one_or_none()
    values: dict[str, Any] = {name: getattr(beat, name) for name in MEASURED} | {"heard_at": clock.now()}
    values["channel"] = asdict(beat.channel) if beat.channel else None
    if known is None:
        tx.execute(
            hosts.insert().values(
                name=beat.host,
                service_uuid=ids.new_uuid(),
                hypervisor_uuid=ids.new_uuid(),
                created_at=clock.now(),
                **values,
            )
        )
        _log.info("host enrolled", on=beat.host, address=beat.address)
        return _answer(tx, beat, conf, new_boot=True)
    if known.boot == beat.boot and beat.composed < known.composed:
        return Effects()  # it was overtaken on its way, and says of the host what is no longer so
    if known.ledger != beat.ledger and _has_servers(tx, beat.host):
        # Its promises are lost, so nothing is sent there until somebody has looked.
        reason = "The agent's ledger is a new one; check the guests on this host, then enable it."
        values |= {"enabled": False, "disabled_reason": reason}
        _log.error("host has lost its ledger", on=beat.host)
    if known.fenced_at is not None:
        _log.warning("a host that was proved to be off speaks", on=beat.host, boot=beat.boot, proved=known.fenced_boot)
        fencing.withdraw(tx, beat.host)
    tx.execute(update(hosts).where(hosts.c.name == beat.host).values(**values))
    effects = _answer(tx, beat, conf, new_boot=known.boot != beat.boot)
    rows = _servers_at(tx, beat.host)
    reported = {guest.server: guest for guest in beat.guests}
    left_alone = restore.weigh(tx, beat, rows)
    for row in rows:
        guest = reported.get(row.id)
        if row.id in left_alone or row.busy or guest is None or guest.number < row.host_number:
            continue  # it was composed before the newest order, or cannot be dated: the next one knows better
        state = guest.power_state
        if state == PowerState.UNKNOWN or state == row.power_state:
            continue
        ran = guest.interrupted and row.power_state == PowerState.RUNNING
        if ran and conf.start_guests_after_boot and not row.in_window:
            effects.merge(_start_again(tx, row))
        else:
            servers_core.observe_power(tx, row.id, PowerState(state), after=row.host_number)
    return effects


def _answer(tx: Connection, beat: Heartbeat, conf: settings.Conductor, *, new_boot: bool) -> Effects:
    """Admit an agent that asks, and renew a lease; both are known to the database before they are sent."""
    effects = Effects()
    lease = None
    if beat.lease_asked is not None:
        lease = Lease(beat.host, beat.admission, beat.lease_asked, conf.lease_seconds)
        fencing.note_lease(tx, beat.host, lease.seconds, new_boot=new_boot)
    if not beat.admitted:
        message: Welcome | Lease | None = Welcome(beat.host, beat.admission, fencing.standings(tx, beat.host), lease)
    else:
        message = lease
    if message is not None:
        effects.passing.append((f"agent.{beat.host}", message))
    return effects


def _servers_at(tx: Connection, host: str) -> list[Row[Any]]:
    """Return the servers that belong to this host, with whether a step may be at work on each."""
    open_one = migrations_table
    return list(
        tx.execute(
            select(
                servers.c.id,
                servers.c.host_number,
                servers.c.epoch,
                servers.c.order_number,
                servers.c.doubted_at,
                servers.c.fault,
                servers.c.power_state,
                servers.c.project_id,
                servers.c.user_id,
                (open_one.c.id.is_not(None) & open_one.c.window_open.is_(False)).label("busy"),
                open_one.c.id.is_not(None).label("in_window"),
                open_one.c.id.label("migration_id"),
            )
            .select_from(servers.outerjoin(open_one, (open_one.c.server_id == servers.c.id) & open_one.c.open))
            .where(servers.c.host == host, servers.c.deleted_at.is_(None))
            .order_by(servers.c.id)  # another conductor hears the same, and locks the same rows
        )
    )


def _start_again(tx: Connection, row: Row[Any]) -> Effects:
    """The host was rebooted and the guest ran before: the power cut stopped it, so it is started by a new order."""
    servers_core.set_values(tx, row.id, power_state=PowerState.STOPPED)
    try:
        begun = migrations.begin(
            tx,
            row.id,
            Kind.POWER,
            protocols.POWER,
            request_id=ids.new_request_id(),
            user_id=row.user_id,
            project_id=row.project_id,
            action=PowerAction.START,
            was_running=True,
        )
    except Conflict:
        return Effects()  # another conductor, or the user, has begun something with it since we looked
    _log.info("starting a guest again after its host's reboot", server=row.id, migration=begun.migration_id)
    return Effects(outbox=begun.outbox)


def _has_servers(tx: Connection, host: str) -> bool:
    query = select(servers.c.id).where(servers.c.host == host, servers.c.deleted_at.is_(None)).limit(1)
    return tx.execute(query).first() is not None
