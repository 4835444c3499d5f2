"""The auditor: what must hold at every boundary, and what must be so when nothing is under way any more.

It trusts nobody: it compares the hosts' processes and files, their ledgers, the database, and the list of the writes
that guests were told are durable.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.protocol.host import SERVER, Broken, Copy, Host
from whimbrel.domain.server import PowerState

if TYPE_CHECKING:
    from tests.protocol.cluster import Cluster

CAPACITY = {"vcpus": 8, "ram_mb": 1024, "disk_gb": 20}


@dataclass(frozen=True)
class Books:
    """What the database says, read past the product's own queries."""

    server: sqlite3.Row
    migrations: list[sqlite3.Row]
    claims: list[sqlite3.Row]
    debts: list[sqlite3.Row]
    taken_back: frozenset[tuple[int, int]]
    made_anew: frozenset[tuple[int, int]]

    @property
    def newest(self) -> sqlite3.Row | None:
        """The newest migration."""
        return self.migrations[-1] if self.migrations else None

    @property
    def deleting(self) -> bool:
        """Whether the server is being deleted, or is gone."""
        newest = self.newest
        asked = newest is not None and "delete" in (newest["kind"], newest["verdict"])
        return asked or self.server["deleted_at"] is not None


def read(connection: sqlite3.Connection) -> Books:
    """Read the books."""
    done = connection.execute(
        "SELECT step, migration_id, journal.attempt, kind FROM journal JOIN migrations ON migrations.id = migration_id "
        "WHERE step IN ('take_back', 'hand_over') AND mark = 'done'"
    ).fetchall()
    return Books(
        connection.execute("SELECT * FROM servers").fetchone(),
        connection.execute("SELECT * FROM migrations ORDER BY id").fetchall(),
        connection.execute("SELECT * FROM claims").fetchall(),
        connection.execute("SELECT * FROM debts WHERE paid_at IS NULL").fetchall(),
        frozenset((row[1], row[2]) for row in done if row[0] == "take_back"),
        frozenset((row[1], row[2]) for row in done if row[0] == "hand_over" and row[3] == "evacuation"),
    )


def audit(cluster: Cluster, *, at_rest: bool = False) -> None:
    """Check what must always hold; with `at_rest` also that nothing is left over. Raise Broken with the story."""
    try:
        books = cluster.books()
        _give_up_what_a_revert_gave_up(cluster, books)
        _give_up_what_was_on_an_evacuated_host(cluster, books)
        _one_runner(cluster, books)
        _one_whole_copy(cluster, books)
        _claims(cluster, books)
        if at_rest:
            _nothing_under_way(cluster, books)
            _the_server_is_where_the_books_say(cluster, books)
            _claims_are_those_of_the_server(cluster, books)
    except AssertionError as error:
        raise Broken(f"{error}\n{cluster.story()}") from None


def _give_up_what_a_revert_gave_up(cluster: Cluster, books: Books) -> None:
    """A revert that took the server back gives up what was written after the hand-over, and nothing else does."""
    for migration, attempt in books.taken_back - cluster.taken_back:
        cluster.taken_back.add((migration, attempt))
        label = f"{migration}-{attempt}"
        kept = [host.sealed[label] for host in cluster.hosts.values() if label in host.sealed]
        assert len(kept) == 1, "S6: the source's sealed copy is not there to go back to"
        writes = kept[0].writes
        assert cluster.history[: len(writes)] == writes, "S2: the sealed copy is not what the guest had written"
        cluster.given_up = len(cluster.history) - len(writes)
        del cluster.history[len(writes) :]


def _give_up_what_was_on_an_evacuated_host(cluster: Cluster, books: Books) -> None:
    """An evacuation without shared storage makes the disks anew, and says so; one that is undone has lost nothing."""
    for attempt in books.made_anew - cluster.made_anew.keys():
        cluster.made_anew[attempt] = list(cluster.history)
        cluster.history.clear()
    for attempt in cluster.made_anew.keys() - books.made_anew:
        assert not cluster.history, "S2: an evacuation was undone after its guest had run"
        cluster.history.extend(cluster.made_anew.pop(attempt))


def _one_runner(cluster: Cluster, books: Books) -> None:
    """S1, S3, S4: one runner, with a grant of this boot, let run on record, on a disk that lacks no write."""
    running = [host for host in cluster.hosts.values() if host.process is PowerState.RUNNING]
    assert len(running) <= 1, f"S1: split brain, {[host.name for host in running]}"
    for host in running:
        assert host.open_files is not None and host.open_files.writes == cluster.history, (
            f"S3: the guest at {host.name} runs on {_tail(host.open_files)} of {cluster.history[-5:]}"
        )
        assert host.tpm == cluster.history, f"S3: the TPM at {host.name} remembers {host.tpm} of {cluster.history[-5:]}"
        seen = cluster.agents[host.name].record()
        assert seen is not None and seen.grant_epoch is not None, f"S1: {host.name} runs it without a grant"
        assert seen.grant_boot == f"boot-{host.boot}", f"S1: the grant of {host.name} is of an earlier boot"
        assert (seen.released_epoch or 0) >= host.let_run_at, f"S1: {host.name} lets it run before writing that down"
        assert books.server["epoch"] >= seen.grant_epoch, "S4: a grant from the future"
        for other in cluster.agents.values():
            rival = other.record() if other.host is not host else None
            valid = rival is not None and rival.sealed is None and rival.grant_boot == f"boot-{other.host.boot}"
            assert not valid, f"S1: {host.name} runs it, and {other.host.name} may run it too"


