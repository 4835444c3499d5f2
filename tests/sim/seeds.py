"""The seeds that every test run plays: always the same ones, in chunks that workers share."""

from __future__ import annotations

import os

import pytest

from tests.sim.run import play

CHUNK = 20
SEEDS = int(os.environ.get("WHIMBREL_SIM_SEEDS", "600"))
"""How many in all; half of them in each of two files, so that two workers share them."""

LINES = 150


def chunks(part: int) -> list[range]:
    """Return the chunks of one of the two halves."""
    first = 1 + part * (SEEDS // 2)
    return [range(start, min(start + CHUNK, first + SEEDS // 2)) for start in range(first, first + SEEDS // 2, CHUNK)]


def assert_all_hold(seeds: range) -> None:
    """Play each seed; fail with the story of the first in which something broke."""
    for seed in seeds:
        result = play(seed)
        if result.broken:
            story = "\n".join(result.story.splitlines()[-LINES:])
            pytest.fail(f"seed {seed}: {result.broken}\n{story}", pytrace=False)
