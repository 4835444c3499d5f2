"""The comparison: from the books and the hosts' own words to findings. Pure; the same look gives the same findings.

A server that is not steady is passed over: what a migration has in hand is its own, and it ends. What a debt covers is
the debt's.
"""

from __future__ import annotations

from collections.abc import Iterator

from whimbrel.audit.accounts import REPAIR, accounts
from whimbrel.audit.books import ServerEntry
from whimbrel.audit.findings import Finding, Kind, Mend, Repair
from whimbrel.audit.look import ALIVE, Look, has_live, name_of
from whimbrel.domain.migration import Kind as MigrationKind
from whimbrel.domain.migration import Outcome
from whimbrel.domain.server import PowerState
from whimbrel.migration.presence import Inspection, SeenDirectory, SeenServer


def compare(look: Look) -> list[Finding]:
    """Return every difference of one look, hosts first, then servers, then accounts."""
    return [*_hosts(look), *_servers(look), *accounts(look)]


# --- hosts ----------------------------------------------------------------------------------------


def _hosts(look: Look) -> Iterator[Finding]:
    for host, reason in look.silent.items():
        remedy = f"Bring {host} back (its network, its `whimbrel agent`), then audit again."
        yield Finding(Kind.NOT_LOOKED_AT, host, None, reason, remedy)
    for host, inspection in look.inspections.items():
        if inspection.fault:
            remedy = f"Mend the hypervisor of {host} (`systemctl status libvirtd`), then audit again."
            yield Finding(Kind.NOT_LOOKED_AT, host, None, inspection.fault, remedy)
        yield from _litter(look, host, inspection)
        yield from _ledger(look, host, inspection)


def _litter(look: Look, host: str, inspection: Inspection) -> Iterator[Finding]:
    for name in inspection.strange:
        detail = f"{inspection.instances_dir}/{name} is there."
        yield Finding(Kind.STRANGE_FILE, host, None, detail, "Look whose it is; Whimbrel never touches it.", what=name)
    if not look.idle(host):
        return
    restart = f"Restart the agent of {host}: it clears away at its start what a crash left."
    for name in inspection.leftovers:
        detail = f"{inspection.instances_dir}/{name} was left behind."
        yield Finding(Kind.LEFTOVER, host, None, detail, restart, what=name)
    for child in inspection.children:
        yield Finding(Kind.LEFTOVER_PROCESS, host, None, f"Still there: {child}.", restart, what=child)


def _ledger(look: Look, host: str, inspection: Inspection) -> Iterator[Finding]:
    """A host that was never granted a server that lives there has lost its memory, and its promises with it."""
    strangers = []
    for seen in inspection.servers:
        entry = look.server(seen.server)
        at_home = entry is not None and entry.host == host and not entry.deleted and entry.epoch > 0
        if at_home and seen.grant_epoch is None and has_live(seen) and look.steady(seen.server):
            strangers.append(seen.server)
    if strangers:
        yield Finding(
            Kind.LEDGER_LOST,
            host,
            None,
            f"It has no record of being granted {len(strangers)} servers that live there, {strangers[0]} for one.",
            f"See that each guest runs there only; give it a new grant with `openstack server reboot --hard "
            f"{strangers[0]}`; then `openstack compute service set --enable {host} nova-compute`.",
        )


# --- servers --------------------------------------------------------------------------------------


def _servers(look: Look) -> Iterator[Finding]:
    for server in sorted(look.places.keys() | look.after.servers.keys()):
        if not look.steady(server):
            continue
        entry = look.server(server)
        if entry is not None and not entry.deleted:
            yield from _at_home(look, entry)
        for host, seen in look.places.get(server, {}).items():
            if look.owes(host, server):
                continue
            if entry is None:
                yield from _unknown(look, host, seen)
            elif entry.deleted:
                yield from _deleted(look, host, seen, entry)
            else:
                yield from _living(look, host, seen, entry)


