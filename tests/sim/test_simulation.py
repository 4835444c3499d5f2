"""The simulation itself: a seed is the same run everywhere, it makes trouble of every kind, and it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim import mutants, workload
from tests.sim.faults import FLEETING, LASTING
from tests.sim.run import play

ROOT = Path(__file__).parent.parent.parent


def _digests(hash_seed: str) -> str:
    """Play two seeds in a process of their own, in which sets of words have another order."""
    command = [sys.executable, "-m", "tests.sim.run", "--seeds", "2", "--first", "7", "--processes", "1", "--digests"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return "\n".join(told.splitlines()[:2])


def test_a_seed_and_a_commit_are_one_run() -> None:
    once = _digests("1")
    assert len(once.splitlines()) == 2
    assert once == _digests("2")
    assert [line.split()[1] for line in once.splitlines()] == [play(seed).digest for seed in (7, 8)]


def test_there_is_trouble_and_work_of_every_kind() -> None:
    counts: Counter[str] = Counter()
    for seed in range(1, 61):
        counts += play(seed).counts
    wanted = [row.name for row in LASTING] + [*FLEETING] + [f"operation {row.name}" for row in workload.OPERATIONS]
    assert not [kind for kind in wanted if not counts[kind]]


@pytest.mark.parametrize("title", ["the source is deleted before the confirm", "nobody asks what became of an order"])
def test_a_broken_product_is_seen(title: str) -> None:
    index = next(number for number, mutant in enumerate(mutants.MUTANTS) if mutant.title == title)
    _, seeds, found = mutants.hunt(index, 15)
    assert seeds, found
