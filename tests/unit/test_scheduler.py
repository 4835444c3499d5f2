"""Choosing a host: every filter refuses with a reason, weights rank, and two claims never share the last room."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from whimbrel.conductor import hosts as host_books
from whimbrel.domain.claim import Capacity, Resources
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import SelectTargets
from whimbrel.migration.presence import Heartbeat
from whimbrel.migration.protocols import COLD
from whimbrel.ops import clock
from whimbrel.ops.settings import Conductor, Scheduler
from whimbrel.scheduler import table
from whimbrel.scheduler.choose import choose
from whimbrel.store import claims
from whimbrel.store.engine import Store
from whimbrel.store.tables import hosts, metadata

REQUEST = SelectTargets(
    vcpus=2, ram_mb=512, disk_gb=5, architecture="x86_64", exclude=(), source="h1", same_host_allowed=False,
    forced_host=None, protocol="cold", version=COLD.version,
)  # fmt: skip


def beat(name: str, **more: object) -> Heartbeat:
    """A host with 4 CPUs, 2 GiB and 40 GB."""
    values = {
        "host": name, "address": "10.0.0.1", "boot": "1", "ledger": name,
        "protocols": {"cold": COLD.version}, "vcpus": 4,
        "ram_mb": 2048, "disk_gb": 40, "reserved_vcpus": 0, "reserved_ram_mb": 0, "reserved_disk_gb": 0,
        "cpu_ratio": 1.0, "ram_ratio": 1.0, "disk_ratio": 1.0, "architecture": "x86_64", "hypervisor": "fake",
        "hypervisor_version": 1, "root_disk": "qcow2", "free_disk_gb": 40, "uptime": "",
    }  # fmt: skip
    return msgspec.convert(values | more, Heartbeat)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A database with the source h1 and a good host h2."""
    made = Store(f"sqlite:///{tmp_path}/test.db")
    made.write_now(lambda tx: metadata.create_all(tx))
    for name in ("h1", "h2"):
        made.write_now(host_books.hear, beat(name), Conductor())
    return made


def refused(store: Store, request: SelectTargets = REQUEST) -> dict[str, str]:
    """Which filter refused which host."""
    answer = choose(store.read_now(table.read, clock.now(), 60), request, Scheduler())
    return {refusal.host: refusal.filter for refusal in answer.refusals}


def add(store: Store, name: str, **more: object) -> None:
    """Add one more host."""
    store.write_now(host_books.hear, beat(name, **more), Conductor())


def test_each_filter_refuses_with_its_own_name(store: Store) -> None:
    add(store, "arm", architecture="aarch64")
    add(store, "old", protocols={"cold": 0})
    add(store, "few", vcpus=1)
    add(store, "tiny", ram_mb=256)
    add(store, "full", disk_gb=4)
    for name, values in (
        ("off", {"enabled": False}),
        ("dead", {"heard_at": clock.now() - 61}),
        ("cut", {"forced_down": True}),
    ):
        add(store, name)
        store.write_now(lambda tx, n=name, v=values: tx.execute(hosts.update().where(hosts.c.name == n).values(**v)))
    add(store, "tried")
    found = refused(store, _with(exclude=("tried",)))
    assert found == {
        "h1": "not the source", "arm": "architecture", "old": "protocol", "few": "CPU", "tiny": "RAM",
        "full": "disk", "off": "enabled", "dead": "up", "cut": "up", "tried": "not tried before",
    }  # fmt: skip


def test_a_server_that_boots_by_uefi_goes_only_where_there_is_such_firmware(store: Store) -> None:
    add(store, "h3", uefi=True)
    assert refused(store, _with(uefi=True)) == {"h1": "not the source", "h2": "firmware"}
    assert refused(store) == {"h1": "not the source"}


def test_a_server_with_a_tpm_goes_only_where_it_can_have_one(store: Store) -> None:
    add(store, "h3", tpm=True)
    assert refused(store, _with(tpm=True)) == {"h1": "not the source", "h2": "TPM"}
    assert refused(store) == {"h1": "not the source"}


def _with(**more: object) -> SelectTargets:
    return replace(REQUEST, **more)  # type: ignore[arg-type]


def test_the_reason_has_the_figures(store: Store) -> None:
    answer = choose(store.read_now(table.read, clock.now(), 60), _with(ram_mb=4096), Scheduler())
    assert {r.host: r.reason for r in answer.refusals}["h2"] == "4096 MiB RAM needed, 2048 MiB free of 2048 MiB"
    assert answer.hosts == ()


def test_the_source_is_a_target_only_where_a_resize_may_stay(store: Store) -> None:
    answer = choose(store.read_now(table.read, clock.now(), 60), _with(same_host_allowed=True), Scheduler())
    assert set(answer.hosts) == {"h1", "h2"}


def test_a_forced_host_is_the_only_one_and_still_passes_the_filters(store: Store) -> None:
    add(store, "h3")
    assert choose(store.read_now(table.read, clock.now(), 60), _with(forced_host="h3"), Scheduler()).hosts == ("h3",)
    assert (
        choose(store.read_now(table.read, clock.now(), 60), _with(forced_host="h3", vcpus=9), Scheduler()).hosts == ()
    )


@pytest.mark.parametrize("setting", ["ram_weight", "cpu_weight", "disk_weight"])
def test_a_weigher_prefers_the_host_with_more_and_a_zero_switches_it_off(store: Store, setting: str) -> None:
    column = {"ram_weight": "ram_mb", "cpu_weight": "vcpus", "disk_weight": "disk_gb"}[setting]
    add(store, "a", **{column: 30})
    add(store, "b", **{column: 3000})
    only = Scheduler(**{f"{name}_weight": 0.0 for name in ("ram", "cpu", "disk", "moves")})
    request = _with(vcpus=1, ram_mb=1, disk_gb=1)
    hosts_now = store.read_now(table.read, clock.now(), 60)
    assert choose(hosts_now, request, msgspec.structs.replace(only, **{setting: 1.0})).hosts[0] == "b"
    assert choose(hosts_now, request, msgspec.structs.replace(only, **{setting: -1.0})).hosts[-1] == "b"
    assert choose(hosts_now, request, only).hosts == ("a", "b", "h2")


def test_two_racing_claims_never_share_the_last_room(store: Store) -> None:
    results: list[object] = []

    def claim(number: int) -> None:
        try:
            results.append(store.write_now(claims.take, "h2", f"s{number}", "1-1", Resources(3, 100, 1)))
        except StepError as error:
            results.append(str(error))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [result for result in results if isinstance(result, Resources)]
    assert len(won) == 1
    assert store.read_now(claims.claimed)["h2"].vcpus == 3
    assert any("CPUs: 3 needed, 1 free" in str(result) for result in results)


def test_the_limit_is_floored_after_reserve_and_ratio() -> None:
    room = Capacity(Resources(4, 2048, 40), Resources(1, 512, 0), cpu_ratio=1.5, ram_ratio=1.0, disk_ratio=0.99)
    assert room.limit() == Resources(4, 1536, 39)