def _unknown(look: Look, host: str, seen: SeenServer) -> Iterator[Finding]:
    """The books never had this server. With a directory of our name it may be ours, of another database."""
    for directory in seen.directories:
        yield _file(look, host, seen, directory, None, "the database never knew this server")
    if seen.power is not None and not seen.directories and seen.number == 0:
        detail = f"Guest {seen.server} is {seen.power} there."
        yield Finding(Kind.FOREIGN_DOMAIN, host, seen.server, detail, "None: Whimbrel never touches it.")
    elif seen.power is not None:
        detail = f"Guest {seen.server} is {seen.power} there, and the database never knew it."
        remedy = f"If nobody needs it, on {host}: `virsh destroy {seen.server}; virsh undefine {seen.server}`."
        kind = Kind.RUNS_WITHOUT_GRANT if seen.power in ALIVE else Kind.ORPHAN_DOMAIN
        yield Finding(kind, host, seen.server, detail, remedy)


def _deleted(look: Look, host: str, seen: SeenServer, entry: ServerEntry) -> Iterator[Finding]:
    """A delete is for ever, so whatever is left of the server may go, guest and all."""
    repair = Repair(Mend.REMOVE_DELETED, host, entry.id, entry.epoch, entry.number)
    if look.behind(entry, seen):
        yield _behind(host, seen, entry)
        return
    remedy = f"{REPAIR} orders {host} to remove all of it."
    if seen.power is not None:
        kind = Kind.ORPHAN_DOMAIN if seen.power is PowerState.STOPPED else Kind.RUNS_WITHOUT_GRANT
        detail = f"The guest is {seen.power} there, and the server is deleted."
        yield Finding(kind, host, entry.id, detail, remedy, entry.name, repair=repair)
    for directory in seen.directories:
        name = name_of(entry.id, directory)
        detail = f"{name} ({_size(directory)}) is there, and the server is deleted."
        yield Finding(Kind.ORPHAN_FILE, host, entry.id, detail, remedy, entry.name, name, repair)


def _living(look: Look, host: str, seen: SeenServer, entry: ServerEntry) -> Iterator[Finding]:
    if look.behind(entry, seen):
        yield _behind(host, seen, entry)
        return
    window = look.window(entry.id)
    for directory in seen.directories:
        if directory.state == "live":
            if host != entry.host:
                yield _second_copy(look, host, seen, directory, entry)
        elif directory.state == "incoming":
            yield _file(look, host, seen, directory, entry, "no migration is filling it")
        elif host == entry.host and not has_live(seen):
            continue  # told of as MISSING_FILES
        elif window is None or (window.source, window.attempt) != (host, directory.attempt):
            yield _file(look, host, seen, directory, entry, "no undo window needs it")
    if seen.power is PowerState.UNKNOWN:
        yield Finding(
            Kind.PROCESS_WITHOUT_DOMAIN,
            host,
            entry.id,
            f"`pgrep -af {entry.id}` on {host} shows it.",
            f"Restart libvirtd on {host}, so that it finds the process again; if it does not belong there, "
            f"on {host}: `kill $(pgrep -f -- '-uuid {entry.id}')`.",
            entry.name,
        )
    elif host != entry.host and seen.power is not None:
        yield _stray(look, host, seen, entry)


def _behind(host: str, seen: SeenServer, entry: ServerEntry) -> Finding:
    return Finding(
        Kind.BOOKS_BEHIND,
        host,
        entry.id,
        f"Its ledger has seen epoch {seen.epoch}, order {seen.number}; the database is at epoch {entry.epoch}, order "
        f"{entry.number}.",
        f"Was the database restored? If {host} is where `whimbrel show {entry.id}` has it, the next heartbeat heals "
        f"it; else bring a newer database back. Repair nothing by hand before.",
        entry.name,
    )


