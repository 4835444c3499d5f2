"""The lease at a host: what the keeper ends and when, and what the agent may do without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.orders import SERVER, order
from whimbrel.agent import admission as admission_module
from whimbrel.agent.admission import KEEPER_FILE, LEASE_FILE, Admission, read_number, write_lease
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.keeper import Keeper
from whimbrel.agent.ledger import Ledger
from whimbrel.migration.presence import Lease, Welcome
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent


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


def admitted(settings: Agent, ledger: Ledger, *, lease: float | None = None) -> Admission:
    """Return an agent's admission, given together with a lease of so many seconds if one was asked for."""
    made = Admission(settings, ledger)
    asked = made.ask()
    assert (asked.asked is None) is (lease is None)
    given = None if asked.asked is None or lease is None else Lease("h1", made.id, asked.asked, lease)
    made.welcome(Welcome("h1", made.id, {SERVER: (1, 1)}, given))
    assert made.may_obey() and made.may_run()
    return made


def holds_grant(ledger: Ledger) -> bool:
    """Whether this boot of the host may run the server now."""
    seen = ledger.server(SERVER)
    return seen is not None and seen.sealed is None and seen.grant_boot == ledger.boot


def deadline(settings: Agent) -> float | None:
    return read_number(Path(settings.run_dir) / LEASE_FILE, "deadline")


def test_a_keeper_ends_the_guests_when_the_lease_has_run_out_and_not_before(
    settings: Agent, ledger: Ledger, keeper: Keeper, ended: list[str], now: dict[str, float]
) -> None:
    keeper.look()
    assert ended == [], "before the first lease there is nothing to keep"
    admission = admitted(settings, ledger, lease=30)
    now["boot"] = 102.0
    asked = admission.ask()
    now["boot"] = 107.0  # the answer took its time; the lease counts from the question
    admission.renew(Lease("h1", admission.id, asked.composed, 30))
    for moment, times in ((131.9, 0), (132.1, 1), (133.0, 2)):
        now["boot"] = moment
        keeper.look()
        assert len(ended) == times, moment


def test_a_lease_is_asked_for_only_while_a_keeper_would_enforce_it_and_said_to_be_kept_once_it_has_it(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    assert Admission(settings, ledger).ask().asked is None
    keeper.look()
    admission = admitted(settings, ledger, lease=30)
    question = admission.ask()
    assert (question.asked, question.kept) == (now["boot"], False), "the keeper has not looked since"
    keeper.look()
    assert admission.ask().kept
    now["boot"] += 10
    question = admission.ask()
    assert (question.asked, question.kept) == (None, False), "it has not been heard for ten seconds"
    (Path(settings.run_dir) / KEEPER_FILE).write_text(json.dumps({"beat": "now"}))
    assert admission.ask().asked is None


def test_a_lease_from_before_a_reboot_is_worth_nothing_though_its_clock_said_more(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    keeper.look()
    earlier = admitted(settings, ledger, lease=30).id
    now["boot"] = 5.0
    (Path(settings.run_dir) / LEASE_FILE).unlink()  # it stands on a tmpfs
    keeper.look()
    admission = admitted(settings, ledger, lease=30)
    admission.renew(Lease("h1", earlier, 100_000.0, 30))
    assert deadline(settings) == 35.0


def test_an_agent_whose_lease_ran_out_obeys_nothing_and_every_guest_needs_a_new_grant(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    keeper.look()
    admission = admitted(settings, ledger, lease=30)
    grants = LedgerGrants(ledger, admission.may_run)
    grants.grant(order("start_guest", 1))
    first = admission.id
    now["boot"] += 31
    assert not admission.may_run()
    assert not admission.may_obey(), "an order that comes now is not taken, whoever looked last"
    # It was under way; the guests have been ended all the same.
    admission.renew(Lease("h1", first, now["boot"] - 5, 30))
    assert not admission.may_obey() and admission.id != first
    assert not holds_grant(ledger)
    admission.welcome(Welcome("h1", first, {}))
    assert not admission.may_obey(), "a welcome to an earlier question admits nobody"
    keeper.look()
    lease = Lease("h1", admission.id, now["boot"], 30)
    admission.welcome(Welcome("h1", admission.id, {SERVER: (2, 5)}, lease))
    assert admission.may_obey() and deadline(settings) == now["boot"] + 30
    seen = ledger.server(SERVER)
    assert seen is not None and (seen.epoch, seen.number) == (2, 5)


def test_an_agent_that_was_away_when_its_lease_ran_out_knows_that_its_guests_were_ended(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    keeper.look()
    grants = LedgerGrants(ledger, admitted(settings, ledger, lease=30).may_run)
    grants.grant(order("start_guest", 1))
    now["boot"] += 31
    keeper.look()
    again = Admission(settings, ledger)
    asked = again.ask()
    assert not holds_grant(ledger), "what the keeper has ended is to be started again"
    again.welcome(Welcome("h1", asked.admission, {}, Lease("h1", asked.admission, asked.composed, 30)))
    assert again.may_obey()


@pytest.mark.parametrize("look", ["may_obey", "check", "ask", "renew"])
def test_whatever_an_agent_does_next_it_notices_that_its_lease_has_run_out(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float], look: str
) -> None:
    keeper.look()
    admission = admitted(settings, ledger, lease=30)
    grants = LedgerGrants(ledger, admission.may_run)
    grants.grant(order("start_guest", 1))
    now["boot"] += 31
    getattr(admission, look)(*([Lease("h1", admission.id, now["boot"], 30)] if look == "renew" else []))
    assert not admission.admitted and not holds_grant(ledger)


def test_a_lease_that_comes_too_late_admits_nobody(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    keeper.look()
    admission = Admission(settings, ledger)
    asked = admission.ask()
    now["boot"] += 31
    admission.welcome(Welcome("h1", asked.admission, {}, Lease("h1", asked.admission, asked.composed, 30)))
    assert not admission.may_obey() and admission.id != asked.admission, "it asks anew"


def test_a_keeper_that_comes_back_finds_no_lease_that_ran_out_while_it_was_away(
    settings: Agent, ledger: Ledger, keeper: Keeper, ended: list[str], now: dict[str, float]
) -> None:
    keeper.look()
    admitted(settings, ledger, lease=30)
    now["boot"] += 31  # without a keeper, and without an agent: nobody has ended the guests
    admission = Admission(settings, ledger)
    asked = admission.ask()
    assert asked.asked is None
    admission.welcome(Welcome("h1", asked.admission, {}))
    assert admission.may_obey() and deadline(settings) is None
    keeper.look()
    assert ended == []
    assert not admission.ask().kept


def test_a_keeper_that_comes_before_the_welcome_shall_have_a_lease_to_keep(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float]
) -> None:
    admission = Admission(settings, ledger)
    asked = admission.ask()
    keeper.look()
    admission.welcome(Welcome("h1", asked.admission, {}))
    assert not admission.may_obey() and admission.id != asked.admission


def test_a_lease_that_ran_out_while_the_next_one_was_written_has_run_out(
    settings: Agent, ledger: Ledger, keeper: Keeper, now: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.look()
    admission = admitted(settings, ledger, lease=30)

    def slow(directory: Path, deadline: float) -> None:
        now["boot"] += 20  # a disk that stalls
        write_lease(directory, deadline)

    monkeypatch.setattr(admission_module, "write_lease", slow)
    now["boot"] += 15
    admission.renew(Lease("h1", admission.id, now["boot"], 30))
    assert not admission.admitted, "the keeper has looked in between, perhaps"
