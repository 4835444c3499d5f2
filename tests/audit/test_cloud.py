"""Drift made by hand in a cloud of real processes: told with its remedy, mended if that is safe, and then gone."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from sqlalchemy import Connection, delete, func, select, update

from tests.audit.drifting import Drifting, Json, kinds, only, row
from tests.cloud import wait_for
from whimbrel.audit.auditor import PAUSE
from whimbrel.store.tables import claims, debts, migrations

DRIFT = 6


def test_files_and_guests_that_belong_to_nobody_are_told_and_mended(cloud: Drifting) -> None:
    server, deleted = cloud.server("h1"), cloud.server("h2")
    cloud.move(server, "h2")
    attempt = cloud.books(newest_attempt, server)
    cloud.act(server, "migrate", {"host": "h3"})
    cloud.wait(server, "VERIFY_RESIZE")
    cloud.act(server, "revertResize")
    cloud.wait(server, "ACTIVE")
    reverted = cloud.books(newest_attempt, server)
    cloud.delete(deleted)
    code, report = cloud.audit()
    assert (code, report["findings"], sorted(report["hosts"])) == (0, [], ["h1", "h2", "h3"])

    cloud.directory("h1", f"{server}.sealed-{attempt}", attempt)
    cloud.directory("h3", f"{server}.incoming-{reverted}", reverted)
    cloud.directory("h3", deleted, attempt)
    with cloud.guests("h1") as guests, cloud.guests("h2") as at_home:
        guests[server] = at_home[server] | {"boot": cloud.boot("h1")}
    with cloud.guests("h3") as guests:
        guests[deleted] = {"state": "running", "boot": cloud.boot("h3"), "definition": "{}"}
    code, report = cloud.audit()
    assert code == DRIFT and report["drift"] == 5
    assert kinds(report) == ["orphan_file"] * 3 + ["runs_without_grant", "two_runners"]
    assert all(found["repairable"] and "--repair" in found["remedy"] for found in report["findings"]), report
    assert only(report, "two_runners")["host"] == "h1" and only(report, "two_runners")["server_id"] == server
    assert only(report, "runs_without_grant")["host"] == "h3"
    assert cloud.directories("h1", server) == [f".sealed-{attempt}"]

    code, report = cloud.audit("--repair")
    assert code == DRIFT and report["drift"] == 1 and len(report["findings"]) == 5
    wait_for("the order to stop it", lambda: kinds(cloud.audit()[1]) == ["orphan_file"])
    code, report = cloud.audit("--repair")  # first the guest is stopped, then the files go that it may have used
    assert code == 0 and [found["repaired"] for found in report["findings"]] == [True]
    wait_for("the clean-up", lambda: cloud.audit()[1]["findings"] == [] and not cloud.books(unpaid))
    assert [cloud.directories(host, server) for host in ("h1", "h2", "h3")] == [[], [""], []]
    assert cloud.directories("h3", deleted) == []
    with cloud.guests("h1") as stray, cloud.guests("h2") as at_home, cloud.guests("h3") as gone:
        assert (server in stray, at_home[server]["state"], deleted in gone) == (False, "running", False)
    cloud.delete(server)


def test_what_may_be_somebodys_is_told_and_left_alone(cloud: Drifting) -> None:
    server = cloud.server("h1")
    copy = cloud.directory("h2", server, "1-1")
    stranger = cloud.directory("h3", "99999999-2222-4333-8444-555555555555", "1-1")
    nobodys = cloud.directory("h3", f"{server}.incoming-999-1", "999-1")
    note = cloud.instances("h3") / "notes.txt"
    note.write_text("mine")
    with cloud.guests("h3") as guests:
        guests["88888888-2222-4333-8444-555555555555"] = {"state": "stopped", "boot": "", "definition": "{}"}
    for words in ((), ("--repair",)):
        code, report = cloud.audit(*words)
        assert code == DRIFT and report["drift"] == 3
        assert kinds(report) == ["foreign_domain", "orphan_file", "orphan_file", "strange_file", "two_copies"]
        assert not any(found["repairable"] or found["repaired"] for found in report["findings"])
        assert f"rm -r {copy}" in only(report, "two_copies")["remedy"]
    assert all((path / "disk-0").read_text() == "somebody's bytes\n" for path in (copy, stranger, nobodys))
    assert note.read_text() == "mine"
    assert kinds(cloud.audit("--host", "h2")[1]) == ["two_copies"] and cloud.audit("--host", "h1")[0] == 0
    for path in (copy, stranger, nobodys):
        shutil.rmtree(path)
    note.unlink()
    with cloud.guests("h3") as guests:
        guests.clear()
    cloud.delete(server)
    assert cloud.audit()[1]["findings"] == []


def test_books_out_of_balance_are_told_and_mended(cloud: Drifting) -> None:
    server, other = cloud.server("h1"), cloud.server("h2")
    room = {"vcpus": 1, "ram_mb": 128, "disk_gb": 1}
    owner = {"host": "h3", "server_id": server, "attempt": "77-1"}
    before = cloud.books(claims_of, server, other)
    cloud.books(row, claims, **owner, **room)
    cloud.books(lambda tx: tx.execute(delete(claims).where(claims.c.server_id == other)))
    code, report = cloud.audit()
    assert (code, kinds(report)) == (DRIFT, ["unbalanced_claim"] * 2)
    code, report = cloud.audit("--repair")
    assert code == 0 and [found["repaired"] for found in report["findings"]] == [True, True]
    assert cloud.audit()[1]["findings"] == []
    assert cloud.books(claims_of, server, other) == before
    for one in (server, other):
        cloud.delete(one)


def test_a_server_that_is_not_as_its_host_should_have_it_is_told(cloud: Drifting) -> None:
    running, lost, undefined = (cloud.server("h1") for _ in range(3))
    with cloud.guests("h1") as guests:
        guests.pop(undefined)
        guests[running]["state"] = "unknown"
    shutil.move(cloud.instances("h1") / lost, cloud.fake.dir / "elsewhere")
    code, report = cloud.audit("--repair")
    assert (code, kinds(report)) == (DRIFT, ["missing_domain", "missing_files", "process_without_domain"])
    assert f"openstack server reboot --hard {undefined}" in only(report, "missing_domain")["remedy"]
    shutil.move(cloud.fake.dir / "elsewhere", cloud.instances("h1") / lost)
    with cloud.guests("h1") as guests:
        guests[running]["state"] = "running"
    cloud.act(undefined, "reboot", {"type": "HARD"})  # as the remedy says
    cloud.wait(undefined, "ACTIVE")
    assert cloud.audit()[1]["findings"] == []

    cloud.move(running, "h2")
    shutil.copytree(cloud.instances("h2") / running, cloud.instances("h3") / running)
    shutil.move(cloud.instances("h2") / running, cloud.fake.dir / "elsewhere")
    code, report = cloud.audit("--repair")
    assert code == DRIFT and only(report, "wrong_host")["host"] == "h3" and not only(report, "wrong_host")["repaired"]
    shutil.move(cloud.fake.dir / "elsewhere", cloud.instances("h2") / running)
    shutil.rmtree(cloud.instances("h3") / running)
    for server in (running, lost, undefined):
        cloud.delete(server)


def test_the_undo_window_its_copy_and_its_age_are_looked_at(cloud: Drifting) -> None:
    server = cloud.server("h1")
    cloud.act(server, "migrate", {"host": "h2"})
    cloud.wait(server, "VERIFY_RESIZE")
    assert cloud.audit()[1]["findings"] == []
    attempt = cloud.books(newest_attempt, server)
    a_month_ago = migrations.c.finished_at - 30 * 86400
    cloud.books(lambda tx: tx.execute(update(migrations).where(migrations.c.open).values(finished_at=a_month_ago)))
    code, report = cloud.audit()
    assert (code, kinds(report)) == (0, ["old_window"])  # worth a word, and no drift
    copy = cloud.instances("h1") / f"{server}.sealed-{attempt}"
    shutil.move(copy, cloud.fake.dir / "elsewhere")
    code, report = cloud.audit()
    assert (code, kinds(report)) == (DRIFT, ["missing_undo_copy", "old_window"])
    shutil.move(cloud.fake.dir / "elsewhere", copy)
    cloud.delete(server)


def test_a_host_that_does_not_answer_is_never_clean_and_its_debt_is_told(cloud: Drifting) -> None:
    server = cloud.server("h3")
    agent = cloud.fake.pids["agent3"]
    os.kill(agent, signal.SIGSTOP)
    try:
        code, report = cloud.audit()
        assert (code, kinds(report), report["hosts"]) == (DRIFT, ["not_looked_at"], ["h1", "h2"])
        assert only(report, "not_looked_at")["host"] == "h3"
        order = {"host": "h3", "server_id": server, "migration_id": 1, "attempt": "1-1", "step": "x", "verb": "do"}
        cloud.books(row, debts, **order, order={}, created_at=1.0, sent_at=9e9)
        code, report = cloud.audit()
        assert kinds(report) == ["not_looked_at", "unpaid_debt"]
    finally:
        os.kill(agent, signal.SIGCONT)
    cloud.books(lambda tx: tx.execute(delete(debts)))
    wait_for("the host", lambda: cloud.audit()[1]["findings"] == [])
    cloud.delete(server)


def test_ten_moves_at_once_are_no_drift_whenever_one_looks(cloud: Drifting) -> None:
    with ThreadPoolExecutor(12) as people:
        moved = list(people.map(lambda number: cloud.server(f"h{1 + number % 3}"), range(10)))
        over = Event()
        looking = [people.submit(look_until, cloud, over) for _ in range(2)]
        moving = [people.submit(there_and_back, cloud, server, number) for number, server in enumerate(moved)]
        for one in moving:
            one.result()
        over.set()
        looked = [one.result() for one in looking]
    reports = [report for some, _ in looked for report in some]
    midway = sum(number for _, number in looked)
    assert [found for report in reports for found in report["findings"]] == []
    assert len(reports) >= 10 and midway >= 5, (len(reports), midway)
    # And hardly ever did a first look make a second one needed.
    assert sorted(report["seconds"] for report in reports)[len(reports) // 2] < PAUSE


def look_until(cloud: Drifting, over: Event) -> tuple[list[Json], int]:
    """Audit again and again; return the reports, and how many of them came while a step was at work."""
    reports, midway = [], 0
    while not over.is_set():
        reports.append(cloud.wire.http.get(f"{cloud.wire.root}/whimbrel/v1/audit").raise_for_status().json()["audit"])
        midway += bool(cloud.books(at_work))
    return reports, midway


def there_and_back(cloud: Drifting, server: str, number: int) -> None:
    """Move a server, keep it there or take it back, stop it and delete it."""
    cloud.act(server, "migrate")
    cloud.wait(server, "VERIFY_RESIZE")
    cloud.act(server, "confirmResize" if number % 2 else "revertResize")
    cloud.wait(server, "ACTIVE")
    cloud.act(server, "os-stop")
    cloud.wait(server, "SHUTOFF")
    cloud.delete(server)


def at_work(tx: Connection) -> int:
    """Return how many migrations have a step at work."""
    busy = select(func.count()).select_from(migrations).where(migrations.c.open, migrations.c.window_open.is_(False))
    return int(tx.execute(busy).scalar_one())


def newest_attempt(tx: Connection, server: str) -> str:
    """Return the label of the server's newest migration that moved it."""
    query = select(migrations.c.id, migrations.c.attempt).where(
        migrations.c.server_id == server, migrations.c.kind == "migration"
    )
    found = tx.execute(query.order_by(migrations.c.id.desc()).limit(1)).one()
    return f"{found.id}-{found.attempt}"


def unpaid(tx: Connection) -> int:
    """Return how many debts are unpaid."""
    return int(tx.execute(select(func.count()).select_from(debts).where(debts.c.paid_at.is_(None))).scalar_one())


def claims_of(tx: Connection, *names: str) -> list[tuple[object, ...]]:
    """Return what is claimed for servers, by whatever attempt."""
    c = claims.c
    query = select(c.server_id, c.host, c.vcpus, c.ram_mb, c.disk_gb, c.owed).where(c.server_id.in_(names))
    return sorted(tuple(found) for found in tx.execute(query))