def _second_copy(look: Look, host: str, seen: SeenServer, directory: SeenDirectory, entry: ServerEntry) -> Finding:
    """A live directory elsewhere: a second copy if the first is there, else the books are wrong about the place."""
    at_home = look.seen(entry.host, entry.id)
    path = f"{look.inspections[host].instances_dir}/{entry.id}"
    if entry.host in look.inspections and (at_home is None or not has_live(at_home)):
        return Finding(
            Kind.WRONG_HOST,
            host,
            entry.id,
            f"Live on {host} (guest {seen.power or 'not defined'}); the books say {entry.host}, which has no copy.",
            f"If this is the newest copy: stop the guest there (`virsh destroy {entry.id}`), take {path} to the same "
            f"place on {entry.host}, and `openstack server reboot --hard {entry.id}`.",
            entry.name,
        )
    return Finding(
        Kind.TWO_COPIES,
        host,
        entry.id,
        f"{path} ({_size(directory)}, made by attempt {directory.attempt or 'unknown'}) is live beside that on "
        f"{entry.host}.",
        f"See by their dates and consoles that {entry.host} has the newest; then on {host}: `rm -r {path}`.",
        entry.name,
        name_of(entry.id, directory),
    )


def _stray(look: Look, host: str, seen: SeenServer, entry: ServerEntry) -> Finding:
    """The hypervisor knows the guest on a host where it does not belong."""
    at_home = look.seen(entry.host, entry.id)
    both = seen.power in ALIVE and at_home is not None and at_home.power in ALIVE
    kind = Kind.TWO_RUNNERS if both else Kind.RUNS_WITHOUT_GRANT if seen.power in ALIVE else Kind.ORPHAN_DOMAIN
    safe = (
        look.is_home_safe(entry)
        and (seen.grant_epoch is None or seen.grant_epoch < entry.epoch)
        and entry.id not in look.after.open
    )
    if safe:
        remedy = f"{REPAIR} orders {host} to stop and forget the guest; its files stay."
    else:
        remedy = (
            f"Look which host has the newest writes; on the other one: `virsh destroy {entry.id}; virsh undefine "
            f"{entry.id}`. It is not done by itself, because {entry.host or 'no host'} does not prove that it has the "
            f"live copy and the grant."
        )
    return Finding(
        kind,
        host,
        entry.id,
        f"The guest is {seen.power} there, and the server belongs to {entry.host or 'no host'}"
        f"{', where it runs too' if both else ''}.",
        remedy,
        entry.name,
        repair=Repair(Mend.STOP_STRAY, host, entry.id, entry.epoch, entry.number) if safe else None,
    )


def _file(
    look: Look, host: str, seen: SeenServer, directory: SeenDirectory, entry: ServerEntry | None, why: str
) -> Finding:
    """A directory that nothing accounts for; it may go if its attempt is over and the server is safe without it."""
    name = name_of(seen.server, directory)
    repair = _removal(look, host, directory, entry) if entry is not None else None
    path = f"{look.inspections[host].instances_dir}/{name}"
    if repair is not None:
        remedy = f"{REPAIR} orders {host} to remove it."
    elif entry is not None and not look.has_copy_at_home(entry):
        remedy = f"It may be the newest copy: leave {path} alone until {entry.host or 'a host'} is seen to have one."
    else:
        remedy = f"Look whether somebody needs it; if not, on {host}: `rm -r {path}`."
    detail = f"{name} ({_size(directory)}) is there, and {why}."
    return Finding(Kind.ORPHAN_FILE, host, seen.server, detail, remedy, entry.name if entry else "", name, repair)


def _removal(look: Look, host: str, directory: SeenDirectory, entry: ServerEntry) -> Repair | None:
    """Return how the directory can be removed without a doubt, None when there is one."""
    made_by = look.closed(entry.id, directory.attempt)
    if made_by is None or directory.attempt is None or entry.id in look.after.open:
        return None
    unborn = entry.host is None and made_by.kind == MigrationKind.BUILD
    if not unborn and not look.is_home_safe(entry):
        return None
    confirmed = made_by.outcome == Outcome.CONFIRMED and directory.attempt == made_by.attempt
    if directory.state == "incoming" and made_by.gave_up(directory.attempt):
        mend = Mend.DISCARD_INCOMING
    elif directory.state == "sealed" and confirmed and host == made_by.source:
        mend = Mend.RETIRE_SEALED
    else:
        return None
    return Repair(mend, host, entry.id, entry.epoch, entry.number, directory.attempt)


