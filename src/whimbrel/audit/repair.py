"""Mends what is provably safe to mend, with the authority that everything else has: a debt, or a numbered order.

All repairs of one server are one transaction. It begins by reading the server again: if anything was ordered about it
since the look, or a migration of it is open, nothing is done, and the next audit decides anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from whimbrel.audit.findings import Mend, Repair
from whimbrel.bus import queues
from whimbrel.domain.claim import resources_of
from whimbrel.domain.migration import Verb
from whimbrel.migration import protocols
from whimbrel.migration.messages import Order, Place, Work
from whimbrel.ops import ids
from whimbrel.store import debts, outbox, servers_core
from whimbrel.store.tables import claims, hosts, migrations, servers
from whimbrel.store.tables import debts as debts_table


@dataclass(frozen=True)
class Step:
    """The row of a protocol that does a repair on a host."""

    table: protocols.Protocol
    step: str
    verb: Verb = Verb.DO


STEPS = {
    Mend.DISCARD_INCOMING: Step(protocols.COLD, "prepare", Verb.UNDO),
    Mend.RETIRE_SEALED: Step(protocols.CONFIRM, "retire_source"),
    Mend.REMOVE_DELETED: Step(protocols.DELETE, "remove_guest"),
    Mend.STOP_STRAY: Step(protocols.REVERT, "stop_target"),
}

Sent = list[tuple[int, str, object]]
"""What is to be published after the commit: (outbox id, queue, message)."""


def apply(tx: Connection, server: str, wanted: Sequence[Repair]) -> tuple[list[Repair], Sent]:
    """Do the repairs of one server; return those that were done and what to publish.

    A host that is told to stop a guest is told nothing else about it now: a newer order would overtake the stop.
    """
    row = tx.execute(select(servers).where(servers.c.id == server).with_for_update()).one_or_none()
    numbers = (row.epoch, row.order_number) if row is not None else (0, 0)
    done: list[Repair] = []
    sent: Sent = []
    if _is_open(tx, server):
        return done, sent
    for repair in sorted(wanted, key=lambda one: one.mend is not Mend.STOP_STRAY):
        told = {one.host for one in done if one.mend is Mend.STOP_STRAY}
        if (repair.epoch, repair.number) != numbers or repair.host in told or _owes(tx, repair):
            continue
        messages = _do(tx, repair, row)
        if messages is not None:
            done.append(repair)
            sent += messages
    return done, sent


def _do(tx: Connection, repair: Repair, row: Row[Any] | None) -> Sent | None:
    """Do one repair; None when the server is not as it was, and nothing was done."""
    match repair.mend:
        case Mend.GIVE_CLAIM_BACK:
            return _give_back(tx, repair, row)
        case Mend.SET_CLAIM:
            return _set_claim(tx, repair, row)
        case Mend.STOP_STRAY if row is not None and row.host != repair.host and row.deleted_at is None:
            return _stop(tx, repair, row)
        case Mend.REMOVE_DELETED if row is not None and row.deleted_at is not None:
            return _owe(tx, repair, row)
        case Mend.DISCARD_INCOMING | Mend.RETIRE_SEALED if row is not None:
            return _owe(tx, repair, row)
    return None


def _owe(tx: Connection, repair: Repair, row: Row[Any]) -> Sent:
    """A debt: sent when the host is there and no migration is at work on it, until it is paid.

    It may come late, so it names an attempt that is over, or a server that is deleted, and is as right then as now.
    """
    step = STEPS[repair.mend]
    debts.owe(tx, _order(tx, repair, row), step.step, step.verb)
    return []


def _stop(tx: Connection, repair: Repair, row: Row[Any]) -> Sent:
    """An order, drawn now: whatever is ordered later has a greater number, so this one can never stop what came later.

    A debt would not do, for it draws its number when it is sent, which may be after the server has moved there.
    """
    numbered = servers_core.next_number(tx, row.id, repair.host, raise_epoch=False)
    queue, order = queues.agent(repair.host), _order(tx, repair, numbered)
    return [(outbox.put(tx, queue, order), queue, order)]


def _give_back(tx: Connection, repair: Repair, row: Row[Any] | None) -> Sent | None:
    mine = claims.c.id == repair.claim
    claim = tx.execute(select(claims).where(mine)).one_or_none()
    if claim is None or (row is not None and row.deleted_at is None and _is_only_claim_at_home(tx, claim, row)):
        return None
    tx.execute(delete(claims).where(mine))
    return []


def _is_only_claim_at_home(tx: Connection, claim: Row[Any], row: Row[Any]) -> bool:
    here = (claims.c.server_id == row.id, claims.c.host == row.host, claims.c.owed.is_(False))
    return bool(
        claim.host == row.host and not claim.owed and len(tx.execute(select(claims.c.id).where(*here)).all()) == 1
    )


def _set_claim(tx: Connection, repair: Repair, row: Row[Any] | None) -> Sent | None:
    """Write down what the server takes where it is; that it takes it is a fact, so the host's limit is not asked."""
    if row is None or row.deleted_at is not None or row.host != repair.host:
        return None
    # As for every claim, the host's row is written first, so that two on one host come one after the other.
    tx.execute(update(hosts).where(hosts.c.name == row.host).values(claims_revision=hosts.c.claims_revision + 1))
    room = resources_of(servers_core.flavor_of(row.flavor))
    values = {"vcpus": room.vcpus, "ram_mb": room.ram_mb, "disk_gb": room.disk_gb}
    if repair.claim is not None:
        tx.execute(update(claims).where(claims.c.id == repair.claim, claims.c.host == row.host).values(**values))
    elif tx.execute(select(claims.c.id).where(claims.c.server_id == row.id, claims.c.host == row.host)).first() is None:
        of_nobody = {"host": row.host, "server_id": row.id, "attempt": "0-0", "owed": False}
        tx.execute(claims.insert().values(**of_nobody, **values))
    return []


def _is_open(tx: Connection, server: str) -> bool:
    query = select(migrations.c.id).where(migrations.c.server_id == server, migrations.c.open)
    return tx.execute(query).first() is not None


def _owes(tx: Connection, repair: Repair) -> bool:
    c = debts_table.c
    query = select(c.id).where(c.host == repair.host, c.server_id == repair.server, c.paid_at.is_(None))
    return tx.execute(query).first() is not None


def _order(tx: Connection, repair: Repair, row: Row[Any]) -> Order:
    """The order for the host; the steps that repair need the server's name and the attempt's, and nothing else."""
    step = STEPS[repair.mend]
    table_row = step.table.step(step.step)
    assert isinstance(table_row, protocols.HostStep)
    newest = select(migrations.c.id, migrations.c.attempt).where(migrations.c.server_id == row.id)
    last = tx.execute(newest.order_by(migrations.c.id.desc()).limit(1)).one_or_none()
    attempt = repair.attempt or (f"{last.id}-{last.attempt}" if last is not None else "0-0")
    address = tx.execute(select(hosts.c.address).where(hosts.c.name == repair.host)).scalar_one()
    guest = servers_core.guest_of(tx, row, row.flavor, row.root_disk or "qcow2")
    here = Place(repair.host, address)
    return Order(
        host=repair.host,
        server=row.id,
        migration=int(attempt.partition("-")[0]),
        segment=0,
        attempt=attempt,
        protocol=step.table.name,
        version=step.table.version,
        step=step.step,
        verb=step.verb,
        epoch=row.epoch,
        number=row.order_number,
        limit=table_row.limit.of(0),
        work=Work(guest, guest, None, here, here, was_running=False, grace=0),
        request_id=ids.new_request_id(),
    )
