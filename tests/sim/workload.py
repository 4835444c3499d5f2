"""What users and administrators do meanwhile: a table of operations, each as the API does it, on few servers.

To add one, write the function and put it into OPERATIONS with its weight. What the API would refuse is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, select

from whimbrel.api.handlers.recovery import EVACUABLE
from whimbrel.api.handlers.server_moves import require
from whimbrel.api.views import state
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Kind, Verdict, Witness
from whimbrel.domain.server import Flavor, PowerAction
from whimbrel.migration import protocols
from whimbrel.ops import clock, ids
from whimbrel.store import evacuations, fencing, hosts_view, migrations, servers
from whimbrel.store.actions import Asked
from whimbrel.store.migrations import Begun
from whimbrel.store.servers import Situation
from whimbrel.store.tables import hosts
from whimbrel.store.tables import migrations as migrations_table
from whimbrel.store.tables import servers as servers_table

SMALL = {"number": 1, **msgspec.to_builtins(Flavor("small", "small", 1, 128, 1))}
LARGE = {"number": 2, **msgspec.to_builtins(Flavor("large", "large", 2, 256, 2, swap_mb=64))}
MOST_SERVERS = 4
IMAGE = {"id": "i", "sha256": "0" * 64, "format": "qcow2", "size_bytes": 1, "virtual_size_mb": 1}


@dataclass(frozen=True)
class User:
    """Who asks: by chance, and with eyes that see which hosts are really without power."""

    rng: random.Random
    off: frozenset[str]
    down_after: float


Operation = Callable[[Connection, User], Begun | None]


@dataclass(frozen=True)
class Row:
    """One operation and how often it comes, relative to the others."""

    name: str
    weight: float
    run: Operation


def _asked() -> dict[str, str]:
    return {"request_id": ids.new_request_id(), "user_id": "u", "project_id": "p"}


def build(tx: Connection, user: User) -> Begun | None:
    """Create a server, now and then on a named host."""
    alive = tx.execute(select(servers_table.c.id).where(servers_table.c.deleted_at.is_(None))).all()
    if len(alive) >= MOST_SERVERS:
        return None
    identifier = ids.new_uuid()
    host = _some_host(tx, user) if user.rng.random() < 0.3 else None
    servers.insert(
        tx,
        {
            "id": identifier, "name": f"vm-{len(alive)}", "project_id": "p", "user_id": "u", "reservation_id": "r",
            "flavor": SMALL, "image": IMAGE, "forced_host": host,
        },
    )  # fmt: skip
    return migrations.begin(tx, identifier, Kind.BUILD, protocols.BUILD, forced_host=host, **_asked())


def migrate(tx: Connection, user: User) -> Begun | None:
    """Move a server, now and then to a named host."""
    situation = _resting(tx, user, "migrate", ("active", "stopped"))
    host = _some_host(tx, user) if user.rng.random() < 0.4 else None
    if host == situation.server.host:
        return None
    server = situation.server.id
    return migrations.begin(tx, server, Kind.MIGRATION, protocols.COLD, forced_host=host, **_asked())


def migrate_suspended(tx: Connection, user: User) -> Begun | None:
    """Move a server with its memory, now and then to a named host; it waits for its verdict."""
    return _with_memory(tx, user, Kind.MIGRATION, protocols.SUSPENDED)


def migrate_live(tx: Connection, user: User) -> Begun | None:
    """Move a server while it runs, now and then to a named host."""
    return _with_memory(tx, user, Kind.LIVE, protocols.LIVE)


def _with_memory(tx: Connection, user: User, kind: Kind, table: protocols.Protocol) -> Begun | None:
    action = "os-migrateLive" if kind is Kind.LIVE else "migrate"
    situation = _resting(tx, user, action, ("active",))
    host = _some_host(tx, user) if user.rng.random() < 0.4 else None
    if host == situation.server.host:
        return None
    return migrations.begin(tx, situation.server.id, kind, table, forced_host=host, **_asked())


def resize(tx: Connection, user: User) -> Begun | None:
    """Give a server the larger flavor."""
    situation = _resting(tx, user, "resize", ("active", "stopped"))
    if situation.server.flavor["id"] == LARGE["id"]:
        return None
    return migrations.begin(tx, situation.server.id, Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE, **_asked())


def confirm(tx: Connection, user: User) -> Begun | None:
    """Close an undo window with yes."""
    return _verdict(tx, user, Verdict.CONFIRM)


def revert(tx: Connection, user: User) -> Begun | None:
    """Close an undo window with no."""
    return _verdict(tx, user, Verdict.REVERT)


def _verdict(tx: Connection, user: User, verdict: Verdict) -> Begun | None:
    def may(situation: Situation) -> None:
        if situation.migration is None or situation.migration.verdict != verdict:
            require(situation, verdict, ("resized",))

    server = _pick(tx, user, may).server.id
    return migrations.give_verdict(tx, server, verdict, request_id=ids.new_request_id())


def delete(tx: Connection, user: User) -> Begun | None:
    """Delete a server, whatever is being done with it."""
    return migrations.request_delete(tx, _pick(tx, user, lambda _: None).server.id, **_asked())


def cancel(tx: Connection, user: User) -> Begun | None:
    """Turn back whatever runs."""
    running = tx.execute(select(migrations_table.c.id).where(migrations_table.c.open)).scalars().all()
    return migrations.request_cancel(tx, user.rng.choice(running)) if running else None


def power(tx: Connection, user: User) -> Begun | None:
    """Start, stop or reboot a server."""
    action, states = user.rng.choice(
        (
            (PowerAction.START, ("stopped",)),
            (PowerAction.STOP, ("active",)),
            (PowerAction.REBOOT_SOFT, ("active",)),
            (PowerAction.REBOOT_HARD, ("active", "stopped", "paused")),
        )
    )
    server = _resting(tx, user, action, states).server.id
    return migrations.begin(tx, server, Kind.POWER, protocols.POWER, action=action, **_asked())


def evacuate(tx: Connection, user: User) -> Begun | None:
    """Make a server of a silent host anew elsewhere; whether the host is really off is not asked here."""

    def may(situation: Situation) -> None:
        server = situation.server
        if state.derive(situation).vm not in EVACUABLE or server.host is None or server.launched_at is None:
            raise Conflict("It cannot be evacuated now.")
        host = hosts_view.find(tx, server.host)
        if host is not None and hosts_view.is_up(host, clock.now() - user.down_after):
            raise Conflict("Its host is still in use.")

    server = _pick(tx, user, may).server
    asked = Asked(ids.new_request_id(), "u", "p")
    return evacuations.begin(tx, server.id, asked, "p", target=None, leave_stopped=user.rng.random() < 0.3)


def prove(tx: Connection, user: User) -> Begun | None:
    """Say of a host that it is off, having looked."""
    if not user.off:
        return None
    name = user.rng.choice(sorted(user.off))
    row = hosts_view.find(tx, name)
    if row is None:
        return None
    since = clock.now() - user.down_after
    wakes = fencing.give(tx, name, Witness.ADMINISTRATOR, "I looked.", boot=row.boot, silent_since=since)
    return Begun(0, 0, wakes)


OPERATIONS = (
    Row("build", 2, build),
    Row("migrate", 5, migrate),
    Row("migrate suspended", 2, migrate_suspended),
    Row("migrate live", 3, migrate_live),
    Row("resize", 2, resize),
    Row("confirm", 3, confirm),
    Row("revert", 3, revert),
    Row("delete", 1, delete),
    Row("cancel", 2, cancel),
    Row("power", 2, power),
    Row("evacuate", 2, evacuate),
    Row("prove", 2, prove),
)


def draw(rng: random.Random) -> Row:
    """Choose the next operation."""
    return rng.choices(OPERATIONS, [row.weight for row in OPERATIONS])[0]


def _pick(tx: Connection, user: User, may: Callable[[Situation], None]) -> Situation:
    """Return a server, any of those for which the API does not refuse."""
    query = select(servers_table).where(servers_table.c.deleted_at.is_(None)).order_by(servers_table.c.number)
    refusal = Conflict("There is no server.")
    for situation in user.rng.sample(found := servers.situations(tx, tx.execute(query).all()), len(found)):
        try:
            may(situation)
            return situation
        except Conflict as error:
            refusal = error
    raise refusal


def _resting(tx: Connection, user: User, action: str, states: tuple[str, ...]) -> Situation:
    """Return a server in one of these states on a host that answers."""

    def may(situation: Situation) -> None:
        require(situation, action, states)
        host = hosts_view.find(tx, situation.server.host)
        if host is None or not hosts_view.is_up(host, clock.now() - user.down_after):
            raise Conflict("Service is unavailable at this time.")

    return _pick(tx, user, may)


def _some_host(tx: Connection, user: User) -> str | None:
    names = tx.execute(select(hosts.c.name).order_by(hosts.c.name)).scalars().all()
    return user.rng.choice(names) if names else None
