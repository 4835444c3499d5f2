"""`os-migrations`, and the migrations of one server: moves as OpenStack's administrators know them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.views import links
from whimbrel.api.views import migrations as view
from whimbrel.api.views.state import migration_status
from whimbrel.domain.errors import Forbidden, Invalid, NotFound
from whimbrel.domain.migration import Kind
from whimbrel.store import actions, hosts_view, migrations, moves
from whimbrel.store.migrations import Begun
from whimbrel.store.moves import MOVES, Move, Search

BATCH = 1000
FILTERS = frozenset({"hidden", "host", "instance_uuid", "source_compute", "status", "migration_type"})
PAGING = frozenset({"limit", "marker", "changes-since"})


async def index(call: Call) -> Reply:
    """List moves, newest first."""
    _check_parameters(call)
    found, more, addresses = await call.services.store.read(_page, call)
    hosts = finding.may(call, "os_compute_api:os-migrations:index:host")
    items = [view.listed(move, call.version, hosts=hosts, addresses=addresses) for move in found]
    body: dict[str, Any] = {"migrations": items}
    if more and call.version >= (2, 59):
        body["migrations_links"] = links.next_page(call.services.public_url, call.path, call.query, items[-1]["uuid"])
    return Reply(body=body)


def _check_parameters(call: Call) -> None:
    if call.version < (2, 59):
        return
    known = FILTERS | PAGING
    if call.version >= (2, 66):
        known |= {"changes-before"}
    if call.version >= (2, 80):
        known |= {"user_id", "project_id"}
    parameters.refuse_unknown(call, known)


def _page(tx: Connection, call: Call) -> tuple[list[Move], bool, dict[str, str]]:
    paged = call.version >= (2, 59)
    limit = parameters.limit(call) if paged else parameters.MAX_LIMIT
    before = _marker(tx, call) if paged else None
    search, statuses = _search(call), set(call.query.get("status", ()))
    found: list[Move] = []
    while len(found) <= limit and not _hidden(call):
        batch = moves.page(tx, search, before, BATCH)
        found += [move for move in batch if not statuses or migration_status(move.row, move.marks) in statuses]
        if len(batch) < BATCH:
            break
        before = batch[-1].row.id
    addresses = {name: row.address for name, row in hosts_view.rows(tx).items()}
    return *parameters.cut(found, limit), addresses


def _search(call: Call) -> Search:
    since, before = parameters.span(call) if call.version >= (2, 59) else (None, None)
    kind = call.first("migration_type")
    return Search(
        kinds=MOVES if kind is None else (kind,) if kind in MOVES else (),
        server_id=call.first("instance_uuid"),
        source=call.first("source_compute"),
        host=call.first("host"),
        project_id=_project(call),
        user_id=call.first("user_id") if call.version >= (2, 80) else None,
        changed_since=since,
        changed_before=before,
    )


def _project(call: Call) -> str | None:
    """Managers see the moves of their own project, administrators all of them."""
    named = call.first("project_id") if call.version >= (2, 80) else None
    if finding.may(call, "os_compute_api:os-migrations:index:all_projects"):
        return named
    if named is not None and named != call.who.project_id:
        raise Forbidden("Policy doesn't allow os_compute_api:os-migrations:index:all_projects to be performed.")
    return call.who.project_id or "-"


def _hidden(call: Call) -> bool:
    """No migration is ever hidden, so a list of the hidden ones is empty."""
    return parameters.boolean(call, "hidden", default=False) is True


def _marker(tx: Connection, call: Call) -> int | None:
    marker = call.first("marker")
    if marker is None:
        return None
    number = moves.number_of(tx, marker)
    if number is None:
        raise Invalid(f"Marker {marker} could not be found.")
    return number


async def of_server(call: Call) -> Reply:
    """List the live migrations in progress of a server: cold ones have no place in this list."""
    found, addresses = await call.services.store.read(_in_progress, call)
    return Reply(body={"migrations": [_shown(call, move, addresses) for move in found]})


def _in_progress(tx: Connection, call: Call) -> tuple[list[Move], dict[str, str]]:
    server = finding.server(tx, call)
    search = Search(kinds=(Kind.LIVE,), server_id=server.id, open=True)
    return moves.page(tx, search, None, 1), {name: row.address for name, row in hosts_view.rows(tx).items()}


def _shown(call: Call, move: Move, addresses: dict[str, str]) -> dict[str, Any]:
    word = call.services.hub.newest(move.row.id, (move.row.source, move.row.target))
    hosts = finding.may(call, "os_compute_api:os-migrations:index:host")
    return view.in_progress(move, word, call.version, hosts=hosts, addresses=addresses)


async def cancel(call: Call) -> Reply:
    """Turn a migration of this server back, of whatever kind, as long as the server was not handed over."""

    def turn(tx: Connection) -> Begun:
        row, move = _of_server(tx, call)
        begun = migrations.request_cancel(tx, move.id)
        if begun.outbox:
            who = finding.asked(call)
            actions.record(tx, row.id, "cancelMigration", who, migration_id=move.id, segment=begun.segment)
        return begun

    begun: Begun = await call.services.store.write(turn)
    await call.services.publish(begun.outbox)
    return Reply(202)


async def force_complete(call: Call) -> Reply:
    """Hurry a move of this server on: its guest is held (live) or stopped (warm) as soon as that helps the copy."""

    def hurry(tx: Connection) -> None:
        _, move = _of_server(tx, call)
        migrations.steer(tx, move.id, hurry=True)

    await call.services.store.write(hurry)
    return Reply(202)


async def limit(call: Call) -> Reply:
    """Let a migration's copy send no more than so many bytes per second from now on; null lifts the limit."""

    def steer(tx: Connection) -> None:
        move = moves.story(tx, call.params["id"])
        if move is None:
            raise NotFound(f"Migration {call.params['id']} could not be found.")
        migrations.steer(tx, move.row.id, rate=call.body["bytes_per_second"])

    await call.services.store.write(steer)
    return Reply(204)


def _of_server(tx: Connection, call: Call) -> tuple[Row[Any], Row[Any]]:
    """Return the server of the path, and the migration of it that the path names by number or uuid."""
    wanted, row = call.params["migration_id"], finding.unlocked(tx, call).server
    number = moves.number_of(tx, wanted)
    move = migrations.load(tx, number) if number is not None else None
    if move is None or move.server_id != row.id:
        raise NotFound(f"Migration {wanted} for server {row.id} could not be found.")
    return row, move


async def show_of_server(call: Call) -> Reply:
    """Show a live migration in progress of this server; any other is not found here."""
    found, addresses = await call.services.store.read(_in_progress, call)
    wanted = call.params["migration_id"]
    for move in found:
        if wanted in (str(move.row.id), move.row.uuid):
            return Reply(body={"migration": _shown(call, move, addresses)})
    raise NotFound(f"Live migration {wanted} of server {call.params['id']} is not in progress.")
