"""The half of the comparison that is about the books themselves: claims, debts, windows and proofs that are missing."""

from __future__ import annotations

from collections.abc import Iterator

from whimbrel.audit.books import ClaimEntry, ServerEntry
from whimbrel.audit.findings import Finding, Kind, Mend, Repair
from whimbrel.audit.look import Look
from whimbrel.bus.queues import DEAD_LETTERS
from whimbrel.domain.claim import NOTHING, Resources

DEBT_PATIENCE = 30.0
"""Seconds in which a debt is on its way to be paid; the conductor sends it within one."""
WINDOW_PATIENCE = 7 * 86400.0
"""Seconds after which an undo window without a deadline is worth a word: it holds room and a second copy."""

REPAIR = "`whimbrel audit --repair`"


def accounts(look: Look) -> Iterator[Finding]:
    """Yield what the books say against themselves, or owe."""
    for server in sorted({claim.server for claim in look.after.claims} | look.after.servers.keys()):
        if look.steady(server):
            yield from _claims(look, server)
    yield from _overcommitted(look)
    yield from _debts(look)
    yield from _open(look)
    if look.dead_letters:
        yield Finding(
            Kind.DEAD_LETTERS,
            None,
            None,
            f"{look.dead_letters} messages are in the queue {DEAD_LETTERS}.",
            f"Read them (`rabbitmqadmin get queue={DEAD_LETTERS}`) beside the logs of that time; when they are "
            f"understood: `rabbitmqctl purge_queue {DEAD_LETTERS}`.",
        )


def _claims(look: Look, server: str) -> Iterator[Finding]:
    """A steady server has one claim where it belongs and, in its undo window, one where it came from."""
    entry = look.server(server)
    left = [claim for claim in look.after.claims if claim.server == server]
    if entry is not None and not entry.deleted and entry.host is not None:
        window = look.window(server)
        attempt = window.attempt if window else None
        home = next((c for c in left if not c.owed and c.host == entry.host and attempt in (None, c.attempt)), None)
        if home is None:
            yield _wrong_size(look, entry, None)
        else:
            left.remove(home)
            if home.room != entry.room:
                yield _wrong_size(look, entry, home)
        if window is not None and window.source is not None:
            kept = next((c for c in left if not c.owed and c.host == window.source and c.attempt != attempt), None)
            if kept is not None:
                left.remove(kept)
    for claim in left:
        if not look.owes(claim.host, server):
            yield _without_owner(look, claim, entry)


def _wrong_size(look: Look, entry: ServerEntry, claim: ClaimEntry | None) -> Finding:
    host = entry.host or ""
    has = _room(claim.room) if claim else "nothing"
    quiet = entry.id not in look.after.open
    repair = Repair(Mend.SET_CLAIM, host, entry.id, entry.epoch, entry.number, claim=claim.id if claim else None)
    return Finding(
        Kind.UNBALANCED_CLAIM,
        host,
        entry.id,
        f"It takes {_room(entry.room)} there, and {has} is claimed.",
        f"{REPAIR} writes the claim of its flavor." if quiet else "Confirm or revert it, then audit again.",
        entry.name,
        f"claim {claim.id}" if claim else "no claim",
        repair if quiet else None,
    )


def _without_owner(look: Look, claim: ClaimEntry, entry: ServerEntry | None) -> Finding:
    seen = look.seen(claim.host, claim.server)
    if entry is None:
        why = "no such server was ever known"
    elif entry.deleted:
        why = "the server is deleted"
    elif entry.host == claim.host:
        why = "the server has its claim there"
    else:
        why = f"the server belongs to {entry.host or 'no host'}"
    looked = claim.host in look.inspections
    # The live directory at home is what the other claim there is for; any other files may be what this one is for.
    at_home = entry is not None and claim.host == entry.host
    theirs = [one for one in seen.directories if not (at_home and one.state == "live")] if seen else []
    safe = looked and not theirs and claim.server not in look.after.open
    if safe:
        remedy = f"{REPAIR} gives it back."
    elif looked and claim.server not in look.after.open:
        remedy = f"Its files are still on {claim.host}: remove them first, then {REPAIR} gives it back."
    else:
        remedy = f"When {claim.host} can be looked at, and no migration of the server is open, {REPAIR} gives it back."
    epoch, number = (entry.epoch, entry.number) if entry else (0, 0)
    repair = Repair(Mend.GIVE_CLAIM_BACK, claim.host, claim.server, epoch, number, claim=claim.id)
    return Finding(
        Kind.UNBALANCED_CLAIM,
        claim.host,
        claim.server,
        f"{_room(claim.room)} is claimed by attempt {claim.attempt}, and {why}.",
        remedy,
        entry.name if entry else "",
        f"claim {claim.id}",
        repair if safe else None,
    )


def _overcommitted(look: Look) -> Iterator[Finding]:
    used: dict[str, Resources] = {}
    for claim in look.after.claims:
        used[claim.host] = used.get(claim.host, NOTHING) + claim.room
    for host in look.after.hosts.values():
        lacking = used.get(host.name, NOTHING).lacking(host.limit)
        if lacking:
            yield Finding(
                Kind.OVERCOMMITTED,
                host.name,
                None,
                "; ".join(lacking).replace("needed", "claimed").replace("free", "may be claimed") + ".",
                f"Move servers away (`whimbrel migrate`), or give {host.name} more room or ratio in its settings.",
            )


def _debts(look: Look) -> Iterator[Finding]:
    for debt in look.after.debts:
        if look.after.at - debt.created_at < DEBT_PATIENCE:
            continue
        host = look.after.hosts.get(debt.host)
        entry = look.server(debt.server)
        remedy = (
            f"The host answers and is asked again each minute: look into its agent's log why {debt.step} does not end."
            if host is not None and host.up
            else f"Bring {debt.host} back (its network, its `whimbrel agent`); it pays by itself."
        )
        age = round((look.after.at - debt.created_at) / 60)
        detail = f"{debt.step} is owed since {age} min."
        yield Finding(
            Kind.UNPAID_DEBT, debt.host, debt.server, detail, remedy, entry.name if entry else "", f"debt {debt.id}"
        )


def _open(look: Look) -> Iterator[Finding]:
    for migration in look.after.open.values():
        entry = look.server(migration.server)
        name = entry.name if entry else ""
        what = f"migration {migration.id}"
        if migration.fence is not None:
            yield Finding(
                Kind.NEEDS_FENCE,
                migration.fence,
                migration.server,
                f"Migration {migration.id} ({migration.kind}) cannot go on without the word of {migration.fence}.",
                f"Bring {migration.fence} back and it goes on by itself; `whimbrel show {migration.id}` tells where "
                f"it stands.",
                name,
                what,
            )
        waits = migration.window_open and migration.window_closes_at is None
        if waits and look.after.at - (migration.window_since or look.after.at) > WINDOW_PATIENCE:
            days = int((look.after.at - (migration.window_since or 0.0)) // 86400)
            yield Finding(
                Kind.OLD_WINDOW,
                migration.source,
                migration.server,
                f"Migration {migration.id} waits for its verdict for {days} days; {migration.source} keeps a copy.",
                f"`whimbrel confirm {migration.server}`, or `whimbrel revert {migration.server}`.",
                name,
                what,
            )


def _room(room: Resources) -> str:
    return f"{room.vcpus} CPUs, {room.ram_mb} MiB, {room.disk_gb} GiB"