def _one_whole_copy(cluster: Cluster, books: Books) -> None:
    """S2: some host has every write that the guest was told is durable."""
    if cluster.history and not books.deleting:
        copies = [copy for host in cluster.hosts.values() for copy in host.copies()]
        assert any(copy.writes == cluster.history for copy in copies), "S2: no whole copy is left"


def _claims(cluster: Cluster, books: Books) -> None:
    """S5: no host is promised twice over, and files stand only where their room is claimed."""
    for name, host in cluster.hosts.items():
        mine = [row for row in books.claims if row["host"] == name]
        for what, limit in CAPACITY.items():
            assert sum(row[what] for row in mine) <= limit, f"S5: {name} has promised too much {what}"
        if host.copies() and books.server["deleted_at"] is None:
            assert any(row["disk_gb"] for row in mine), f"S5: the files at {name} stand on room that nobody claimed"
    owners = [(row["host"], row["attempt"]) for row in books.claims]
    assert len(owners) == len(set(owners)), "S5: one owner has two claims"


def _nothing_under_way(cluster: Cluster, books: Books) -> None:
    """L1, L3: every migration ended or waits for its user; nobody owes anything."""
    for row in books.migrations:
        assert not row["open"] or row["window_open"], f"L1: migration {row['id']} has not ended"
    assert not books.debts, f"L3: {[(row['host'], row['step']) for row in books.debts]} is still owed"
    for host in cluster.hosts.values():
        assert not host.incoming, f"L3: {host.name} has {list(host.incoming)} left over"
        assert not host.channels, f"L3: a channel of {host.name} is still open"


def _the_server_is_where_the_books_say(cluster: Cluster, books: Books) -> None:
    server = books.server
    gone = server["deleted_at"] is not None or server["host"] is None
    window = next((row for row in books.migrations if row["open"] and row["window_open"]), None)
    for host in cluster.hosts.values():
        sealed = [f"{window['id']}-{window['attempt']}"] if window and window["source"] == host.name else []
        assert list(host.sealed) == sealed, f"L3: {host.name} keeps {list(host.sealed)} instead of {sealed}"
        if gone or host.name != server["host"]:
            assert host.live is None, f"L3: a live directory is left at {host.name}"
            assert host.defined is None and host.process is None, f"L3: a guest is left at {host.name}"
            assert host.tpm is None, f"L3: what a TPM remembers is left at {host.name}"
    if not gone:
        _is_whole(cluster, cluster.hosts[server["host"]], server)


def _is_whole(cluster: Cluster, host: Host, server: sqlite3.Row) -> None:
    """S2, S7 and the truth of what is shown: the copy, the definition, the size, the power state."""
    flavor = json.loads(server["flavor"])
    assert host.live is not None, f"S2: nothing at {host.name}, where the server belongs"
    assert host.live.writes == cluster.history, f"S2: {host.name} has {_tail(host.live)} of {cluster.history[-5:]}"
    assert host.tpm == cluster.history, f"S2: the TPM at {host.name} remembers {host.tpm} of {cluster.history[-5:]}"
    assert host.live.size_mb == flavor["disk_gb"] * 1024, f"S7: the disk has {host.live.size_mb} MiB"
    assert host.defined == f"{SERVER} vcpus={flavor['vcpus']}", f"S7: {host.name} defines {host.defined}"
    runs = "running" if host.process is PowerState.RUNNING else "stopped"
    assert host.process is not PowerState.PAUSED, f"S1: {host.name} left it half started"
    assert server["power_state"] == runs, f"it is {runs}, and shown as {server['power_state']}"


def _claims_are_those_of_the_server(cluster: Cluster, books: Books) -> None:
    """S5: one claim for each place that the server has, in the size that it has there."""
    server = books.server
    expected: list[tuple[str, int]] = []
    if server["deleted_at"] is None and server["host"] is not None:
        expected.append((server["host"], json.loads(server["flavor"])["vcpus"]))
    windows = [row for row in books.migrations if row["open"] and row["window_open"]]
    expected += [(row["source"], json.loads(row["old_flavor"])["vcpus"]) for row in windows]
    found: list[Any] = [(row["host"], row["vcpus"]) for row in books.claims]
    assert sorted(found) == sorted(expected), f"S5: claims {found} instead of {expected}"


def _tail(copy: Copy | None) -> str:
    return "nothing" if copy is None else f"{copy.attempt}: ...{copy.writes[-5:]}"
