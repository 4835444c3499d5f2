"""What is done when the hosts know more than the database: it was restored, or failed over to an older copy.

What must hold: nothing starts twice. A word of a host that goes beyond what this database has ever ordered proves that
the database is older than the truth; from then on the server is left alone, until every host has been heard, and
belongs then to the host that holds the newest grant. Nothing is ever deleted for it.

A host alone cannot take a server: its claim counts only when the host where the database places the server does not
contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Row, bindparam, select

from whimbrel.conductor.drive import Effects
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import StepReport, Wake
from whimbrel.migration.presence import GuestReport, Heartbeat
from whimbrel.ops import clock, settings
from whimbrel.store import doubts, fencing, outbox, servers_core
from whimbrel.store.tables import hosts, migrations, servers

_log = structlog.get_logger()

ABSENT_AFTER = 30.0
"""Seconds for which a host must have had nothing of a server that belongs to it before that is believed."""

Sightings = Mapping[str, Row[Any]]


def weigh(tx: Connection, beat: Heartbeat, rows: Sequence[Row[Any]]) -> set[str]:
    """Hold a heartbeat against the database; return the servers of which it says nothing that counts now.

    `rows` are the servers that belong to the host.
    """
    lines = {line.server: line for line in beat.guests}
    seen = doubts.sightings_about(tx, beat.host)
    mine = {each.server_id: each for each in seen if each.host == beat.host}
    rivals: dict[str, int] = {}
    for each in seen:
        if each.host != beat.host and each.present:
            rivals[each.server_id] = max(each.granted, rivals.get(each.server_id, 0))
    at_home = {row.id for row in rows}
    left_alone = {
        row.id for row in rows if _weigh_own(tx, beat.host, row, lines.get(row.id), mine, rivals.get(row.id, 0))
    }
    strangers = {server: line for server, line in lines.items() if server not in at_home}
    if strangers:
        _weigh_strangers(tx, beat.host, strangers, mine)
    for server_id in mine.keys() - lines.keys() - at_home:
        doubts.forget(tx, beat.host, server_id)
    return left_alone


def _weigh_own(tx: Connection, host: str, row: Row[Any], line: GuestReport | None, mine: Sightings, rival: int) -> bool:
    """Judge what a host says of a server that belongs to it; return whether the server is to be left alone."""
    news = line is not None and _is_news(row, line.epoch, line.number)
    if news and line is not None:
        _adopt(tx, row.id, host, line.epoch, line.number)
    contradicted = rival > (line.granted if line else 0) and (line is None or line.interrupted)
    absent = line is None and row.migration_id is None and not _is_lost(row)
    # What the host may not start by itself may be running elsewhere, by an order that this database has forgotten.
    forgotten = news and line is not None and (row.migration_id is not None or line.interrupted)
    if row.doubted_at is None and not forgotten and not contradicted:
        earlier = mine.get(row.id)
        if not absent:
            if earlier is not None:
                doubts.forget(tx, host, row.id)
            if line is not None and _is_lost(row):
                servers_core.set_values(tx, row.id, fault=None)
            return False
        if earlier is None or earlier.present or clock.now() - earlier.first_seen_at < ABSENT_AFTER:
            doubts.note(tx, host, row.id, None, earlier)
            return False
    if row.doubted_at is None:
        _log.error("a server is in doubt: this database is older than what hosts say", server=row.id, on=host)
        doubts.doubt(tx, row.id)
    if news:
        doubts.abandon(tx, row.id)
    doubts.note(tx, host, row.id, line, mine.get(row.id))
    return True


def _weigh_strangers(tx: Connection, host: str, lines: Mapping[str, GuestReport], mine: Sightings) -> None:
    """Judge what a host says of servers that do not belong to it: targets of moves, leftovers, or news."""
    m = migrations.c
    rows: list[Row[Any]] = list(
        tx.execute(
            select(
                *(servers.c[name] for name in ("id", "epoch", "order_number", "deleted_at", "doubted_at")),
                ((m.source == host) | (m.target == host)).label("takes_part"),
            )
            .select_from(servers.outerjoin(migrations, (m.server_id == servers.c.id) & m.open))
            .where(servers.c.id.in_(lines))
        )
    )
    known = {row.id: row for row in rows}
    for server_id, line in lines.items():
        row, earlier = known.get(server_id), mine.get(server_id)
        if row is None:
            if earlier is None:
                _log.error(
                    "a host has a server that this database does not know; it is left alone", server=server_id, on=host
                )
            doubts.note(tx, host, server_id, line, earlier)
        elif row.deleted_at is not None:
            continue  # what is left of it is a debt
        elif row.doubted_at is not None:
            if row.takes_part and _is_news(row, line.epoch, line.number):
                _adopt(tx, server_id, host, line.epoch, line.number)
                doubts.abandon(tx, server_id)
            doubts.note(tx, host, server_id, line, earlier)
        elif _is_news(row, line.epoch, line.number):
            if row.takes_part:
                _adopt(tx, server_id, host, line.epoch, line.number)
                doubts.doubt(tx, server_id)
                doubts.abandon(tx, server_id)
            elif earlier is None:
                _log.error(
                    "a host claims a server that is placed elsewhere", server=server_id, on=host, epoch=line.epoch
                )
            doubts.note(tx, host, server_id, line, earlier)
        elif earlier is not None:
            doubts.forget(tx, host, server_id)


def refuse_stale(tx: Connection, report: StepReport) -> bool:
    """Return whether a host has refused an order because of a newer one that this database knows nothing of."""
    epoch, number = int(report.facts.get("epoch", 0)), int(report.facts.get("number", 0))
    row = servers_core.load(tx, report.server)
    if not _is_news(row, epoch, number):
        return False
    _adopt(tx, report.server, report.host, epoch, number)
    doubts.doubt(tx, report.server)
    doubts.abandon(tx, report.server)
    return True


def settle(tx: Connection, conf: settings.Conductor) -> Effects:
    """End the doubts about which every host that can speak has been heard."""
    effects = Effects()
    now = clock.now()
    for row in doubts.doubted(tx):
        if row.doubted_at > now:  # the clock was set back: the census begins anew
            servers_core.set_values(tx, row.id, doubted_at=now)
            continue
        # A host that was enrolled after the backup is not known here, so all are given the time of a heartbeat.
        if now - row.doubted_at >= conf.census and not unheard(tx, row.doubted_at):
            _settle(tx, row, effects)
    return effects


_QUIET = select(hosts).where(hosts.c.heard_at <= bindparam("since"), hosts.c.forced_down.is_(False))


def unheard(tx: Connection, since: float) -> list[str]:
    """Return the hosts that have said nothing since then and could: neither forced down nor proved to be off."""
    quiet = tx.execute(_QUIET, {"since": since})
    return [row.name for row in quiet if fencing.of_row(row) is None]


def _settle(tx: Connection, server: Row[Any], effects: Effects) -> None:
    fresh = [each for each in doubts.sightings_of(tx, server.id) if each.seen_at > server.doubted_at]
    holders = sorted((each.granted, each.host, each) for each in fresh if each.present and each.granted)
    holder = holders[-1][2] if holders else None
    agrees = holder is None or (holder.host == server.host and holder.granted <= server.epoch)
    migration = doubts.release(tx, server.id) if agrees else None
    if migration is not None:
        doubts.settle(tx, server.id)
        message, queue = Wake(migration), outbox.CONDUCTOR_QUEUE
        effects.outbox.append((outbox.put(tx, queue, message), queue, message))
    elif holder is not None:
        _place(tx, server, holder)
    else:
        _log.error("no host has this server's files", server=server.id, on=server.host)
        fault = {"code": 404, "created": clock.now(), "message": doubts.LOST, "declared": True, "lost": True}
        doubts.settle(tx, server.id, fault=fault, power_state=PowerState.STOPPED)
    for each in fresh:
        doubts.forget(tx, each.host, server.id)


def _place(tx: Connection, server: Row[Any], holder: Row[Any]) -> None:
    """Write down that the server belongs to the host that holds its newest grant."""
    doubts.abandon(tx, server.id)
    servers_core.adopt_numbers(tx, server.id, holder.epoch, holder.number)
    doubts.move_claim(tx, server, holder.host)
    power = PowerState(holder.power_state)
    doubts.settle(tx, server.id, host=holder.host, host_number=holder.number, power_state=power)
    _log.warning("a server's place was learnt from its hosts", server=server.id, on=holder.host, was=server.host)


def _adopt(tx: Connection, server_id: str, host: str, epoch: int, number: int) -> None:
    if servers_core.adopt_numbers(tx, server_id, epoch, number):
        _log.warning("numbers adopted from a host's ledger", server=server_id, on=host, epoch=epoch, number=number)
        doubts.skip_numbers(tx)


def _is_news(row: Row[Any], epoch: int, number: int) -> bool:
    """Return whether a host knows an epoch or an order number that this database has never drawn."""
    most = servers_core.LEAD_MAX
    return bool(row.epoch < epoch <= row.epoch + most or row.order_number < number <= row.order_number + most)


def _is_lost(row: Row[Any]) -> bool:
    return bool(row.fault and row.fault.get("lost"))
