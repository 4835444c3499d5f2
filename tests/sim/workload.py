"""What users and administrators do meanwhile: a table of operations, each as the API does it, on few servers.

To add one, write the function and put it into OPERATIONS with its weight. What the API would refuse is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, select

from whimbrel.api.handlers.server_moves import require
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Kind, Verdict
from whimbrel.domain.server import Flavor, PowerAction
from whimbrel.migration import protocols
from whimbrel.ops import clock, ids
from whimbrel.store import hosts_view, migrations, servers
from whimbrel.store.migrations import Begun
from whimbrel.store.servers import Situation
from whimbrel.store.tables import hosts
from whimbrel.store.tables import migrations as migrations_table
from whimbrel.store.tables import servers as servers_table

SMALL = {"number": 1, **msgspec.to_builtins(Flavor("small", "small", 1, 128, 1))}
LARGE = {"number": 2, **msgspec.to_builtins(Flavor("large", "large", 2, 256, 2, swap_mb=64))}
MOST_SERVERS = 4
UP_SINCE = 60.0

Operation = Callable[[Connection, random.Random], Begun | None]


@dataclass(frozen=True)
class Row:
    """One operation and how often it comes, relative to the others."""

    name: str
    weight: float
    run: Operation


def _asked() -> dict[str, str]:
    return {"request_id": ids.new_request_id(), "user_id": "u", "project_id": "p"}


def build(tx: Connection, rng: random.Random) -> Begun | None:
    """Create a server, now and then on a named host."""
    alive = tx.execute(select(servers_table.c.id).where(servers_table.c.deleted_at.is_(None))).all()
    if len(alive) >= MOST_SERVERS:
        return None
    identifier = ids.new_uuid()
    host = _some_host(tx, rng) if rng.random() < 0.3 else None
    servers.insert(
        tx,
        {
            "id": identifier, "name": f"vm-{len(alive)}", "project_id": "p", "user_id": "u", "reservation_id": "r",
            "flavor": SMALL, "image": None, "forced_host": host,
        },
    )  # fmt: skip
    return migrations.begin(tx, identifier, Kind.BUILD, protocols.BUILD, forced_host=host, **_asked())


def migrate(tx: Connection, rng: random.Random) -> Begun | None:
    """Move a server, now and then to a named host."""
    situation = _resting(tx, rng, "migrate", ("active", "stopped"))
    host = _some_host(tx, rng) if rng.random() < 0.4 else None
    if host == situation.server.host:
        return None
    server = situation.server.id
    return migrations.begin(tx, server, Kind.MIGRATION, protocols.COLD, forced_host=host, **_asked())


def resize(tx: Connection, rng: random.Random) -> Begun | None:
    """Give a server the larger flavor."""
    situation = _resting(tx, rng, "resize", ("active", "stopped"))
    if situation.server.flavor["id"] == LARGE["id"]:
        return None
    return migrations.begin(tx, situation.server.id, Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE, **_asked())


def confirm(tx: Connection, rng: random.Random) -> Begun | None:
    """Close an undo window with yes."""
    return _verdict(tx, rng, Verdict.CONFIRM)


def revert(tx: Connection, rng: random.Random) -> Begun | None:
    """Close an undo window with no."""
    return _verdict(tx, rng, Verdict.REVERT)


def _verdict(tx: Connection, rng: random.Random, verdict: Verdict) -> Begun | None:
    def may(situation: Situation) -> None:
        if situation.migration is None or situation.migration.verdict != verdict:
            require(situation, verdict, ("resized",))

    server = _pick(tx, rng, may).server.id
    return migrations.give_verdict(tx, server, verdict, request_id=ids.new_request_id())


def delete(tx: Connection, rng: random.Random) -> Begun | None:
    """Delete a server, whatever is being done with it."""
    return migrations.request_delete(tx, _pick(tx, rng, lambda _: None).server.id, **_asked())


def cancel(tx: Connection, rng: random.Random) -> Begun | None:
    """Turn back whatever runs."""
    running = tx.execute(select(migrations_table.c.id).where(migrations_table.c.open)).scalars().all()
    return migrations.request_cancel(tx, rng.choice(running)) if running else None


def power(tx: Connection, rng: random.Random) -> Begun | None:
    """Start, stop or reboot a server."""
    action, states = rng.choice(
        (
            (PowerAction.START, ("stopped",)),
            (PowerAction.STOP, ("active",)),
            (PowerAction.REBOOT_SOFT, ("active",)),
            (PowerAction.REBOOT_HARD, ("active", "stopped", "paused")),
        )
    )
    server = _resting(tx, rng, action, states).server.id
    return migrations.begin(tx, server, Kind.POWER, protocols.POWER, action=action, **_asked())


OPERATIONS = (
    Row("build", 2, build),
    Row("migrate", 5, migrate),
    Row("resize", 2, resize),
    Row("confirm", 3, confirm),
    Row("revert", 3, revert),
    Row("delete", 1, delete),
    Row("cancel", 2, cancel),
    Row("power", 2, power),
)


def draw(rng: random.Random) -> Row:
    """Choose the next operation."""
    return rng.choices(OPERATIONS, [row.weight for row in OPERATIONS])[0]


def _pick(tx: Connection, rng: random.Random, may: Callable[[Situation], None]) -> Situation:
    """Return a server, any of those for which the API does not refuse."""
    query = select(servers_table).where(servers_table.c.deleted_at.is_(None)).order_by(servers_table.c.number)
    refusal = Conflict("There is no server.")
    for situation in rng.sample(found := servers.situations(tx, tx.execute(query).all()), len(found)):
        try:
            may(situation)
            return situation
        except Conflict as error:
            refusal = error
    raise refusal


def _resting(tx: Connection, rng: random.Random, action: str, states: tuple[str, ...]) -> Situation:
    """Return a server in one of these states on a host that answers."""

    def may(situation: Situation) -> None:
        require(situation, action, states)
        host = hosts_view.find(tx, situation.server.host)
        if host is None or not hosts_view.is_up(host, clock.now() - UP_SINCE):
            raise Conflict("Service is unavailable at this time.")

    return _pick(tx, rng, may)


def _some_host(tx: Connection, rng: random.Random) -> str | None:
    names = tx.execute(select(hosts.c.name).order_by(hosts.c.name)).scalars().all()
    return rng.choice(names) if names else None
