"""States in OpenStack's words, from what is written down: one row of a table for each situation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from whimbrel.api.views.state import State, derive, migration_status
from whimbrel.domain.migration import Kind, Mark, Verdict
from whimbrel.domain.server import PowerAction
from whimbrel.store.servers import Situation

COLD = {"protocol": "cold", "version": 1}
CONFIRM = {"protocol": "confirm", "version": 1}
REVERT = {"protocol": "revert", "version": 1}


def server(**values: Any) -> Any:
    row = {
        "id": "s", "host": "h1", "power_state": "running", "fault": None, "deleted_at": None, "launched_at": 1.0,
        "updated_at": 1.0,
    }  # fmt: skip
    return SimpleNamespace(**{**row, **values})


def move(*segments: dict[str, Any], **values: Any) -> Any:
    row = {
        "kind": Kind.MIGRATION, "segments": list(segments or (COLD,)), "segment": max(len(segments) - 1, 0),
        "open": True,
        "was_running": True, "window_open": False, "verdict": None, "fence": None, "action": None, "cancelled": False,
        "outcome": None, "finished_at": None, "updated_at": 1.0,
    }  # fmt: skip
    return SimpleNamespace(**{**row, **values})


def power(action: PowerAction, **values: Any) -> Any:
    return move({"protocol": "power", "version": 1}, kind=Kind.POWER, action=action, **values)


BUILD = {"protocol": "build", "version": 1}
DELETE = {"protocol": "delete", "version": 1}
STOPPED = server(power_state="stopped")
DONE = Mark.DONE

CASES: list[tuple[str, Any, Any, dict[str, Mark], tuple[str, str | None, str]]] = [
    ("runs", server(), None, {}, ("active", None, "ACTIVE")),
    ("is stopped", STOPPED, None, {}, ("stopped", None, "SHUTOFF")),
    ("is paused", server(power_state="paused"), None, {}, ("paused", None, "PAUSED")),
    ("is deleted", server(deleted_at=2.0), None, {}, ("deleted", None, "DELETED")),
    ("could not be built", server(host=None, fault={"code": 500}), None, {}, ("error", None, "ERROR")),
    ("could not be built and is deleted now", server(host=None, launched_at=None, fault={"code": 500}),
     move(DELETE, kind=Kind.DELETE), {}, ("error", "deleting", "ERROR")),
    ("is looked for a host", server(host=None), move(BUILD, kind=Kind.BUILD), {}, ("building", "scheduling", "BUILD")),
    ("is made", server(), move(BUILD, kind=Kind.BUILD), {"claim": DONE}, ("building", "spawning", "BUILD")),
    ("is prepared for", server(), move(), {"claim": DONE, "prepare": DONE}, ("active", "resize_prep", "RESIZE")),
    ("is copied", STOPPED, move(), {"stop_guest": DONE}, ("active", "resize_migrating", "RESIZE")),
    ("is copied, was off", STOPPED, move(was_running=False), {"stop_guest": DONE},
     ("stopped", "resize_migrating", "RESIZE")),
    ("changed hands", STOPPED, move(), {"stop_guest": DONE, "hand_over": DONE},
     ("active", "resize_migrated", "RESIZE")),
    ("starts there", STOPPED, move(), {"stop_guest": DONE, "hand_over": DONE, "start_guest": Mark.DOING},
     ("active", "resize_finish", "RESIZE")),
    ("is back at the source", server(), move(), {"claim": DONE, "stop_guest": Mark.UNDONE},
     ("active", "resize_prep", "RESIZE")),
    ("waits for a verdict", server(), move(window_open=True), {}, ("resized", None, "VERIFY_RESIZE")),
    ("is confirmed", server(), move(COLD, CONFIRM, verdict=Verdict.CONFIRM), {}, ("resized", None, "VERIFY_RESIZE")),
    ("goes back", server(), move(COLD, REVERT, verdict=Verdict.REVERT), {},
     ("resized", "resize_reverting", "REVERT_RESIZE")),
    ("is to go back", server(), move(COLD, REVERT, segment=0, window_open=True, verdict=Verdict.REVERT), {},
     ("resized", "resize_reverting", "REVERT_RESIZE")),
    ("could not go back", server(), move(COLD, REVERT, window_open=True), {"check_source": Mark.FAILED},
     ("resized", None, "VERIFY_RESIZE")),
    ("needs a proof", server(), move(fence="h2"), {"start_guest": Mark.LOST}, ("error", None, "ERROR")),
    ("is stopped now", server(), power(PowerAction.STOP), {}, ("active", "powering-off", "ACTIVE")),
    ("is started", STOPPED, power(PowerAction.START, was_running=False), {}, ("stopped", "powering-on", "SHUTOFF")),
    ("reboots", server(), power(PowerAction.REBOOT_SOFT), {}, ("active", "rebooting", "REBOOT")),
    ("reboots hard", server(), power(PowerAction.REBOOT_HARD), {}, ("active", "rebooting_hard", "HARD_REBOOT")),
    ("is deleted now", server(), move(DELETE, kind=Kind.DELETE), {}, ("active", "deleting", "ACTIVE")),
    ("is deleted amid a move", STOPPED, move(verdict=Verdict.DELETE, cancelled=True), {"stop_guest": DONE},
     ("active", "deleting", "ACTIVE")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "open_move", "marks", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_server_that(row: Any, open_move: Any, marks: dict[str, Mark], expected: tuple[str, str | None, str]) -> None:
    state: State = derive(Situation(row, open_move, marks))
    assert (state.vm, state.task, state.status) == expected


def test_a_fence_names_the_host_whose_word_is_missing() -> None:
    state = derive(Situation(server(), move(fence="h7"), {}))
    assert state.fault is not None and "h7" in state.fault["message"]


@pytest.mark.parametrize(
    ("row", "marks", "status"),
    [
        (move(), {"prepare": DONE}, "pre-migrating"),
        (move(), {"stop_guest": Mark.DOING}, "migrating"),
        (move(), {"stop_guest": DONE, "hand_over": DONE}, "post-migrating"),
        (move(window_open=True), {}, "finished"),
        (move(COLD, CONFIRM, verdict=Verdict.CONFIRM), {}, "confirming"),
        (move(COLD, REVERT, verdict=Verdict.REVERT), {}, "reverting"),
        (move(open=False, outcome="confirmed"), {}, "confirmed"),
        (move(open=False, outcome="reverted"), {}, "reverted"),
        (move(open=False, outcome="error"), {}, "error"),
        (move(fence="h2"), {}, "error"),
    ],
)
def test_a_migration_is(row: Any, marks: dict[str, Mark], status: str) -> None:
    assert migration_status(row, marks) == status
