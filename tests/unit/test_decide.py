"""The pure decision: what follows from what is written down."""

from __future__ import annotations

import pytest

from whimbrel.domain.migration import Mark
from whimbrel.migration.decide import TRIES, Do, Finished, Owe, Pass, Undo, Wait, decide
from whimbrel.migration.journal import Entry
from whimbrel.migration.messages import WITH_MEMORY
from whimbrel.migration.protocols import COLD, CONFIRM, PROTOCOLS, REVERT, BooksStep, HostStep, Protocol


def journal(table: Protocol, until: str, mark: Mark, **more: object) -> dict[str, Entry]:
    """All rows before `until` done, and `until` with this mark."""
    entries = {}
    for step in table.steps:
        if step.name == until:
            entries[step.name] = Entry(step.name, mark, tries=1, **more)  # type: ignore[arg-type]
            break
        entries[step.name] = Entry(step.name, Mark.DONE, tries=1)
    return entries


@pytest.mark.parametrize("table", PROTOCOLS.values(), ids=lambda table: table.name)
def test_rows_are_done_in_the_order_of_the_table(table: Protocol) -> None:
    entries: dict[str, Entry] = {}
    for step in table.steps:
        assert decide(table, entries) == Do(step)
        entries[step.name] = Entry(step.name, Mark.DONE)
    assert decide(table, entries) == Finished(done=True)


@pytest.mark.parametrize("table", PROTOCOLS.values(), ids=lambda table: table.name)
def test_an_order_that_is_out_is_waited_for(table: Protocol) -> None:
    for step in table.steps:
        assert decide(table, journal(table, step.name, Mark.DOING)) == Wait(step)


@pytest.mark.parametrize("step", COLD.steps[:7], ids=lambda step: step.name)
def test_a_failure_before_the_hand_over_undoes_every_row_that_has_an_undo(step: HostStep) -> None:
    entries = journal(COLD, step.name, Mark.FAILED)
    undone = []
    while not isinstance(decision := decide(COLD, entries), Finished):
        assert isinstance(decision, Undo), decision
        undone.append(decision.step.name)
        entries[decision.step.name] = Entry(decision.step.name, Mark.UNDONE)
    assert decision == Finished(done=False)
    begun = [row.name for row in COLD.steps[: COLD.position(step.name) + 1] if row.undo]
    assert undone == begun[::-1]


def test_a_guest_that_was_let_run_at_the_target_is_never_taken_back_by_itself() -> None:
    entries = journal(COLD, "start_guest", Mark.FAILED, facts={"released": True})
    assert decide(COLD, entries) == Do(COLD.step("start_guest"))
    entries["start_guest"] = Entry("start_guest", Mark.UNDONE, tries=TRIES, undo_facts={"released": True})
    assert decide(COLD, entries) == Pass(COLD.step("start_guest"), undo=False)


def test_a_guest_that_never_ran_at_the_target_goes_back_to_the_source() -> None:
    entries = journal(COLD, "start_guest", Mark.FAILED, facts={"released": False})
    assert decide(COLD, entries) == Undo(COLD.step("start_guest"))
    entries["start_guest"] = Entry("start_guest", Mark.UNDONE, undo_facts={"released": False})
    assert decide(COLD, entries) == Undo(COLD.step("hand_over"))


@pytest.mark.parametrize("name", ["stop_guest", "start_guest"])
def test_only_the_host_itself_can_say_whether_it_runs_the_guest(name: str) -> None:
    assert decide(COLD, journal(COLD, name, Mark.LOST)) == Wait(COLD.step(name), fence=True)
    assert decide(COLD, journal(COLD, name, Mark.UNDO_LOST)) == Wait(COLD.step(name), fence=True)


def test_other_work_of_a_silent_host_becomes_its_debt() -> None:
    assert decide(COLD, journal(COLD, "prepare", Mark.LOST)) == Owe(COLD.step("prepare"), undo=True)
    assert decide(CONFIRM, journal(CONFIRM, "retire_source", Mark.LOST)) == Owe(
        CONFIRM.step("retire_source"), undo=False
    )


