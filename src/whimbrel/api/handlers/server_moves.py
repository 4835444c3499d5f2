"""Moving a server: cold and live migration, resize, and the verdict that ends each. The conductor does the rest."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import quotas
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding, hardware
from whimbrel.api.handlers.server_create import is_true
from whimbrel.api.views import state
from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.migration import Kind, Verdict
from whimbrel.domain.server import MOVE, Manner, PowerState
from whimbrel.identity import policy
from whimbrel.migration import protocols
from whimbrel.migration.protocols import Protocol
from whimbrel.store import actions, flavors, hosts_view, migrations, servers
from whimbrel.store.migrations import Begun
from whimbrel.store.servers import Situation

Json = dict[str, Any]


async def migrate(call: Call) -> Reply:
    """Begin a cold migration, to the host that an administrator named or to one that the scheduler finds."""
    return await _begin(call, begin_migration)


async def migrate_live(call: Call) -> Reply:
    """Begin a live migration; disks cross with the memory, whatever `block_migration` says of them."""
    return await _begin(call, begin_live_migration)


async def resize(call: Call) -> Reply:
    """Begin a resize: a cold migration into another flavor."""
    return await _begin(call, begin_resize)


async def confirm(call: Call) -> Reply:
    """Give up the source's copy. Accepted while the source is away as well: it then owes the clean-up."""
    await _begin(call, _confirm)
    return Reply(204)


async def revert(call: Call) -> Reply:
    """Give up the target's copy, and go back."""
    return await _begin(call, _revert)


async def _begin(call: Call, change: Any) -> Reply:
    begun: Begun = await call.services.store.write(change, call)
    await call.services.publish(begun.outbox)
    return Reply(202)


def begin_migration(tx: Connection, call: Call) -> Begun:
    """Begin a migration in this transaction."""
    situation = _movable(tx, call, "migrate")
    server = situation.server
    given = (call.body["migrate"] or {}) if call.version >= (2, 56) else {}
    wanted = given.get("host")
    _check_target(tx, call, server, wanted, "os_compute_api:os-migrate-server:migrate:host")
    source_is_up(tx, call, server)
    suspended = _manner(server, given) is Manner.SUSPENDED and server.power_state == PowerState.RUNNING
    table = protocols.SUSPENDED if suspended else protocols.COLD
    return _move(tx, call, server, (Kind.MIGRATION, table, "migrate"), given, forced_host=wanted)


def begin_live_migration(tx: Connection, call: Call) -> Begun:
    """Begin a live migration in this transaction."""
    situation = finding.unlocked(tx, call)
    require(situation, "os-migrateLive", ("active",))
    server, given = situation.server, call.body["os-migrateLive"]
    wanted = given["host"]
    if wanted is None and is_true(given.get("force", False)):
        raise Invalid("Can't force to a non-provided destination")
    _check_target(tx, call, server, wanted, "os_compute_api:os-migrate-server:migrate_live:host")
    source_is_up(tx, call, server)
    return _move(tx, call, server, (Kind.LIVE, protocols.LIVE, "live-migration"), {}, forced_host=wanted)


def _check_target(tx: Connection, call: Call, server: Row[Any], wanted: str | None, rule: str) -> None:
    """Refuse a named target that the caller may not name, that is not known, or where the server is already."""
    if wanted is None:
        return
    policy.enforce(rule, call.who, {"project_id": server.project_id})
    if hosts_view.find(tx, wanted) is None:
        raise Invalid(f"Compute host {wanted} could not be found.")
    if wanted == server.host:
        raise Invalid("Cannot migrate to the host where the server exists.")


def begin_resize(tx: Connection, call: Call) -> Begun:
    """Begin a resize in this transaction."""
    situation = _movable(tx, call, "resize")
    server = situation.server
    given = call.body["resize"]
    flavor = _new_flavor(tx, call, server, str(given["flavorRef"]))
    source_is_up(tx, call, server)
    if "OS-DCF:diskConfig" in given:
        servers.change(tx, server.id, disk_config=given["OS-DCF:diskConfig"])
    what = (Kind.RESIZE, protocols.RESIZE, "resize")
    return _move(tx, call, server, what, given, new_flavor=flavors.snapshot(flavor))


