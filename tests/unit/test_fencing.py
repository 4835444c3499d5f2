"""Proofs that are looked for: fence devices, of which only "off" counts, and leases by the conductor's own clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from tests.unit.test_scheduler import beat
from whimbrel.conductor import hosts as host_books
from whimbrel.conductor.fencing import CLOCK_ERROR, KILL_SECONDS, Fencer, Power, ask
from whimbrel.migration.presence import Lease, Welcome
from whimbrel.ops import clock
from whimbrel.ops.settings import Conductor, FenceDevice, Fencing
from whimbrel.store import fencing
from whimbrel.store.engine import Store
from whimbrel.store.tables import hosts, metadata, migrations, servers

pytestmark = pytest.mark.anyio

CONF = Conductor(lease_seconds=30)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Two clocks that a test moves."""
    time = {"wall": 1_000_000.0, "mono": 0.0}
    monkeypatch.setattr(clock, "now", lambda: time["wall"])
    monkeypatch.setattr(clock, "monotonic", lambda: time["mono"])
    return time


@pytest.fixture
def store(tmp_path: Path, now: dict[str, float]) -> Store:
    made = Store(f"sqlite:///{tmp_path}/whimbrel.db")
    made.write_now(lambda tx: metadata.create_all(tx))
    return made


def device(tmp_path: Path, script: str) -> FenceDevice:
    """A fence agent that is a shell script; `$action` is what it is asked for."""
    path = tmp_path / "fence_test"
    path.write_text(
        f"#!/bin/sh\nwhile read -r line; do case $line in action=*) action=${{line#*=}};; esac; "
        f'echo "$line" >>{tmp_path}/asked; done\n{script}\n'
    )
    path.chmod(0o755)
    (tmp_path / "password").write_text("secret word\n")
    return FenceDevice(str(path), {"ip": "10.0.0.9", "password": f"@{tmp_path}/password"})


@pytest.mark.parametrize(
    ("script", "power"),
    [
        ("exit 2", Power.OFF), ("exit 0", Power.ON), ("exit 1", Power.UNKNOWN), ("exit 130", Power.UNKNOWN),
        ("kill -9 $$", Power.UNKNOWN), ("exec sleep 30", Power.UNKNOWN),
    ],
)  # fmt: skip
async def test_only_off_is_off_and_a_device_that_does_not_answer_is_unknown(
    tmp_path: Path, script: str, power: Power
) -> None:
    assert await ask(device(tmp_path, script), "status", 0.5) is power
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["ip=10.0.0.9", "password=secret word", "action=status"]


async def test_a_fence_agent_that_is_not_there_is_unknown() -> None:
    assert await ask(FenceDevice("/nowhere/fence_none"), "status", 1) is Power.UNKNOWN
    assert await ask(FenceDevice("/bin/true", {"password": "@/nowhere"}), "status", 1) is Power.UNKNOWN


def hear(store: Store, **more: object) -> None:
    store.write_now(host_books.hear, beat("h1", **more), CONF)


def wait_for_h1(store: Store, kind: str) -> None:
    """Write a server whose migration waits for the word of h1."""
    flavor = {"id": "1", "name": "small"}
    server = {"id": "s", "name": "vm", "project_id": "p", "user_id": "u", "reservation_id": "r", "flavor": flavor,
              "created_at": 0.0, "updated_at": 0.0}  # fmt: skip
    move = {"uuid": "m", "server_id": "s", "kind": kind, "project_id": "p", "user_id": "u", "request_id": "q",
            "segments": [], "old_flavor": flavor, "new_flavor": flavor, "was_running": True, "fence": "h1",
            "created_at": 0.0, "updated_at": 0.0}  # fmt: skip
    store.write_now(
        lambda tx: (tx.execute(servers.insert().values(server)), tx.execute(migrations.insert().values(move)))
    )


def proof(store: Store) -> str | None:
    given = store.read_now(fencing.of, "h1")
    return given.witness if given else None


@pytest.mark.parametrize(("kind", "cut"), [("evacuation", True), ("migration", False)])
async def test_only_an_evacuation_cuts_the_power_and_only_then_is_it_a_proof(
    store: Store, now: dict[str, float], tmp_path: Path, kind: str, cut: bool
) -> None:
    marker = tmp_path / "off"
    script = f"[ $action = off ] && touch {marker}; [ -e {marker} ] && exit 2; exit 0"
    hear(store)
    wait_for_h1(store, kind)
    now["wall"] += 100
    fence = Fencer(Fencing({"h1": device(tmp_path, script)}, timeout=5), CONF, store)
    outbox = await fence.look()
    assert marker.exists() is cut
    assert proof(store) == ("fence agent" if cut else None)
    assert len(outbox) == (1 if cut else 0), "what waits is woken"
    (tmp_path / "asked").unlink()
    await fence.look()
    assert not (tmp_path / "asked").exists(), "it is asked again only after a while"


