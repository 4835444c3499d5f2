"""What each step's probe takes for done, asked of every state that a host can be in: a probe that is wrong either
repeats what must not be repeated, or believes in what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest

from tests.protocol.agent import Control
from tests.protocol.host import SERVER, Copy, Host
from tests.unit.orders import order
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.ledger import Ledger
from whimbrel.domain.migration import Answer
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.migration.messages import Order
from whimbrel.migration.ports import World
from whimbrel.migration.steps import guest

STATES = (None, PowerState.STOPPED, PowerState.PAUSED, PowerState.RUNNING)


@dataclass
class Place:
    """One host that a test arranges: its world and the ledger below it."""

    host: Host
    world: World
    grants: LedgerGrants

    def show(self, state: PowerState | None) -> None:
        """Let the guest be in this state; None is not defined."""
        self.host.defined = None if state is None else "<domain/>"
        self.host.process = None if state is PowerState.STOPPED else state


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    ledger = Ledger(tmp_path, "boot-1")
    host = Host("h1", lambda _: None)
    host.live = Copy("7-1", definition="<domain/>")
    yield Place(host, host.world(ledger, lambda: True), LedgerGrants(ledger, lambda: True))
    ledger.close()


def asked(step: str, *, was_running: bool = True, action: PowerAction | None = None) -> Order:
    made = order(step, 5, server=SERVER)
    return replace(made, work=replace(made.work, was_running=was_running, action=action))


def answer(place: Place, probe: object, of: Order) -> Answer:
    assert callable(probe)
    found: Answer = probe(place.world, of, Control())[0]
    return found


@pytest.mark.parametrize(("state", "released", "was_running"), [*product(STATES, (False, True), (False, True))])
def test_a_guest_was_started_only_if_it_was_released_and_runs(
    place: Place, state: PowerState | None, released: bool, was_running: bool
) -> None:
    of = asked("start_guest", was_running=was_running)
    if released:
        place.grants.grant(of)
        place.grants.release(of)
    place.show(state)
    done = was_running and released and state is PowerState.RUNNING
    assert answer(place, guest.is_running, of) is (Answer.DONE if done else Answer.NOT_DONE)
    assert guest.is_running(place.world, of, Control())[1].get("released", False) is (released and was_running)


@pytest.mark.parametrize(("state", "sealed"), [*product(STATES, (False, True))])
def test_a_host_stands_aside_only_if_it_promised_and_no_process_is_there(
    place: Place, state: PowerState | None, sealed: bool
) -> None:
    if sealed:
        place.grants.seal(SERVER, "7-1")
    place.show(state)
    gone = state in (None, PowerState.STOPPED)
    assert answer(place, guest.is_fenced, asked("fence_source")) is (
        Answer.DONE if sealed and gone else Answer.NOT_DONE
    )
    assert answer(place, guest.is_stopped, asked("stop_target")) is (
        Answer.DONE if sealed and state is None else Answer.NOT_DONE
    )


@pytest.mark.parametrize(("state", "sealed", "renamed"), [*product(STATES, (False, True), (False, True))])
def test_a_source_is_back_only_if_it_may_run_and_is_as_it_was(
    place: Place, state: PowerState | None, sealed: bool, renamed: bool
) -> None:
    of = asked("stop_guest")
    place.grants.grant(of)
    place.grants.release(of)
    if sealed:
        place.grants.seal(SERVER, of.attempt)
    if renamed:
        place.host.sealed[of.attempt], place.host.live = Copy("0-1", definition="<domain/>"), None
    place.show(state)
    back = state is PowerState.RUNNING and not sealed
    assert answer(place, guest.is_unsealed, of) is (Answer.DONE if back else Answer.NOT_DONE)
    gone = state is None and renamed
    facts = {"definition": "<domain/>", "power_state": PowerState.STOPPED}
    assert guest.is_sealed(place.world, of, Control()) == ((Answer.DONE, facts) if gone else (Answer.NOT_DONE, {}))


@pytest.mark.parametrize(("state", "live"), [*product(STATES, (False, True))])
def test_a_guest_was_defined_only_with_its_files_in_place(place: Place, state: PowerState | None, live: bool) -> None:
    place.show(state)
    if not live:
        place.host.live = None
    whole = live and state is not None
    assert answer(place, guest.is_defined, asked("define_guest")) is (Answer.DONE if whole else Answer.NOT_DONE)


@pytest.mark.parametrize(("state", "action"), [*product(STATES, PowerAction)])
def test_only_a_start_or_a_stop_can_be_seen_to_be_done(
    place: Place, state: PowerState | None, action: PowerAction
) -> None:
    place.show(state)
    done = (action, state) in (
        (PowerAction.START, PowerState.RUNNING),
        (PowerAction.STOP, PowerState.STOPPED),
    )
    assert answer(place, guest.is_powered, asked("set_power", action=action)) is (
        Answer.DONE if done else Answer.NOT_DONE
    )


def test_a_revoke_ends_the_guest_and_says_whether_it_had_ever_run(place: Place) -> None:
    of = asked("start_guest")
    place.grants.grant(of)
    assert guest.revoke(place.world, of, Control()) == {"released": False, "power_state": PowerState.STOPPED}
    place.grants.grant(of)
    place.grants.release(of)
    place.show(PowerState.RUNNING)
    assert guest.revoke(place.world, of, Control()) == {"released": True, "power_state": PowerState.STOPPED}
    assert place.host.process is None and place.grants.is_sealed(SERVER)


@pytest.mark.parametrize("state", [PowerState.PAUSED, PowerState.RUNNING])
def test_a_guest_that_is_half_way_down_is_let_down_before_it_is_brought_back(place: Place, state: PowerState) -> None:
    of, told = asked("stop_guest"), list[str]()
    place.grants.seal(SERVER, of.attempt)
    place.host.sealed[of.attempt], place.host.live = Copy("0-1", definition="<domain/>"), None
    place.show(state)
    place.host._touch = told.append
    guest.unseal(place.world, of, Control())
    assert told.index("h1.shut_down") < told.index("h1.create_paused") and place.host.running
    told.clear()
    guest.unseal(place.world, of, Control())
    assert "h1.shut_down" not in told and place.host.running, "one that was brought back is left alone"


@pytest.mark.parametrize(
    ("action", "calls"),
    [
        (PowerAction.START, []),
        (PowerAction.STOP, ["shut_down"]),
        (PowerAction.REBOOT_SOFT, ["shut_down", "create_paused", "resume"]),
        (PowerAction.REBOOT_HARD, ["destroy", "define", "create_paused", "resume"]),
    ],
)
def test_each_power_action_does_to_a_guest_that_runs_what_its_name_says(
    place: Place, action: PowerAction, calls: list[str]
) -> None:
    told = list[str]()
    place.show(PowerState.RUNNING)
    place.host._touch = told.append
    done = guest.set_power(place.world, replace(asked("set_power", action=action), protocol="power"), Control())
    state = PowerState.STOPPED if action is PowerAction.STOP else PowerState.RUNNING
    assert done == {"power_state": state, "forced": False} and place.host.running is (state is PowerState.RUNNING)
    acts = {"h1.shut_down", "h1.destroy", "h1.define", "h1.create_paused", "h1.resume"}
    assert [call for call in told if call in acts] == [f"h1.{call}" for call in calls]


def test_what_is_stopped_is_told_to_be_stopped(place: Place) -> None:
    place.show(PowerState.RUNNING)
    assert guest.stop_target(place.world, asked("stop_target"), Control()) == {"power_state": PowerState.STOPPED}
    assert place.host.defined is None and place.grants.is_sealed(SERVER)
    place.host.defined = "<domain/>"
    place.grants.grant(asked("restart"))
    assert guest.restart(place.world, asked("restart"), Control()) == {"power_state": PowerState.RUNNING}


@pytest.mark.parametrize(("sealed", "sent_by"), [*product((False, True), (None, "5-1", "7-1"))])
def test_only_what_this_attempt_has_moved_away_is_put_aside(place: Place, sealed: bool, sent_by: str | None) -> None:
    """A guest that is back, or what another move has just brought here, is not touched, however late the order is."""
    of = asked("put_aside")
    place.show(PowerState.PAUSED)
    place.host.live = Copy("0-1", definition="<domain/>", arrived={"attempt": sent_by} if sent_by else None)
    if sealed:
        place.grants.seal(SERVER, of.attempt)
    guest.put_aside(place.world, of, Control())
    aside = sealed and sent_by == of.attempt
    assert (place.host.live is None, place.host.defined is None, place.host.process is None) == (aside, aside, aside)
