"""How much there is of what an operator watches: open migrations, those that wait for a proof, debts, hosts."""

from __future__ import annotations

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import OperationalError

from whimbrel.domain.errors import Unavailable
from whimbrel.ops import clock
from whimbrel.store.engine import Store
from whimbrel.store.tables import debts, hosts, migrations, outbox, servers

MEANINGS = {
    "servers": "Servers that are not deleted.",
    "migrations_open": "Migrations that have not ended, undo windows too.",
    "undo_windows_open": "Migrations that wait for a confirm or a revert.",
    "needs_fence": "Migrations that wait for the proof that a silent host does not run the guest.",
    "debts_unpaid": "Clean-ups that hosts owe.",
    "hosts_up": "Hosts that were heard of lately.",
    "hosts_down": "Hosts that were not.",
    "outbox": "Messages that are written and not known to be published.",
}


def counts(tx: Connection, down_after: float) -> dict[str, float]:
    """Return the numbers by the names above; a host that was silent for `down_after` seconds counts as down."""
    m, now = migrations.c, clock.now()
    up = (hosts.c.heard_at >= now - down_after) & hosts.c.forced_down.is_(False)
    questions = {
        "servers": select(func.count()).select_from(servers).where(servers.c.deleted_at.is_(None)),
        "migrations_open": select(func.count()).select_from(migrations).where(m.open),
        "undo_windows_open": select(func.count()).select_from(migrations).where(m.open, m.window_open),
        "needs_fence": select(func.count()).select_from(migrations).where(m.open, m.fence.is_not(None)),
        "debts_unpaid": select(func.count()).select_from(debts).where(debts.c.paid_at.is_(None)),
        "hosts_up": select(func.count()).select_from(hosts).where(up),
        "hosts_down": select(func.count()).select_from(hosts).where(~up),
        "outbox": select(func.count()).select_from(outbox),
    }
    return {name: float(tx.execute(question).scalar_one()) for name, question in questions.items()}


def read_counts(store: Store, down_after: float) -> dict[str, float]:
    """Read the numbers in this thread; Unavailable when the database does not answer."""
    try:
        return store.read_now(counts, down_after)
    except OperationalError as error:
        raise Unavailable(f"The database does not answer: {error.orig}.") from error
