"""The same stories on both databases: what the conductor's transactions rely on holds on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import ENGINES, fresh
from tests.protocol import by_hand as clusters
from tests.protocol.by_hand import LARGE, Cluster
from whimbrel.domain.migration import Kind, Verdict
from whimbrel.migration import protocols
from whimbrel.store.tables import debts


@pytest.fixture(params=ENGINES, autouse=True)
def on_engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the clusters of one test a database of this engine."""
    store = fresh(request.param, tmp_path)
    monkeypatch.setattr(clusters, "_empty_store", lambda: store)
    yield
    store.close()


@pytest.mark.parametrize(("verdict", "home"), [(Verdict.CONFIRM, "h2"), (Verdict.REVERT, "h1")])
def test_a_move_and_its_verdict(verdict: Verdict, home: str) -> None:
    cluster = Cluster()
    cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)
    cluster.run()
    cluster.verdict(verdict)
    cluster.run()
    cluster.settled(home)


def test_a_target_that_fails_is_followed_by_the_next_one() -> None:
    cluster = Cluster()
    cluster.hosts["h2"].fail_at = "verify_disks"
    cluster.start()
    cluster.run()
    cluster.verdict(Verdict.CONFIRM)
    cluster.run()
    cluster.settled("h3")


def test_a_debt_is_paid_when_the_host_is_back() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    cluster.hosts["h1"].up = False
    cluster.verdict(Verdict.CONFIRM)
    for _ in range(30):
        cluster.deliver()
        cluster.tick()
    assert [row.paid_at for row in cluster.rows(debts)] == [None], cluster.story()
    cluster.boot(cluster.hosts["h1"])
    for _ in range(5):
        cluster.deliver()
        cluster.tick()
    cluster.settled("h2")
    assert cluster.rows(debts)[0].paid_at is not None


def test_a_guest_is_started_again_after_its_hosts_boot() -> None:
    cluster = Cluster()
    cluster.power_cut(cluster.hosts["h1"])
    cluster.run()
    cluster.settled("h1")


def test_a_server_is_deleted_in_its_undo_window() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.run()
    cluster.delete()
    cluster.run()
    assert cluster.server().deleted_at is not None
    assert not [host for host in cluster.hosts.values() if host.live or host.sealed or host.domains]
