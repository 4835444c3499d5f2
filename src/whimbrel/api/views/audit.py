"""An audit's report as JSON."""

from __future__ import annotations

from typing import Any

from whimbrel.audit.auditor import Report
from whimbrel.audit.findings import Finding, Kind
from whimbrel.ops import clock


def report(found: Report) -> dict[str, Any]:
    """Return the whole report, in the order of the kinds: what is worst first."""
    order = {kind: place for place, kind in enumerate(Kind)}
    findings = sorted(found.findings, key=lambda one: (order[one.kind], one.host or "", one.server or ""))
    return {
        "at": clock.iso(found.at),
        "seconds": round(found.seconds, 2),
        "hosts": sorted(found.hosts),
        "drift": found.drift,
        "findings": [_finding(one, mended=one.identity in found.mended) for one in findings],
    }


def _finding(finding: Finding, *, mended: bool) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "means": finding.kind.means,
        "drift": finding.kind.drift,
        "host": finding.host,
        "server_id": finding.server,
        "server_name": finding.name or None,
        "what": finding.what or None,
        "detail": finding.detail,
        "remedy": finding.remedy,
        "repairable": finding.repair is not None,
        "repaired": mended,
    }
