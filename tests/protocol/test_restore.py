"""The database is put back to an older state while servers went on: nothing starts twice, and the hosts heal it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.protocol.by_hand import SERVER, Cluster, Host
from whimbrel.conductor import hosts as host_books
from whimbrel.domain.errors import Conflict
from whimbrel.domain.migration import Kind, Verdict
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.migration.presence import GuestReport, Heartbeat
from whimbrel.store import doubts, migrations
from whimbrel.store.tables import claims, metadata, servers, sightings

Backup = dict[str, list[dict[str, Any]]]


def back_up(cluster: Cluster) -> Backup:
    """Copy every row."""
    return {
        table.name: [row._asdict() for row in cluster.rows(table)]
        for table in metadata.sorted_tables
        if table.name != "outbox"
    }


def restore(cluster: Cluster, backup: Backup) -> None:
    """Put the rows back, and the counters; what was in flight is lost."""

    def put_back(tx: Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            tx.execute(table.delete())
        for table in metadata.sorted_tables:
            for row in backup.get(table.name, []):
                tx.execute(table.insert().values(row))
        newest = max((row["id"] for row in backup["migrations"]), default=0)
        tx.execute(text("UPDATE sqlite_sequence SET seq = :newest WHERE name = 'migrations'"), {"newest": newest})

    cluster.store.write_now(put_back)
    cluster.queue.clear()


def take_up(cluster: Cluster, *, backwards: bool = False) -> None:
    """Begin as a conductor does that starts: every host is heard first, in one order or the other."""
    cluster.time += 10.0
    for host in sorted(cluster.hosts.values(), key=lambda host: host.name, reverse=backwards):
        if host.up:
            cluster.beat(host)
    for migration in cluster.store.read_now(migrations.open_ids):
        cluster._take(cluster.store.write_now(cluster.driver.advance, migration))


def calm(cluster: Cluster, ticks: int = 14) -> None:
    """Let time pass and everything be delivered; the invariants are checked at each message."""
    for _ in range(ticks):
        cluster.deliver()
        cluster.tick()
    cluster.deliver()


def healed(cluster: Cluster) -> Host:
    """Check that the database says what is so; return the host that runs the server."""
    cluster.audit()
    runners = [host for host in cluster.hosts.values() if host.running == "running"]
    assert len(runners) == 1, cluster.story()
    row = cluster.server()
    assert (row.host, row.power_state, row.doubted_at, row.fault) == (runners[0].name, "running", None, None), row
    at = {claim.host for claim in cluster.rows(claims)}
    assert runners[0].name in at, (at, cluster.story())
    migration = cluster.migration_or_none()
    if migration is None or not migration.open:
        assert at == {runners[0].name}, (at, cluster.story())
        assert not cluster.rows(sightings)
    return runners[0]


def move(cluster: Cluster, verdict: Verdict | None) -> None:
    cluster.start()
    cluster.run()
    if verdict is not None:
        cluster.verdict(verdict)
        cluster.run()


def confirmed(cluster: Cluster) -> None:
    move(cluster, Verdict.CONFIRM)


def reverted(cluster: Cluster) -> None:
    move(cluster, Verdict.REVERT)


def waiting(cluster: Cluster) -> None:
    move(cluster, None)


def moved_twice(cluster: Cluster) -> None:
    move(cluster, Verdict.CONFIRM)
    move(cluster, Verdict.CONFIRM)


def moved_and_back(cluster: Cluster) -> None:
    move(cluster, Verdict.CONFIRM)
    move(cluster, Verdict.REVERT)


TRUTHS: list[Callable[[Cluster], None]] = [confirmed, reverted, waiting, moved_twice, moved_and_back]


def with_backup_at(point: int, truth: Callable[[Cluster], None]) -> tuple[Cluster, Backup | None]:
    """Let the truth happen, with a backup of message number `point`, 0 before it all; None when there are fewer."""
    cluster, left = Cluster(), point - 1
    kept = [] if point else [back_up(cluster)]
    step = cluster.step

    def counting() -> None:
        nonlocal left
        if left == 0:
            kept.append(back_up(cluster))
        left -= 1
        step()

    cluster.step = counting  # type: ignore[method-assign]
    truth(cluster)
    cluster.step = step  # type: ignore[method-assign]
    return cluster, kept[0] if kept else None


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_backup_of_any_moment_heals(truth: Callable[[Cluster], None]) -> None:
    """The backup is taken before the story and before each of its messages; the hosts are those of its end."""
    points = range(0, 200, 3 if truth in (moved_twice, moved_and_back) else 1)
    for point, backwards in ((0, True), (1, True), *((point, False) for point in points)):
        cluster, backup = with_backup_at(point, truth)
        if backup is None:
            assert point > 10
            return
        there = next(host.name for host in cluster.hosts.values() if host.running == "running")
        starts = cluster.trace.count(f"{there}.resume")
        restore(cluster, backup)
        take_up(cluster, backwards=backwards)
        calm(cluster)
        assert healed(cluster).name == there, cluster.story()
        assert cluster.trace.count(f"{there}.resume") == starts, f"it was started again\n{cluster.story()}"
        migration = cluster.migration_or_none()
        if migration is not None and migration.open:
            assert migration.window_open, cluster.story()
            cluster.verdict(Verdict.CONFIRM)
            calm(cluster)
            assert healed(cluster).name == there
        if point % 4:
            continue
        cluster.start()  # and it can be moved again, once its target has told of orders that only it remembers
        calm(cluster)
        if cluster.migration().reason == doubts.OVERTAKEN:
            assert healed(cluster).name == there
            cluster.start()
            calm(cluster)
        assert cluster.migration().window_open, cluster.story()
        cluster.verdict(Verdict.REVERT)
        calm(cluster, 4)
        assert healed(cluster).name == there
    raise AssertionError("the story has no end")


@pytest.mark.parametrize("truth", [waiting, confirmed])
def test_nothing_starts_while_the_host_that_runs_it_is_silent(truth: Callable[[Cluster], None]) -> None:
    """The one case that the ledgers do not cover: hence `whimbrel db restored`."""
    for point in range(8):
        cluster, backup = with_backup_at(point, truth)
        assert backup is not None
        assert cluster.hosts["h2"].running == "running"
        restore(cluster, backup)
        cluster.store.write_now(doubts.doubt_everything)
        cluster.hosts["h2"].up = False
        take_up(cluster)
        calm(cluster, 30)
        assert cluster.hosts["h1"].running is None, cluster.story()
        with pytest.raises(Conflict, match="not known where server"):
            cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.START)
        cluster.hosts["h2"].up = True
        calm(cluster)
        assert healed(cluster).name == "h2"


def test_in_step_with_the_hosts_a_restored_move_goes_on() -> None:
    for point in range(10):
        cluster, backup = with_backup_at(point, waiting)
        assert backup is not None
        cluster = Cluster()
        cluster.start()
        for _ in range(point):
            cluster.step()
        backup = back_up(cluster)
        restore(cluster, backup)
        cluster.store.write_now(doubts.doubt_everything)
        take_up(cluster)
        calm(cluster)
        assert cluster.migration().window_open, cluster.story()
        assert healed(cluster).name == "h2"


def test_power_actions_since_the_backup_are_learnt_and_the_next_one_is_obeyed() -> None:
    cluster = Cluster()
    backup = back_up(cluster)
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.STOP)
    cluster.run()
    assert cluster.hosts["h1"].running is None
    restore(cluster, backup)
    take_up(cluster)
    calm(cluster, 3)
    assert cluster.server().power_state == "stopped"
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.START)
    calm(cluster, 3)
    assert healed(cluster).name == "h1"


def test_a_server_that_was_deleted_is_shown_in_error_and_not_made_again() -> None:
    cluster = Cluster()
    backup = back_up(cluster)
    cluster.delete()
    cluster.run()
    restore(cluster, backup)
    cluster.audit = lambda: None  # type: ignore[method-assign]  # there is no whole copy, because that was wanted
    take_up(cluster)
    calm(cluster)
    row = cluster.server()
    assert row.fault is not None and row.fault["message"] == doubts.LOST and row.doubted_at is None
    assert not [host for host in cluster.hosts.values() if host.live or host.running or host.domains]
    cluster.hosts["h1"].fail_at = "create_paused"  # as on a host that lacks the disks
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.START)
    calm(cluster)
    assert not [host for host in cluster.hosts.values() if host.live or host.running]
    cluster.delete()
    calm(cluster)
    assert cluster.server().deleted_at is not None and not cluster.rows(claims)


def test_a_server_that_was_created_since_is_reported_and_left_alone() -> None:
    cluster = Cluster()

    def forget(tx: Connection) -> None:
        tx.execute(claims.delete())
        tx.execute(servers.delete())

    cluster.store.write_now(forget)
    for _ in range(5):
        cluster.time += 20.0
        cluster.beat(cluster.hosts["h1"])
    seen = cluster.rows(sightings)
    assert [(each.server_id, each.host) for each in seen] == [(SERVER, "h1")]
    assert not cluster.queue and cluster.hosts["h1"].running == "running" and cluster.hosts["h1"].live


def test_a_host_cannot_take_a_server_that_its_own_host_runs() -> None:
    cluster = Cluster()
    for _ in range(5):
        lie(cluster, GuestReport(SERVER, "running", 9, 99, False, 9))
        calm(cluster, 2)
    row = cluster.server()
    assert (row.host, row.epoch, row.doubted_at) == ("h1", 1, None)
    confirmed(cluster)
    assert healed_but_for_the_lie(cluster) == "h2"


def test_absurd_numbers_are_not_believed() -> None:
    cluster = Cluster()
    lie(cluster, GuestReport(SERVER, "running", 1_900_000_000, 1_900_000_000, False, 1_900_000_000))
    cluster.tick()
    assert not cluster.rows(sightings) and cluster.server().epoch == 1


def lie(cluster: Cluster, line: GuestReport) -> None:
    """Let h3 say something that is not so."""
    said: list[Heartbeat] = []
    write_now = cluster.store.write_now

    def listen(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function is host_books.hear:
            said.append(args[0])
            args = (replace(args[0], guests=(line,)), *args[1:])
        return write_now(function, *args, **kwargs)

    cluster.store.write_now = listen  # type: ignore[method-assign,assignment]
    try:
        cluster.beat(cluster.hosts["h3"])
    finally:
        cluster.store.write_now = write_now  # type: ignore[method-assign]


def healed_but_for_the_lie(cluster: Cluster) -> str:
    cluster.audit()
    return str(cluster.server().host)