def _at_home(look: Look, entry: ServerEntry) -> Iterator[Finding]:
    """What the host that the server belongs to should have, and do."""
    window = look.window(entry.id)
    if window is not None and window.source in look.inspections and not look.owes(window.source or "", entry.id):
        there = look.seen(window.source, entry.id)
        sealed = {d.attempt for d in there.directories if d.state == "sealed"} if there else set()
        if window.attempt not in sealed:
            yield Finding(
                Kind.MISSING_UNDO_COPY,
                window.source,
                entry.id,
                f"{entry.id}.sealed-{window.attempt} is not there, so a revert would be refused.",
                f"Keep the server where it is: `whimbrel confirm {entry.id}`.",
                entry.name,
            )
    host = entry.host
    if host is None or host not in look.inspections or look.owes(host, entry.id):
        return
    seen = look.seen(host, entry.id)
    if seen is None or not has_live(seen):
        if any(has_live(other) for place, other in look.places.get(entry.id, {}).items() if place != host):
            return  # told of as WRONG_HOST
        yield _missing_files(look, host, seen, entry)
    elif look.answered(host) and not look.behind(entry, seen):
        yield from _guest_at_home(look, seen, entry)


def _missing_files(look: Look, host: str, seen: SeenServer | None, entry: ServerEntry) -> Finding:
    """Its host has no live directory; a sealed one there is what an unseal that failed has left, and is whole."""
    kept = [name_of(entry.id, one) for one in seen.directories if one.state == "sealed"] if seen else []
    root = look.inspections[host].instances_dir
    if kept:
        detail = f"{root}/{kept[0]} is there, and was never given its name back."
        remedy = f"`openstack server start {entry.id}` brings it back."
    else:
        unseen = f" ({', '.join(look.silent)} could not be looked at)" if look.silent else ""
        detail = f"{root}/{entry.id} is not there, nor a live copy on another host{unseen}."
        remedy = (
            f"Bring it back from a backup and `openstack server reboot --hard {entry.id}`; or give the server up: "
            f"`openstack server delete {entry.id}`."
        )
    return Finding(Kind.MISSING_FILES, host, entry.id, detail, remedy, entry.name)


def _guest_at_home(look: Look, seen: SeenServer, entry: ServerEntry) -> Iterator[Finding]:
    host = entry.host or ""
    again = f"`openstack server reboot --hard {entry.id}`"
    if seen.power is None:
        remedy = f"{again} defines it anew and starts it."
        yield Finding(
            Kind.MISSING_DOMAIN, host, entry.id, "The hypervisor does not know the guest.", remedy, entry.name
        )
        return
    if seen.power in ALIVE and not seen.granted:
        detail = f"The guest is {seen.power}, and the ledger of {host} holds no grant for it in this boot."
        remedy = f"{again} gives it one; `openstack server stop {entry.id}` stops it."
        yield Finding(Kind.RUNS_WITHOUT_GRANT, host, entry.id, detail, remedy, entry.name)
    if look.heard_after is not None and look.after.hosts[host].heard_at <= look.heard_after:
        return
    if entry.power in ALIVE and seen.power is PowerState.STOPPED:
        remedy = f"`openstack server start {entry.id}`."
        yield Finding(Kind.STOPPED_GUEST, host, entry.id, f"Stopped on {host}.", remedy, entry.name)
    if entry.power is PowerState.STOPPED and seen.power in ALIVE:
        remedy = f"`openstack server stop {entry.id}`."
        yield Finding(Kind.RUNNING_GUEST, host, entry.id, f"It is {seen.power} on {host}.", remedy, entry.name)


def _size(directory: SeenDirectory) -> str:
    return f"{directory.bytes / 2**20:.1f} MiB"
