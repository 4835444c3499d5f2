"""No run of the models breaks, each guard in them is needed, and they are models of our tables."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from whimbrel.domain.migration import Where
from whimbrel.migration.protocols import COLD, CONFIRM, DELETE, EVACUATE, POWER, REVERT, Protocol, Step
from whimbrel.migration.steps import handover

MODELS = Path(__file__).parents[2] / "docs" / "model"
SECONDS = 120
"""How long one search may take; the longest takes about five on an idle machine."""


class Search(NamedTuple):
    """What Spin said: how many states it saw, whether a run broke the claim, which lines no run came to."""

    states: int
    errors: int
    unreached: list[str]


def search(directory: Path, model: str, claims: tuple[str, ...], *switches: str) -> Iterator[Search]:
    """Let Spin search all runs of a model for one that breaks a claim; the switches take guards out."""
    run(directory, "spin", "-a", *(f"-D{switch}" for switch in switches), str(MODELS / f"{model}.pml"))
    run(directory, "gcc", "-w", "-O1", "-DMEMLIM=1800", "-o", "pan", "pan.c")
    for claim in claims:
        # Only a claim that something happens at last needs the search for cycles.
        text = run(directory, "./pan", "-m100000", *(["-a"] if claim == "ends" else []), "-N", claim)
        stored, errors = re.search(r"(\d+) states, stored", text), re.search(r"errors: (\d+)", text)
        assert stored and errors, text
        assert "violated (posted" not in text, "the model has too little room for messages"
        cut_short = "Search not completed" in text or "max search depth too small" in text
        assert int(errors[1]) or not cut_short, text
        parts = re.findall(r"unreached in proctype \w+\n((?:\t.+\n)+)", text)
        lines = [line for part in parts for line in part.splitlines() if ", state " in line and "-end-" not in line]
        yield Search(int(stored[1]), int(errors[1]), lines)


def run(directory: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


def test_no_run_of_the_hand_over_breaks(tmp_path: Path) -> None:
    for found in search(tmp_path, "handover", ("one_runner", "whole_copy", "ends", "ends_well")):
        assert found.errors == 0
        assert found.states > 1_000_000
        assert not found.unreached, "a line that no run comes to proves nothing"


@pytest.mark.parametrize(
    ("guard", "claim"),
    [
        ("EPOCH", "one_runner"),
        ("ORDER", "whole_copy"),
        ("SEAL", "one_runner"),
        ("RELEASED", "whole_copy"),
        ("PAUSE", "whole_copy"),
        ("BOOT", "one_runner"),
        ("WELCOME", "one_runner"),
        ("PROOF", "one_runner"),
        ("LEDGER", "whole_copy"),
        ("OUTBOX", "one_runner"),
    ],
)
def test_the_hand_over_needs_each_guard(tmp_path: Path, guard: str, claim: str) -> None:
    (found,) = search(tmp_path, "handover", (claim,), f"NO_{guard}")
    assert found.errors == 1


def test_while_no_human_gives_a_proof_no_welcome_is_needed(tmp_path: Path) -> None:
    claims = ("one_runner", "whole_copy", "ends_well")
    for found in search(tmp_path, "handover", claims, "NO_HUMAN", "NO_WELCOME"):
        assert found.errors == 0
        assert found.states > 1_000_000


def test_no_race_in_the_undo_window_breaks(tmp_path: Path) -> None:
    claims = ("keeps_a_copy", "one_verdict", "one_runner", "ends", "ends_well")
    for found in search(tmp_path, "undo_window", claims):
        assert found.errors == 0
        assert found.states > 50_000


@pytest.mark.parametrize(
    ("guard", "claims"),
    [
        ("ONCE", ("one_verdict", "keeps_a_copy")),
        ("REVISION", ("one_verdict", "ends_well")),
        ("CHECK", ("ends_well",)),
    ],
)
def test_the_undo_window_needs_each_guard(tmp_path: Path, guard: str, claims: tuple[str, ...]) -> None:
    for found in search(tmp_path, "undo_window", claims, f"NO_{guard}"):
        assert found.errors == 1


def test_no_run_of_an_evacuation_breaks(tmp_path: Path) -> None:
    for found in search(tmp_path, "evacuation", ("one_runner", "stale_goes_last", "ends_well", "ends")):
        assert found.errors == 0
        assert found.states > 2_000_000
        assert not found.unreached, "a line that no run comes to proves nothing"


@pytest.mark.parametrize(
    ("guard", "claim"),
    [
        ("FENCE", "one_runner"),
        ("VOID", "one_runner"),
        ("WELCOME", "one_runner"),
        ("NUMBER", "one_runner"),
        ("MARGIN", "one_runner"),
        ("KEPT", "one_runner"),
        ("LEASE_WITH_WELCOME", "one_runner"),
        ("LOOK_AT_LEASE", "one_runner"),
        ("OVERTAKEN", "one_runner"),
        ("CHECK_ON_RENEW", "ends_well"),
        ("SUSPEND", "ends_well"),
        ("DEADLINE", "ends_well"),
        ("WILL", "ends_well"),
    ],
)
def test_an_evacuation_needs_each_guard(tmp_path: Path, guard: str, claim: str) -> None:
    (found,) = search(tmp_path, "evacuation", (claim,), f"NO_{guard}")
    assert found.errors == 1


def test_three_mishaps_show_why_a_host_tells_that_an_order_was_cut_short(tmp_path: Path) -> None:
    (found,) = search(tmp_path, "evacuation", ("ends_well",), "NO_CUT_SHORT", "NO_LEASES", "MISHAPS=3")
    assert found.errors == 1


def test_without_leases_an_evacuation_needs_no_guard_of_theirs(tmp_path: Path) -> None:
    theirs = ("NO_OVERTAKEN", "NO_LOOK_AT_LEASE", "NO_LEASE_WITH_WELCOME", "NO_DEADLINE", "NO_SUSPEND")
    for found in search(tmp_path, "evacuation", ("one_runner", "stale_goes_last", "ends_well"), "NO_LEASES", *theirs):
        assert found.errors == 0
        assert found.states > 50_000


def test_the_model_of_the_hand_over_is_of_the_table() -> None:
    text = (MODELS / "handover.pml").read_text()
    rows, undos = names(text)[:2]
    table = [step for step in COLD.steps if step.name in rows]
    assert [step.name for step in table] == rows
    assert [step.undo.__name__ for step in table if step.undo] == undos
    at_source = [step for step in table if step.where is Where.SOURCE]
    assert hosts(text) == {step.name for step in at_source} | {step.undo.__name__ for step in at_source if step.undo}
    assert COLD.position("copy_disks") < COLD.position("hand_over") == COLD.position("start_guest") - 1
    assert "hand_over(); put_order(start_guest)" in text
    assert COLD.step("hand_over").undo is handover.take_back
    assert "take_back(); put_order(unseal)" in text


def test_the_model_of_the_undo_window_is_of_the_tables() -> None:
    text = (MODELS / "undo_window.pml").read_text()
    tables = (CONFIRM, REVERT, DELETE)
    assert names(text)[1:] == [[step.name for step in of_hosts(table)] for table in tables]
    assert hosts(text) == {step.name for table in tables for step in of_hosts(table) if step.where is Where.TARGET}


def test_the_model_of_an_evacuation_is_of_the_tables() -> None:
    text = (MODELS / "evacuation.pml").read_text()
    rows, undos, power = names(text)[:3]
    table = [step for step in EVACUATE.steps if step.name in rows]
    assert [step.name for step in table] == rows
    left_out = {"define_guest"}
    assert [step.undo.__name__ for step in table if step.undo and step.name not in left_out] == undos
    assert [step.name for step in POWER.steps] == power
    at_target = [step for step in table if step.where is Where.TARGET]
    of_target = {step.undo.__name__ for step in at_target if step.undo and step.name not in left_out}
    assert hosts(text) == {step.name for step in at_target} | of_target
    assert EVACUATE.position("hand_over") == EVACUATE.position("start_guest") - 1
    assert "hand_over(); put_order(start_guest)" in text
    assert "ANSWERED(revoke, never_ran) -> take_back(); turn_back()" in text


def test_the_guards_told_of_are_those_of_the_models() -> None:
    told = set(re.findall(r"^\| `(NO_\w+)`", (MODELS / "README.md").read_text(), re.MULTILINE))
    taken_out = {
        guard
        for model in MODELS.glob("*.pml")
        for guard in re.findall(r"^#if\w* (NO_\w+)", model.read_text(), re.MULTILINE)
    }
    assert taken_out - told == {"NO_HUMAN", "NO_LEASES"}
    assert told <= taken_out


def of_hosts(table: Protocol) -> list[Step]:
    return [step for step in table.steps if step.where is not Where.CONDUCTOR]


def names(text: str) -> list[list[str]]:
    return [found.split(", ") for found in re.findall(r"^mtype = \{ (.+?) \};", text, re.MULTILINE)]


def hosts(text: str) -> set[str]:
    macro = re.search(r"#define HOST_OF\(s\) \((\(.+?\)) ->", text)
    assert macro
    return set(re.findall(r"s == (\w+)", macro[1]))