def _move(
    tx: Connection, call: Call, server: Row[Any], what: tuple[Kind, Protocol, str], given: Json, **options: Any
) -> Begun:
    kind, protocol, action = what
    who = finding.asked(call)
    begun = migrations.begin(
        tx,
        server.id,
        kind,
        protocol,
        request_id=who.request_id,
        user_id=who.user_id,
        project_id=server.project_id,
        manner=_manner(server, given),
        **options,
    )
    actions.record(tx, server.id, action, who, migration_id=begun.migration_id, segment=begun.segment)
    return begun


def _manner(server: Row[Any], given: Json) -> Manner | None:
    """Return what the request says, or else the server's metadata; Invalid when those say nothing that there is."""
    said = given.get(MOVE) or server.metadata.get(MOVE)
    if said is None:
        return None
    try:
        return Manner(said)
    except ValueError:
        raise Invalid(
            f"Instance {server.id} has {MOVE}={said!r:.40} in its metadata; set it to one of {', '.join(Manner)}."
        ) from None


def _new_flavor(tx: Connection, call: Call, server: Row[Any], wanted: str) -> Row[Any]:
    """Return the flavor to resize to; Invalid when the server cannot take it, Forbidden beyond the quota."""
    try:
        flavor = flavors.find(tx, wanted, finding.scope(call))
    except NotFound as error:
        raise Invalid(str(error)) from error
    if flavor.disabled:
        raise Invalid(f"Flavor {wanted} could not be found.")
    old = server.flavor
    if flavor.id == old["id"]:
        raise Invalid("When resizing, instances must change flavor!")
    hardware.refuse_special(f"Flavor {flavor.id}", flavor.extra_specs)
    hardware.refuse_lost_tpm(server.image_properties, old["extra_specs"], flavor.extra_specs)
    if flavor.disk_gb == 0 and old["disk_gb"] != 0:
        raise Invalid("Server disk was unable to be resized because: Resize to zero disk flavor is not allowed.")
    if flavor.disk_gb < old["disk_gb"] or flavor.ephemeral_gb < old["ephemeral_gb"]:
        raise Invalid(
            "Server disk was unable to be resized because: "
            f"flavor {flavor.name} has {flavor.disk_gb} GB of root and {flavor.ephemeral_gb} GB of ephemeral disk, the "
            f"server has {old['disk_gb']} and {old['ephemeral_gb']} GB, and disks cannot shrink."
        )
    more = servers.Usage(0, flavor.vcpus - old["vcpus"], flavor.ram_mb - old["ram_mb"])
    quotas.check_growth(servers.usage(tx, server.project_id), more)
    return flavor


def _confirm(tx: Connection, call: Call) -> Begun:
    return _verdict(tx, call, Verdict.CONFIRM, "confirmResize")


def _revert(tx: Connection, call: Call) -> Begun:
    return _verdict(tx, call, Verdict.REVERT, "revertResize")


def _verdict(tx: Connection, call: Call, verdict: Verdict, action: str) -> Begun:
    situation = finding.unlocked(tx, call)
    server = situation.server
    again = situation.migration is not None and situation.migration.verdict == verdict
    if not again:
        require(situation, action, ("resized",))
    who = finding.asked(call)
    begun = migrations.give_verdict(tx, server.id, verdict, request_id=who.request_id)
    if begun.outbox:
        actions.record(tx, server.id, action, who, migration_id=begun.migration_id, segment=begun.segment)
    return begun


def _movable(tx: Connection, call: Call, action: str) -> Situation:
    situation = finding.unlocked(tx, call)
    require(situation, action, ("active", "stopped"))
    return situation


def source_is_up(tx: Connection, call: Call, server: Row[Any]) -> None:
    """Refuse what only the server's own host can begin while that host is away."""
    host = hosts_view.find(tx, server.host)
    if host is None or not hosts_view.is_up(host, finding.heard_since(call.services.settings)):
        raise Conflict("Service is unavailable at this time.")


def require(situation: Situation, action: str, vm_states: tuple[str, ...]) -> None:
    """Refuse, in Nova's words, unless the server is in one of these states, at rest, and on a host."""
    server, known = situation.server, state.derive(situation)
    for kind, value, good in (
        ("vm_state", known.vm, known.vm in vm_states),
        ("task_state", known.task, known.task is None),
    ):
        if not good:
            raise Conflict(f"Cannot '{action}' instance {server.id} while it is in {kind} {value}")
    if server.host is None or server.launched_at is None:
        raise Conflict(f"Instance {server.id} is not ready")
