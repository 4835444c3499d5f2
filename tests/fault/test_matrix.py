"""A sample of the proof: some cells of step, side and fault, each audited from outside. `make proof` tries them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.auditor import Rest
from tests.fault.bench import Bench
from tests.fault.cells import EVERY, MOVES, SHORT, Cell, Shot, cells_of, shots_of
from tests.fault.fakebench import FakeBench
from tests.fault.gates import AFTER, BEFORE
from tests.fault.matrix import Matrix

pytestmark = pytest.mark.real

SAMPLE = (
    ("cold", ("stop_guest", "copy_disks", "start_guest"), BEFORE, "source power"),
    ("revert", ("stop_target", "take_back", "start_source"), AFTER, "target agent"),
    ("confirm", ("retire_source", "settle_claims"), BEFORE, "conductor"),
)
QUICK_SAMPLE = (
    ("cold", ("prepare", "verify_disks", "hand_over", "start_guest"), AFTER, "target power"),
    ("build", ("prepare", "define_guest", "start_guest"), BEFORE, "target agent"),
    ("delete", ("remove_guest", "remove_source"), AFTER, "source power"),
)


def shot(protocol: str, steps: tuple[str, ...], edge: str, fault: str) -> Shot:
    """Return a shot whose fault does not last."""
    return Shot(tuple(Cell(protocol, step, edge, fault) for step in steps), SHORT)


def test_every_cell_is_in_exactly_one_shot() -> None:
    for fake, protocols, size in ((False, MOVES, 3), (True, EVERY, 10)):
        wanted = cells_of(protocols, fake=fake)
        tried = [
            cell
            for protocol in protocols
            for one in shots_of(protocol, size, seed=1, fake=fake, wanted=set(wanted))
            for cell in one.cells
        ]
        assert len(tried) == len(set(tried)) and set(tried) == set(wanted)


@pytest.mark.timeout(600)
def test_some_cells_on_real_guests(tmp_path: Path) -> None:
    with Bench.up(tmp_path) as bench:
        matrix = Matrix(bench, 3)
        for row in (row for one in SAMPLE for row in matrix.try_shot(shot(*one))):
            assert not row.findings, row


@pytest.mark.timeout(600)
def test_some_cells_without_a_hypervisor_and_the_auditor_sees_what_is_wrong(tmp_path: Path) -> None:
    with FakeBench.up(tmp_path) as bench:
        matrix = Matrix(bench, 4)
        for row in (row for one in QUICK_SAMPLE for row in matrix.try_shot(shot(*one))):
            assert not row.findings, row
        _plant(bench, matrix)


def _plant(bench: Bench, matrix: Matrix) -> None:
    """Leave something behind of each kind: the auditor must name it."""
    rests = [_rest(matrix, server.id) for server in matrix.pool]
    findings = bench.auditor.findings
    assert not findings(rests)
    (bench.lab.host("h2").dir / "instances" / f"{rests[0].server.id}.incoming-9-9").mkdir()
    assert any("incoming-9-9 left over" in what for what in findings(rests))
    assert any("is missing" in what for what in findings([*rests[1:], _elsewhere(rests[0])]))
    assert any("claims" in what for what in findings(rests[1:]))
    bench.kill_guest(rests[0].server.id)
    assert any("a process" in what and "missing" in what for what in findings(rests))


def _rest(matrix: Matrix, server: str) -> Rest:
    one = next(one for one in matrix.pool if one.id == server)
    shown = one.show()
    host = str(shown["OS-EXT-SRV-ATTR:host"])
    back = matrix.cloud.other(host) if shown["status"] == "VERIFY_RESIZE" else None
    return Rest(one, host, True, back)


def _elsewhere(rest: Rest) -> Rest:
    other = rest.server.cloud.other(rest.host)
    return Rest(rest.server, other, rest.running, rest.sealed_at)
