"""The audit as a loop in the conductor, and what a process shows of itself to Prometheus."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx2
import pytest
from structlog.testing import capture_logs

from tests.unit.compute_cloud import add_host
from whimbrel.bus.codec import registry
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.conductor.service import Conductor
from whimbrel.migration.messages import MESSAGES
from whimbrel.migration.presence import Inspect, Inspection
from whimbrel.ops import metrics, settings
from whimbrel.ops.errors import SettingsError
from whimbrel.store.counts import MEANINGS, read_counts
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata


@pytest.mark.anyio
async def test_the_conductor_logs_each_drift_when_it_comes_and_when_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whimbrel.audit.auditor.PAUSE", 0.0)
    monkeypatch.setattr("whimbrel.audit.auditor.ANSWER", 0.05)
    store = Store(f"sqlite:///{tmp_path}/books.db")
    store.write_now(metadata.create_all)
    store.write_now(add_host, "h1")
    bus = LocalBus(LocalBroker(), registry(*MESSAGES))
    await bus.start()
    rounds = 0

    async def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += seconds == 77
        if rounds == 3:
            await bus.consume("agent.h1", answer)
        await real_sleep(0.01)

    async def answer(message: object) -> Inspection:
        assert isinstance(message, Inspect)
        return Inspection("h1", "/srv", "", ())

    real_sleep = asyncio.sleep
    monkeypatch.setattr("whimbrel.conductor.service.asyncio.sleep", sleep)
    with capture_logs() as logs:
        work = asyncio.create_task(
            Conductor(
                settings.Settings(conductor=settings.Conductor(audit_every=77)), store, bus, lambda image: ""
            ).run(),
        )
        async with asyncio.timeout(20):
            while not any(line["event"] == "drift is gone" for line in logs):
                assert not work.done()
                await real_sleep(0.01)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    drift = [line for line in logs if line["event"] == "drift"]
    assert [(line["kind"], line["on"]) for line in drift] == [("not_looked_at", "h1")] and "Bring h1" in drift[0][
        "remedy"
    ]
    await bus.close()
    store.close()


def test_a_port_of_its_own_shows_what_the_database_says_now(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/books.db")
    store.write_now(metadata.create_all)
    metrics.show(metrics.Reading(lambda: read_counts(store, 60.0), MEANINGS))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=r"change \[metrics\]"):
            metrics.serve(settings.Metrics(port=port))
    metrics.serve(settings.Metrics(port=port))
    page = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert "whimbrel_hosts_up 0.0" in page and "whimbrel_needs_fence 0.0" in page
    store.write_now(add_host, "h1")
    page = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert "whimbrel_hosts_up 1.0" in page
    assert all(f"# HELP whimbrel_{name} {meaning}" in page for name, meaning in MEANINGS.items())
