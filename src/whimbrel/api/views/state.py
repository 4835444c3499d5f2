"""A server's and a migration's state in OpenStack's words, derived from what is written down and never stored.

The server's row says where it is and whether it runs; its open migration, if there is one, and the marks of that
one's current attempt say what is being done with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from whimbrel.domain.migration import Kind, Mark, Outcome, Verdict
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.store.servers import Situation

Marks = Mapping[str, Mark]

GONE = frozenset({Mark.UNDONE, Mark.NOT_DONE})
"""Marks of a step whose effect is not there any more."""

POWER_NUMBERS = {PowerState.RUNNING: 1, PowerState.PAUSED: 3, PowerState.STOPPED: 4}

POWER_TASKS = {
    PowerAction.START: "powering-on",
    PowerAction.STOP: "powering-off",
    PowerAction.REBOOT_SOFT: "rebooting",
    PowerAction.REBOOT_HARD: "rebooting_hard",
}

PLAIN_STATUS = {
    "active": "ACTIVE",
    "building": "BUILD",
    "deleted": "DELETED",
    "error": "ERROR",
    "paused": "PAUSED",
    "resized": "VERIFY_RESIZE",
    "stopped": "SHUTOFF",
}

TASK_STATUS = {
    ("active", "migrating"): "MIGRATING",
    ("paused", "migrating"): "MIGRATING",
    ("active", "rebooting"): "REBOOT",
    ("active", "rebooting_hard"): "HARD_REBOOT",
    ("stopped", "rebooting_hard"): "HARD_REBOOT",
    ("paused", "rebooting_hard"): "HARD_REBOOT",
    ("resized", "resize_reverting"): "REVERT_RESIZE",
}


@dataclass(frozen=True)
class State:
    """What OpenStack says of a server: vm_state, task_state, the number of its power state, and a fault."""

    vm: str
    task: str | None = None
    power: int = 0
    fault: dict[str, Any] | None = None

    @property
    def status(self) -> str:
        """The one word that users see."""
        if self.task is not None:
            if self.vm in ("active", "stopped") and self.task.startswith("resize_"):
                return "RESIZE"
            if self.task.startswith("rebuild"):
                return "REBUILD"
            return TASK_STATUS.get((self.vm, self.task), PLAIN_STATUS[self.vm])
        return PLAIN_STATUS[self.vm]


def derive(situation: Situation) -> State:
    """Return a server's state."""
    server, move = situation.server, situation.migration
    power = POWER_NUMBERS.get(server.power_state, 0)
    if server.deleted_at is not None:
        return State("deleted", None, 0, server.fault)
    if move is None:
        return State(_resting(server), None, power, server.fault)
    if move.fence is not None:
        fault = {
            "code": 500,
            "created": move.updated_at,
            "message": f"It needs the word of host {move.fence}: bring it back, or prove that it is off (forced_down).",
        }
        return State("error", _deleting(move), power, fault)
    vm, task = _moving(server, move, situation.marks)
    return State(vm, _deleting(move) or task, power, server.fault)


def _deleting(move: Row[Any]) -> str | None:
    return "deleting" if move.kind == Kind.DELETE or move.verdict == Verdict.DELETE else None


def _resting(server: Row[Any]) -> str:
    """Return the vm_state of a server that nothing is being done with, or that is deleted."""
    if server.fault is not None and (server.host is None or server.fault.get("declared")):
        return "error"
    match server.power_state:
        case PowerState.PAUSED:
            return "paused"
        case PowerState.STOPPED:
            return "stopped"
        case PowerState.RUNNING:
            return "active"
        case _:
            return "active" if server.launched_at is not None else "building"


def _before(server: Row[Any], move: Row[Any]) -> str:
    """Return the vm_state that the server had when this began."""
    if server.power_state == PowerState.PAUSED:
        return "paused"
    return "active" if move.was_running else "stopped"


def _moving(server: Row[Any], move: Row[Any], marks: Marks) -> tuple[str, str | None]:
    """Return (vm_state, task_state) while a migration is open, as far as it is no delete."""
    match move.segments[move.segment]["protocol"]:
        case "build":
            return "building", "spawning" if begun(marks, "claim") else "scheduling"
        case "power":
            return _before(server, move), POWER_TASKS[PowerAction(move.action)]
        case "delete" if move.kind == Kind.DELETE:
            return _resting(server), None
        case "evacuate":
            return _before(server, move), rebuild_task(marks)
        case "live":
            return _before(server, move), "migrating"
        case "revert" if not move.window_open:
            return "resized", "resize_reverting"
        case "cold" | "resize" | "suspended" if not move.window_open:
            return _before(server, move), forward_task(marks)
        case _:
            return "resized", "resize_reverting" if move.verdict == Verdict.REVERT else None


def rebuild_task(marks: Marks) -> str:
    """Return the task_state of a server that is being evacuated."""
    if begun(marks, "define_guest"):
        return "rebuild_spawning"
    return "rebuild_block_device_mapping" if begun(marks, "prepare") else "rebuilding"


def forward_task(marks: Marks) -> str:
    """Return the task_state of a move that is on its way to the target."""
    if begun(marks, "start_guest") or begun(marks, "resume_guest"):
        return "resize_finish"
    if begun(marks, "hand_over"):
        return "resize_migrated"
    return "resize_migrating" if _is_off(marks) else "resize_prep"


def _is_off(marks: Marks) -> bool:
    """Return whether the guest was stopped or is being held, as far as is known."""
    return begun(marks, "stop_guest") or begun(marks, "move_memory")


def begun(marks: Marks, step: str) -> bool:
    """Return whether a step was begun and its effect may be there."""
    return step in marks and marks[step] not in GONE


def migration_status(row: Row[Any], marks: Marks) -> str:
    """Return a migration's status in OpenStack's words."""
    if not row.open:
        return str(row.outcome or Outcome.ERROR)
    if row.fence is not None:
        return "error"
    if row.verdict == Verdict.REVERT:
        return "reverting"
    if row.verdict == Verdict.CONFIRM:
        return "confirming"
    if row.verdict == Verdict.DELETE:
        return "confirming" if row.finished_at is not None else "cancelled"
    if row.window_open:
        return "finished"
    if row.kind == Kind.EVACUATION:
        return "done" if begun(marks, "remove_stale") else "accepted"
    if row.kind == Kind.LIVE:
        return _live_status(marks)
    if begun(marks, "hand_over"):
        return "post-migrating"
    return "migrating" if _is_off(marks) else "pre-migrating"


def _live_status(marks: Marks) -> str:
    """Return the status of a live migration that is open."""
    if begun(marks, "retire_source"):
        return "post-migrating"
    if begun(marks, "precopy"):
        return "running"
    return "preparing" if begun(marks, "claim") else "accepted"
