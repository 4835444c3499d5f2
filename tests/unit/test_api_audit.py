"""Audits and metrics through the API: who may, what is asked of hosts, and what a host that is silent means."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cloud import Cloud
from tests.unit.compute_cloud import active, furnish
from whimbrel.domain.server import PowerState
from whimbrel.migration.presence import Inspect, Inspection, SeenDirectory, SeenServer

pytestmark = pytest.mark.anyio

ANY = "99999999-2222-4333-8444-555555555555"


async def host(cloud: Cloud, name: str, *servers: SeenServer) -> None:
    """Let a host answer for as long as the test lasts."""

    async def answer(message: object) -> Inspection:
        assert isinstance(message, Inspect)
        return Inspection(name, "/srv", "", servers)

    await cloud.services.bus.consume(f"agent.{name}", answer)


async def audit(cloud: Cloud, method: str = "GET", query: str = "", **body: Any) -> Any:
    await cloud.services.bus.start()
    json = {"json": body} if body else {}
    answer = await cloud.http.request(method, f"/whimbrel/v1/audit{query}", headers=cloud.token("admin"), **json)
    assert answer.status_code == 200, answer.text
    return answer.json()["audit"]


async def test_only_an_administrator_may_audit_or_read_metrics(cloud: Cloud) -> None:
    furnish(cloud)
    for method, path in (("GET", "/whimbrel/v1/audit"), ("POST", "/whimbrel/v1/audit"), ("GET", "/metrics")):
        body = {"json": {"repair": False}} if method == "POST" else {}
        assert (await cloud.http.request(method, path, **body)).status_code == 401
        assert (await cloud.http.request(method, path, headers=cloud.token("alice"), **body)).status_code == 403
        assert (await cloud.http.request(method, path, headers=cloud.token("bob"), **body)).status_code == 403


@pytest.mark.parametrize("body", [{}, {"repair": "yes"}, {"repair": True, "more": 1}, [], None])
async def test_a_body_that_makes_no_sense_is_refused(cloud: Cloud, body: Any) -> None:
    answer = await cloud.http.post("/whimbrel/v1/audit", json=body, headers=cloud.token("admin"))
    assert answer.status_code == 400, answer.text


async def test_a_report_tells_each_finding_and_the_metrics_count_them(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whimbrel.audit.auditor.PAUSE", 0.0)
    furnish(cloud)
    server = await active(cloud, host="h1")
    copy = SeenServer(server, None, (SeenDirectory("live", "1-1", 0),), epoch=1)
    at_home = SeenServer(server, PowerState.RUNNING, (SeenDirectory("live", "1-1", 0),), 1, 0, 1, True)
    await host(cloud, "h1", at_home)
    await host(cloud, "h2", copy)
    report = await audit(cloud)
    assert report["hosts"] == ["h1", "h2"] and report["drift"] == 2
    assert [(row["kind"], row["host"], row["repairable"]) for row in report["findings"]] == [
        ("two_copies", "h2", False),
        ("unbalanced_claim", "h1", True),  # the tests' cloud claims nothing when it builds
    ]
    assert all(row["means"] and row["detail"] and row["remedy"] for row in report["findings"])
    assert [row["kind"] for row in (await audit(cloud, query="?host=h2"))["findings"]] == ["two_copies"]
    page = (await cloud.http.get("/metrics", headers=cloud.token("admin"))).text
    assert 'whimbrel_audit_findings{kind="two_copies"} 1.0' in page
    report = await audit(cloud, "POST", repair=True)
    assert [row["repaired"] for row in report["findings"]] == [False, True] and report["drift"] == 1
    assert [row["kind"] for row in (await audit(cloud))["findings"]] == ["two_copies"]
    missing = await cloud.http.get("/whimbrel/v1/audit?host=h9", headers=cloud.token("admin"))
    assert missing.status_code == 404 and "There is no host h9" in missing.text


async def test_a_host_that_does_not_answer_is_a_finding(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.audit.auditor.PAUSE", 0.0)
    monkeypatch.setattr("whimbrel.audit.auditor.ANSWER", 0.05)
    furnish(cloud)
    await host(cloud, "h1")
    report = await audit(cloud)
    assert (report["hosts"], report["drift"]) == (["h1"], 1)
    assert [(row["kind"], row["host"]) for row in report["findings"]] == [("not_looked_at", "h2")]


@pytest.mark.parametrize(
    "lie",
    [
        Inspection("h1", "/srv", "", ()),
        Inspection("h2", "/srv; reboot", "", ()),
        Inspection("h2", "/srv", "", (SeenServer("x.reboot", None, ()),)),
        Inspection("h2", "/srv", "", (SeenServer(ANY, None, (SeenDirectory("live", "1-1.reboot", 0),)),)),
    ],
)
async def test_a_host_cannot_put_words_into_a_remedy(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, lie: Inspection
) -> None:
    monkeypatch.setattr("whimbrel.audit.auditor.PAUSE", 0.0)
    furnish(cloud)
    await host(cloud, "h1")

    async def answer(message: object) -> Inspection:
        return lie

    await cloud.services.bus.consume("agent.h2", answer)
    report = await audit(cloud)
    assert [(row["kind"], row["host"]) for row in report["findings"]] == [("not_looked_at", "h2")]
    assert "reboot" not in str(report)
