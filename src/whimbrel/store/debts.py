"""Clean-up that a silent host owes: written when the work went on without it, paid when it answers again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, or_, select, update

from whimbrel.domain.migration import Verb
from whimbrel.migration.messages import Order
from whimbrel.ops import clock
from whimbrel.store import claims, servers_core
from whimbrel.store.tables import debts, hosts, migrations, servers

RESEND_AFTER = 60.0
BATCH = 50

_DOUBTED = select(servers.c.id).where(servers.c.id == debts.c.server_id, servers.c.doubted_at.is_not(None)).exists()
_MOVING = (
    select(migrations.c.id)
    .where(
        migrations.c.open,
        migrations.c.window_open.is_(False),
        migrations.c.server_id == debts.c.server_id,
        or_(migrations.c.source == debts.c.host, migrations.c.target == debts.c.host),
    )
    .exists()
)
_other = debts.alias("other")
_ANSWER_AWAITED = (
    select(_other.c.id)
    .where(
        _other.c.host == debts.c.host,
        _other.c.server_id == debts.c.server_id,
        _other.c.paid_at.is_(None),
        # From further ahead than another conductor's clock may be: the clock was set back since.
        _other.c.sent_at.between(bindparam("long_ago"), bindparam("far_ahead")),
    )
    .exists()
)
_WAITS = _DOUBTED | _MOVING | _ANSWER_AWAITED

_DUE = (
    select(debts)
    .join(hosts, hosts.c.name == debts.c.host)
    .where(debts.c.paid_at.is_(None), hosts.c.heard_at > bindparam("heard_since"), ~_WAITS)
    .order_by(debts.c.sent_at.is_not(None), debts.c.sent_at, debts.c.id)
    .limit(BATCH)
    .with_for_update(of=debts, skip_locked=True)
)
_NUMBERED = select(debts.c.id).where(
    debts.c.host == bindparam("host"),
    debts.c.server_id == bindparam("server_id"),
    debts.c.number == bindparam("number"),
)


def owe(tx: Connection, order: Order, step: str, verb: Verb) -> None:
    """Write down that `order.host` owes doing or undoing `step` for this attempt."""
    tx.execute(
        debts.insert().values(
            host=order.host,
            server_id=order.server,
            migration_id=order.migration,
            attempt=order.attempt,
            step=step,
            verb=verb,
            order=msgspec.to_builtins(order),
            created_at=clock.now(),
        )
    )


def due(tx: Connection, now: float, heard_since: float) -> list[Order]:
    """Return orders for unpaid debts of hosts that answer again, freshly numbered.

    A debt waits while its server has an open migration at that host, because a new order there would end the
    step that runs. For the same reason a host gets what it owes for one server one by one, in the order in which
    it came to owe it; only what failed gives way to the others.
    """
    bounds = {"long_ago": now - RESEND_AFTER, "far_ahead": now + RESEND_AFTER}
    first: dict[tuple[str, str], Row[Any]] = {}
    for row in tx.execute(_DUE, {**bounds, "heard_since": heard_since}):
        first.setdefault((row.host, row.server_id), row)
    return [order for row in first.values() if (order := _send(tx, row, now, bounds)) is not None]


def _send(tx: Connection, row: Row[Any], now: float, bounds: Mapping[str, float]) -> Order | None:
    """Number the debt's order; None when it has to wait after all."""
    server = servers_core.next_number(tx, row.server_id, row.host, raise_epoch=False)
    # The server's row is locked now; what was begun or sent before it was is seen only by asking once more.
    if tx.execute(select(debts.c.id).where(debts.c.id == row.id, _WAITS), bounds).first() is not None:
        return None
    epoch, number = server.epoch, server.order_number
    order: Order = msgspec.convert(row.order, Order)
    tx.execute(update(debts).where(debts.c.id == row.id).values(number=number, sent_at=now))
    return replace(order, epoch=epoch, number=number)


def pay(tx: Connection, host: str, server_id: str, number: int) -> bool:
    """Mark the debt that this order number was for as paid; return whether there was one."""
    result = tx.execute(
        update(debts)
        .where(
            debts.c.host == host,
            debts.c.server_id == server_id,
            debts.c.number == number,
            debts.c.paid_at.is_(None),
        )
        .values(paid_at=clock.now())
    )
    if result.rowcount == 0:
        return False
    left = tx.execute(
        select(debts.c.id).where(debts.c.host == host, debts.c.server_id == server_id, debts.c.paid_at.is_(None))
    ).first()
    if left is None:
        claims.settle_owed(tx, host, server_id)
    return True


def is_debt(tx: Connection, host: str, server_id: str, number: int) -> bool:
    """Return whether this order number was drawn for a debt."""
    return tx.execute(_NUMBERED, {"host": host, "server_id": server_id, "number": number}).first() is not None
