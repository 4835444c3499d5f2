"""Compares what is on the hosts with what is written down, and both with what must hold; believes nobody.

It reads processes, domains, files, taps, the agents' ledgers and the controller's database, each for itself and
none through Whimbrel's own code.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cloud import Cloud, Server
from whimbrel.lab.hosts import Host

STRAY = re.compile(r"disks\.receive|^ssh |^qemu-img|^genisoimage|^qemu-nbd")


@dataclass(frozen=True)
class Rest:
    """Where a server has come to rest: its host, whether it runs, and the other host while it may go back there."""

    server: Server
    host: str
    running: bool
    sealed_at: str | None = None


class Auditor:
    """The look from outside at the hosts of a lab."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.lab = cloud.lab

    def findings(self, rests: list[Rest]) -> list[str]:
        """Return everything that is not as it must be when exactly these servers are there; each is a sentence."""
        found = []
        for name, host in self.lab.hosts.items():
            found += [f"{name}: {what}" for what in self._host(host, rests)]
        return found + self._grants(rests) + self._books(rests)

    def ledger(self, host: Host) -> Path:
        """Return where the host's agent keeps its ledger."""
        return host.dir / "agent/ledger.db"

    # --- one host ---------------------------------------------------------------------------------

    def _host(self, host: Host, rests: list[Rest]) -> Iterator[str]:
        here = {rest.server.id for rest in rests if rest.host == host.name}
        running = {rest.server.id for rest in rests if rest.host == host.name and rest.running}
        sealed = {rest.server.id for rest in rests if rest.sealed_at == host.name}
        for guest, ids in (("a process", self.processes_of_guests(host)), ("a domain", self.domains(host))):
            wanted = running if guest == "a process" else here
            yield from (f"{guest} of {one} too many" for one in sorted(ids - wanted))
            yield from (f"{guest} of {one} is missing" for one in sorted(wanted - ids))
        yield from self._files(host, here, sealed)
        lines = self.cloud.processes(host.name)
        yield from (f"process left over: {line[:80]}" for line in lines if STRAY.search(line))
        yield from self.taps(host, running)
        for (count,) in _ask(self.ledger(host), "SELECT count(*) FROM children"):
            if count:
                yield f"{count} recorded child processes"

    def _files(self, host: Host, here: set[str], sealed: set[str]) -> Iterator[str]:
        root = self.cloud.instances(host.name)
        names = {path.name for path in root.iterdir() if path.name not in ("_base", "fake-guests.json")}
        kept = {name for name in names if name.partition(".sealed-")[0] in sealed and ".sealed-" in name}
        if len(kept) != len(sealed):
            yield f"sealed copies {sorted(kept)} of servers {sorted(sealed)}"
        yield from (f"files {name} left over" for name in sorted(names - here - kept))
        yield from (f"files of {name} are missing" for name in sorted(here - names))
        parts = [path.name for path in root.glob("_base/*") if path.suffix not in ("", ".lock")]
        yield from (f"part of an image left over: {name}" for name in parts)

    def processes_of_guests(self, host: Host) -> set[str]:
        """Return the servers that a QEMU process on this host belongs to."""
        lines = self.cloud.processes(host.name)
        return {match[1] for line in lines if (match := re.search(r"^\S*qemu-system.* -uuid (\S+)", line))}

    def domains(self, host: Host) -> set[str]:
        """Return the servers that the hypervisor knows on this host."""
        return set(host.exec(["virsh", "list", "--all", "--uuid"], timeout=20).stdout.split())

    def taps(self, host: Host, running: set[str]) -> list[str]:
        """Return what is wrong with the wires of the guests that run here."""
        found = []
        taps = re.findall(r"^vnet\d+.*", host.exec(["ip", "-brief", "link"]).stdout, re.M)
        if len(taps) != len(running):
            found.append(f"{len(taps)} taps for {len(running)} guests")
        bridged = host.exec(["ip", "-brief", "link", "show", "master", "br-guests"]).stdout
        if len(re.findall(r"^vnet\d+", bridged, re.M)) != len(taps):
            found.append("a tap is not on the bridge")
        return found

    # --- the ledgers and the database ----------------------------------------------------------------

    def _grants(self, rests: list[Rest]) -> list[str]:
        """The newest grant of each server is with the host that runs it, in this boot, and no order is unfinished."""
        found, ledgers = [], {}
        for name, host in self.lab.hosts.items():
            boot = _text(host.dir / "run/whimbrel/boot")
            ledger = self.ledger(host)
            rows = _ask(ledger, "SELECT server, epoch, sealed, grant_epoch, grant_boot FROM servers")
            ledgers[name] = {row[0]: row for row in rows}
            for server, step in _ask(
                ledger,
                "SELECT server, json_extract(body, '$.step') FROM orders JOIN servers USING (server, number) "
                "WHERE ended_at IS NULL",
            ):
                found.append(f"{name}: order {step} of {server} has no end")
            for server, row in ledgers[name].items():
                ledgers[name][server] = (*row[:4], row[4] == boot)
        epochs = dict(_ask(self.lab.dir / "whimbrel.db", "SELECT id, epoch FROM servers"))
        for rest in rests:
            one = rest.server.id
            seen = {name: ledger[one] for name, ledger in ledgers.items() if one in ledger}
            free = [name for name, row in seen.items() if row[2] is None and row[3] is not None and row[4]]
            if rest.running and free != [rest.host]:
                found.append(f"{one} may run on {free or 'no host'} and belongs to {rest.host}")
            if not rest.running and set(free) - {rest.host}:
                found.append(f"{one} may run on {free} and belongs to {rest.host}")
            newest = max((row[1] for row in seen.values()), default=0)
            if newest > epochs.get(one, 0):
                found.append(f"{one}: a host has seen epoch {newest}, the database {epochs.get(one)}")
        return found

    def _books(self, rests: list[Rest]) -> list[str]:
        database = self.lab.dir / "whimbrel.db"
        found = []
        for host, step, server in _ask(database, "SELECT host, step, server_id FROM debts WHERE paid_at IS NULL"):
            found.append(f"{host} owes {step} of {server}")
        waiting = {rest.server.id for rest in rests if rest.sealed_at}
        query = "SELECT server_id, kind, window_open FROM migrations WHERE open"
        for server, kind, window in _ask(database, query):
            if not window or server not in waiting:
                found.append(f"{kind} of {server} has not ended")
        claims = sorted(_ask(database, "SELECT server_id, host, owed FROM claims"))
        wanted = [(rest.server.id, rest.host, 0) for rest in rests]
        wanted += [(rest.server.id, rest.sealed_at, 0) for rest in rests if rest.sealed_at]
        if claims != sorted(wanted):
            found.append(f"claims {sorted(set(claims) ^ set(wanted)) or claims}")
        written = {row[0]: row[1:] for row in _ask(database, "SELECT id, host, power_state FROM servers")}
        for rest in rests:
            host, power = written[rest.server.id]
            if host != rest.host or (power == "running") != rest.running:
                found.append(f"{rest.server.id} is written down as {power} on {host}")
        (sent,) = _ask(database, "SELECT count(*) FROM outbox")
        return found + ([f"{sent[0]} messages were never sent"] if sent[0] else [])


def verdict(rest: Rest) -> str | None:
    """Return what the guest itself has to complain of, None when it found everything that it was promised."""
    if not rest.running:
        return None
    try:
        rest.server.assert_nothing_lost(rest.host)
    except AssertionError as error:
        return f"{rest.server.id}: {str(error)[:400]}"
    return None


def _ask(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Read a SQLite file as it is on the disk; nothing if it is not there yet."""
    if not database.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as sql:
        return sql.execute(query).fetchall()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