def test_an_undo_that_fails_each_time_is_owed_or_passed_over_as_an_undo() -> None:
    entries = journal(COLD, "prepare", Mark.UNDO_FAILED)
    entries["prepare"] = Entry("prepare", Mark.UNDO_FAILED, undo_tries=TRIES - 1)
    assert decide(COLD, entries) == Undo(COLD.step("prepare"))
    entries["prepare"] = Entry("prepare", Mark.UNDO_FAILED, undo_tries=TRIES)
    assert decide(COLD, entries) == Owe(COLD.step("prepare"), undo=True)
    entries = journal(COLD, "stop_guest", Mark.UNDO_FAILED)
    entries["stop_guest"] = Entry("stop_guest", Mark.UNDO_FAILED, undo_tries=TRIES)
    assert decide(COLD, entries) == Pass(COLD.step("stop_guest"), undo=True)


def test_a_revert_refuses_as_long_as_nothing_was_touched() -> None:
    for mark in (Mark.LOST, Mark.FAILED):
        assert decide(REVERT, journal(REVERT, "check_source", mark)) == Finished(done=False)


def test_a_revert_goes_only_forward_once_the_source_has_the_server_back() -> None:
    entries = journal(REVERT, "start_source", Mark.FAILED)
    assert decide(REVERT, entries) == Do(REVERT.step("start_source"))
    entries["start_source"] = Entry("start_source", Mark.FAILED, tries=TRIES)
    assert decide(REVERT, entries) == Pass(REVERT.step("start_source"), undo=False)
    assert decide(REVERT, journal(REVERT, "start_source", Mark.LOST)) == Wait(REVERT.step("start_source"), fence=True)


def test_what_was_found_not_done_after_a_crash_is_ordered_again() -> None:
    assert decide(COLD, journal(COLD, "copy_disks", Mark.NOT_DONE)) == Do(COLD.step("copy_disks"))


def test_a_cancel_turns_an_attempt_before_the_hand_over_and_not_after_it() -> None:
    assert decide(COLD, journal(COLD, "prepare", Mark.DOING), cancelled=True) == Undo(COLD.step("prepare"))
    assert decide(COLD, journal(COLD, "start_guest", Mark.DOING), cancelled=True) == Wait(COLD.step("start_guest"))


def test_every_row_has_a_decided_undo_a_probe_a_limit_and_a_reason() -> None:
    for table in PROTOCOLS.values():
        for step in table.steps:
            assert step.why.endswith("."), f"{table.name}.{step.name} does not say why"
            if isinstance(step, BooksStep):
                continue
            assert step.probe is not None
            after_the_stop = step.name in (
                "resize_disks", "define_guest", "start_guest", "start_source", "stop_target",
            )  # fmt: skip
            assert not after_the_stop or step.limit.seconds <= 60, f"{step.name} may keep a guest down for too long"


def test_a_step_that_lets_another_host_run_is_ordered_at_a_new_epoch() -> None:
    raising = {name: {step.name for step in table.steps if step.raises} for name, table in PROTOCOLS.items()}
    assert raising == {
        "cold": {"stop_guest", "start_guest"},
        "resize": {"stop_guest", "start_guest"},
        "suspended": {"move_memory", "resume_guest"},
        "live": {"move_memory", "resume_guest"},
        "build": {"start_guest"},
        "evacuate": {"fence_source", "start_guest"},
        "revert": {"stop_target"},
        "confirm": set(),
        "delete": set(),
        "power": set(),
    }


def test_the_protocols_in_which_memory_moves_are_known_by_name() -> None:
    moving = {name for name, table in PROTOCOLS.items() if any(step.name == "move_memory" for step in table.steps)}
    assert moving == set(WITH_MEMORY)