async def test_a_lease_proves_only_after_a_whole_lease_without_renewal_by_the_conductors_own_clock(
    store: Store, now: dict[str, float]
) -> None:
    hear(store, lease_asked=5.0, lease_kept=True)
    wait_for_h1(store, "evacuation")
    fence = Fencer(Fencing(), CONF, store)
    now["wall"] += 10_000  # a wall clock that jumps proves nothing
    await fence.look()
    assert proof(store) is None
    enough = CONF.lease_seconds * (1 + CLOCK_ERROR) + KILL_SECONDS
    now["mono"] += enough - 0.1
    await fence.look()
    assert proof(store) is None
    hear(store, lease_asked=6.0, lease_kept=True)
    now["wall"] += 10_000
    now["mono"] += 1
    await fence.look()
    now["mono"] += enough - 0.1
    await fence.look()
    assert proof(store) is None, "it was renewed meanwhile"
    now["mono"] += 0.2
    await fence.look()
    assert proof(store) == "lease"
    hear(store, lease_asked=7.0, lease_kept=True)
    assert proof(store) is None, "a host that speaks has voided it"


async def prove_by_lease(store: Store, now: dict[str, float], *, lease: float = CONF.lease_seconds) -> str | None:
    """Wait as long as a lease of so many seconds could be kept; return the proof that there is then."""
    wait_for_h1(store, "evacuation")
    fence = Fencer(Fencing(), CONF, store)
    await fence.look()
    now["wall"] += 10_000
    now["mono"] += lease * (1 + CLOCK_ERROR) + KILL_SECONDS + 0.1
    await fence.look()
    return proof(store)


@pytest.mark.parametrize(("last", "proved"), [(True, "lease"), (False, None)])
async def test_a_lease_that_no_keeper_is_known_to_keep_proves_nothing(
    store: Store, now: dict[str, float], last: bool, proved: str | None
) -> None:
    hear(store, lease_asked=5.0, lease_kept=True, composed=5.0)
    hear(store, lease_asked=6.0, lease_kept=last, composed=6.0)  # given, and lost on its way; or the keeper has died
    assert await prove_by_lease(store, now) == proved


async def test_a_heartbeat_that_was_overtaken_says_nothing_of_the_lease(store: Store, now: dict[str, float]) -> None:
    hear(store, lease_asked=5.0, lease_kept=True, composed=5.0)
    hear(store, lease_kept=False, composed=6.0)
    hear(store, lease_asked=5.0, lease_kept=True, composed=5.0)
    assert await prove_by_lease(store, now) is None
    hear(store, lease_asked=1.0, lease_kept=True, composed=1.0, boot="the next")
    assert store.read_now(lambda tx: tx.execute(select(hosts.c.lease_kept)).scalar_one()), "its clock began anew"


async def test_a_longer_lease_of_an_earlier_setting_is_waited_for(store: Store, now: dict[str, float]) -> None:
    long = Conductor(lease_seconds=300)
    store.write_now(host_books.hear, beat("h1", lease_asked=5.0, lease_kept=True), long)
    hear(store, lease_asked=6.0, lease_kept=True)
    assert await prove_by_lease(store, now) is None
    hear(store, lease_asked=7.0, lease_kept=True, boot="the next")
    assert store.read_now(lambda tx: tx.execute(select(hosts.c.lease_seconds)).scalar_one()) == CONF.lease_seconds


async def test_a_host_is_admitted_together_with_the_lease_that_it_asked_for(store: Store) -> None:
    effects = store.write_now(host_books.hear, beat("h1", admitted=False, admission="a", lease_asked=5.0), CONF)
    assert effects.passing == [("agent.h1", Welcome("h1", "a", {}, Lease("h1", "a", 5.0, 30)))]
    effects = store.write_now(host_books.hear, beat("h1", admitted=False, admission="a"), CONF)
    assert effects.passing == [("agent.h1", Welcome("h1", "a", {}, None))]


async def test_a_host_without_a_lease_is_proved_by_no_lease(store: Store, now: dict[str, float]) -> None:
    hear(store)
    wait_for_h1(store, "evacuation")
    fence = Fencer(Fencing(), CONF, store)
    for _ in range(3):
        await fence.look()
        now["wall"] += 1000
        now["mono"] += 1000
    assert proof(store) is None
    assert store.read_now(lambda tx: tx.execute(select(hosts.c.lease_number)).scalar_one()) == 0
