"""Runs audits: reads the books, asks the hosts, compares, looks a second time, and mends if it is told to.

What is found in one look only is forgotten: a guest may have stopped by itself, a process may have been about to end.
What both looks show, some seconds apart, and with books that agree before and after each, is drift.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

import structlog

from whimbrel.audit import books, repair
from whimbrel.audit.books import Books
from whimbrel.audit.compare import compare
from whimbrel.audit.findings import Finding, Identity, Kind, Repair
from whimbrel.audit.look import Look
from whimbrel.bus import queues
from whimbrel.bus.port import Bus
from whimbrel.domain.errors import BusError, NotFound
from whimbrel.migration.presence import Inspect, Inspection
from whimbrel.ops import clock, metrics
from whimbrel.store.engine import Store
from whimbrel.store.outbox import Relay

ANSWER = 10.0
"""Seconds in which a host must have answered; a heartbeat's look at the hypervisor takes six at most."""
PAUSE = 3.0
"""Seconds between the two looks: time for the heartbeats that the first one has asked for, and for the books."""
ASKING = 64
"""Hosts that are asked at once."""

_SERVER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ATTEMPT = re.compile(r"[0-9]{1,18}-[0-9]{1,9}")
_DIRECTORY = re.compile(r"/[\w./-]{1,1000}", re.ASCII)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Report:
    """What an audit found. `hosts` are those that were looked at; `mended` the findings that were repaired."""

    at: float
    seconds: float
    hosts: tuple[str, ...]
    findings: tuple[Finding, ...]
    mended: frozenset[Identity] = frozenset()

    @property
    def drift(self) -> int:
        """How many findings are drift that is still there."""
        return sum(finding.kind.drift and finding.identity not in self.mended for finding in self.findings)


@dataclass
class Auditor:
    """Audits one cloud; `down_after` is after how many seconds of silence a host counts as down."""

    store: Store
    bus: Bus
    relay: Relay
    down_after: float
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ASKING))

    async def run(self, *, mend: bool = False, host: str | None = None) -> Report:
        """Audit once, and tell (and mend) what is on this host, or on all.

        Raise NotFound when there is no such host, Unavailable when the database does not answer.
        """
        began = clock.monotonic()
        last = await self._look(None)
        if host is not None and host not in last.after.hosts:
            raise NotFound(f"There is no host {host}; `whimbrel hosts` lists them.")
        found = {finding.identity: finding for finding in compare(last)}
        if found:
            await asyncio.sleep(PAUSE)
            last = await self._look(last.after.at)
            found = {finding.identity: finding for finding in compare(last) if finding.identity in found}
        findings = tuple(finding for finding in found.values() if host in (None, finding.host))
        mended = frozenset(await self._mend(findings)) if mend else frozenset()
        report = Report(last.after.at, clock.monotonic() - began, tuple(last.inspections), findings, mended)
        if host is None:
            _count(report)
        return report

    async def _look(self, heard_after: float | None) -> Look:
        before = await self.store.read(books.read, self.down_after)
        inspections, silent = await self._ask(before)
        seen = [one for inspection in inspections.values() for one in inspection.servers]
        attempts = {number for one in seen for directory in one.directories for number in _migration(directory.attempt)}
        after = await self.store.read(books.read, self.down_after, {one.server for one in seen}, attempts)
        return Look(before, after, inspections, silent, heard_after, await self._dead_letters())

    async def _dead_letters(self) -> int:
        """Count what nobody could take; a broker that does not answer has no host answering either."""
        try:
            return await self.bus.waiting(queues.DEAD_LETTERS)
        except BusError as error:
            _log.warning("dead letters were not counted", reason=str(error))
            return 0

    async def _ask(self, known: Books) -> tuple[dict[str, Inspection], dict[str, str]]:
        """Ask every host that is up, all at the same time; say of each other one why it was not looked at."""
        answers = await asyncio.gather(*(self._ask_host(host.name, host.up) for host in known.hosts.values()))
        inspections = {answer.host: answer for answer in answers if isinstance(answer, Inspection)}
        silent = {host: answer for host, answer in zip(known.hosts, answers, strict=True) if isinstance(answer, str)}
        return inspections, silent

    async def _ask_host(self, host: str, up: bool) -> Inspection | str:
        if not up:
            return f"Host {host} is down: no heartbeat comes, or it was forced down."
        async with self._asking:
            try:
                answer = await self.bus.call(queues.agent(host), Inspect(), timeout=ANSWER)
            except BusError as error:
                return str(error)
        if isinstance(answer, Inspection) and _is_sound(answer, host):
            return answer
        return f"Host {host} answered with something that is no inspection of it; look whether its agent is ours."

    async def _mend(self, findings: tuple[Finding, ...]) -> list[Identity]:
        """Do what can be done, server by server; several findings may share one repair."""
        wanted: dict[str, set[Repair]] = {}
        for finding in findings:
            if finding.repair is not None:
                wanted.setdefault(finding.repair.server, set()).add(finding.repair)
        done: set[Repair] = set()
        for server, repairs in wanted.items():
            applied, sent = await self.store.write(repair.apply, server, list(repairs))
            await self.relay.send_now(sent)
            done.update(applied)
        for one in done:
            metrics.audit_repairs.labels(one.mend).inc()
            _log.warning("audit repair", mend=one.mend, on=one.host, server=one.server)
        return [finding.identity for finding in findings if finding.repair in done]


def _is_sound(inspection: Inspection, host: str) -> bool:
    """Return whether every name has the form of one: names become commands that an administrator is told to type."""
    attempts = [one.attempt for seen in inspection.servers for one in seen.directories if one.attempt is not None]
    return (
        inspection.host == host
        and all(_SERVER.fullmatch(seen.server) for seen in inspection.servers)
        and all(_ATTEMPT.fullmatch(attempt) for attempt in attempts)
        and _DIRECTORY.fullmatch(inspection.instances_dir) is not None
    )


def _migration(attempt: str | None) -> list[int]:
    """Return the number of the migration that an attempt's label names, if it is one that a database can hold."""
    number = (attempt or "").partition("-")[0]
    return [int(number)] if number.isdecimal() and len(number) < 10 else []


def _count(report: Report) -> None:
    left = [finding.kind for finding in report.findings if finding.identity not in report.mended]
    for kind in Kind:
        metrics.audit_findings.labels(kind).set(left.count(kind))
    metrics.audit_at.set(report.at)


def tell_news(report: Report, known: set[Identity]) -> set[Identity]:
    """Log the drift that was not known, and what is gone; return what is known now."""
    drift = {finding.identity: finding for finding in report.findings if finding.kind.drift}
    for identity, finding in drift.items():
        if identity not in known:
            about = {"on": finding.host, "server": finding.server, "detail": finding.detail, "remedy": finding.remedy}
            _log.warning("drift", kind=finding.kind, **about)
    for kind, host, server, what in sorted(known - drift.keys(), key=str):
        _log.info("drift is gone", kind=kind, on=host, server=server, what=what)
    return set(drift)
