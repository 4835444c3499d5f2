"""The lease at a host: what the keeper ends and when, and what the agent may do without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.agent.admission import KEEPER_FILE, LEASE_FILE, Admission, read_number
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.keeper import Keeper
from whimbrel.agent.ledger import Ledger
from whimbrel.migration.messages import Lease, Welcome
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

SERVER = "6f1c2a52-54c1-4f8a-9d6e-6b8f2f2b7d10"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    time = {"boot": 100.0}
    monkeypatch.setattr(clock, "boottime", lambda: time["boot"])
    return time


@pytest.fixture
def settings(tmp_path: Path) -> Agent:
    return Agent("h1", "10.0.0.1", run_dir=str(tmp_path), state_dir=str(tmp_path / "state"), lease=True)


@pytest.fixture
def ledger(settings: Agent) -> Iterator[Ledger]:
    made = Ledger(settings.state_dir, "this boot")
    yield made
    made.close()


@pytest.fixture
def keeper(settings: Agent, ended: list[str]) -> Keeper:
    def end_all() -> list[str]:
        ended.append("all")
        return ["a guest"]

    return Keeper(settings, end_all)


@pytest.fixture
def ended() -> list[str]:
    return []


def admitted(settings: Agent, ledger: Ledger) -> Admission:
    made = Admission(settings, ledger)
    made.welcome(Welcome("h1", made.id, {SERVER: (1, 1)}))
    assert made.may_obey()
    return made


def test_a_keeper_ends_the_guests_when_the_lease_has_run_out_and_not_before(
    settings: Agent, ledger: Ledger, keeper: Keeper, ended: list[str], now: dict[str, float]
) -> None:
    admission = admitted(settings, ledger)
    keeper.look()
    assert ended == [], "before the first lease there is nothing to keep"
    asked = admission.lease_asked()
    assert asked == 100.0
    now["boot"] = 105.0  # the answer took its time; the lease counts from the question
    admission.renew(Lease("h1", admission.id, asked, 30))
    for moment, times in ((129.9, 0), (130.1, 1), (131.0, 2)):
        now["boot"] = moment
        keeper.look()
        assert len(ended) == times, moment


def test_no_lease_is_asked_for_while_no_keeper_would_enforce_it(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    admission = admitted(settings, ledger)
    assert admission.lease_asked() is None
    keeper.look()
    assert admission.lease_asked() == now["boot"]
    now["boot"] += 10
    assert admission.lease_asked() is None, "it has not been heard for ten seconds"
    (Path(settings.run_dir) / KEEPER_FILE).write_text(json.dumps({"beat": "now"}))
    assert admission.lease_asked() is None


def test_a_lease_from_before_a_reboot_is_worth_nothing_though_its_clock_said_more(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    earlier = admitted(settings, ledger).id
    now["boot"] = 5.0
    admission = admitted(settings, ledger)
    keeper.look()
    admission.renew(Lease("h1", earlier, 100_000.0, 30))
    assert read_number(Path(settings.run_dir) / LEASE_FILE, "deadline") is None
    admission.renew(Lease("h1", admission.id, 5.0, 30))
    assert read_number(Path(settings.run_dir) / LEASE_FILE, "deadline") == 35.0


def test_an_agent_whose_lease_ran_out_obeys_nothing_and_every_guest_needs_a_new_grant(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    admission, grants = admitted(settings, ledger), LedgerGrants(ledger)
    keeper.look()
    grants.grant(SERVER, 1)
    admission.renew(Lease("h1", admission.id, now["boot"], 30))
    first = admission.id
    now["boot"] += 31
    admission.renew(
        Lease("h1", first, now["boot"] - 5, 30)
    )  # it was under way; the guests have been ended all the same
    assert not admission.may_obey() and admission.id != first
    assert not grants.holds_grant(SERVER)
    admission.welcome(Welcome("h1", first, {}))
    assert not admission.may_obey(), "a welcome to an earlier question admits nobody"
    admission.welcome(Welcome("h1", admission.id, {SERVER: (2, 5)}))
    assert admission.may_obey()
    seen = ledger.server(SERVER)
    assert seen is not None and (seen.epoch, seen.number) == (2, 5)
    assert admission.lease_asked() is None or admission.lease_asked() == now["boot"]
