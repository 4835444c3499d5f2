"""The first half of the seeds: whatever goes wrong, every promise holds."""

from __future__ import annotations

import pytest

from tests.sim.seeds import assert_all_hold, chunks


@pytest.mark.parametrize("seeds", chunks(0), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_every_promise_holds_whatever_goes_wrong(seeds: range) -> None:
    assert_all_hold(seeds)
