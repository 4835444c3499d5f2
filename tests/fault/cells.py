"""The cells of the proof: a step, a side of it, a fault; and in which order they are tried.

Cells that share fault and side are tried in one shot, each with a server of its own: one power cut then catches
several servers at several steps. How long what fell stays away is drawn from the seed: shorter or longer than the
conductor's patience.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fault.gates import AFTER, BEFORE, Gate
from whimbrel.migration.protocols import PROTOCOLS

MOVES = ("cold", "live", "revert", "confirm")
EVERY = ("cold", "live", "resize", "confirm", "revert", "build", "delete", "power")
FAULTS = (
    "conductor",
    "api",
    "rabbitmq",
    "source agent",
    "target agent",
    "source libvirtd",
    "target libvirtd",
    "qemu",
    "source power",
    "target power",
    "link",
    "target full",
)
"""Processes are killed with SIGKILL. `qemu`: the guest's, wherever it runs. `link`: the target's cables, for 20 s."""

PATIENCE = 8.0
"""Seconds that the conductor of the proof waits for a silent host."""
SHORT, LONG, LINK_DOWN = 1.0, PATIENCE + 5, 20.0
LASTING = frozenset(FAULTS) - {"qemu", "link"}
"""Faults of which it matters for how long they last."""


@dataclass(frozen=True)
class Cell:
    """One of the many."""

    protocol: str
    step: str
    edge: str
    fault: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What the results name it by."""
        return self.protocol, self.step, self.edge, self.fault

    @property
    def gate(self) -> Gate:
        """Where its migration is held."""
        return Gate(self.protocol, self.step, self.edge)


@dataclass(frozen=True)
class Shot:
    """Cells of one protocol, side and fault, tried together; `away` is how long the fault lasts, in seconds."""

    cells: tuple[Cell, ...]
    away: float

    @property
    def protocol(self) -> str:
        """The protocol of all of them."""
        return self.cells[0].protocol

    @property
    def fault(self) -> str:
        """The fault of all of them."""
        return self.cells[0].fault


def applies(protocol: str, fault: str, *, fake: bool) -> bool:
    """Return whether there is such a fault: a build has no source, and guests without a hypervisor no libvirtd."""
    if fake and fault.endswith("libvirtd"):
        return False
    return not (fault.startswith("source") and protocol in ("build", "power"))


def cells_of(protocols: tuple[str, ...], *, fake: bool) -> list[Cell]:
    """Return every cell of these protocols."""
    return [
        Cell(name, step.name, edge, fault)
        for name in protocols
        for step in PROTOCOLS[name].steps
        for edge in (BEFORE, AFTER)
        for fault in FAULTS
        if applies(name, fault, fake=fake)
    ]


def shots_of(protocol: str, size: int, seed: int, *, fake: bool, wanted: set[Cell]) -> Iterator[Shot]:
    """Yield the shots of one protocol for the cells that are wanted; each pair of step and fault comes once first, and
    of these each kind of fault as early as can be."""
    steps = [step.name for step in PROTOCOLS[protocol].steps]
    groups = [steps[first : first + size] for first in range(0, len(steps), size)]
    faults = [fault for fault in FAULTS if applies(protocol, fault, fake=fake)]
    for turn in range(2):
        for number, group in enumerate(groups):
            for place, fault in enumerate(faults):
                edge = (BEFORE, AFTER)[(place + number + turn + seed) % 2]
                cells = [Cell(protocol, step, edge, fault) for step in group]
                cells = [cell for cell in cells if cell in wanted]
                if cells:
                    yield Shot(tuple(cells), _away(cells[0], seed))


def _away(cell: Cell, seed: int) -> float:
    """Return how long the fault lasts, drawn from the seed and the cell's name."""
    if cell.fault == "link":
        return LINK_DOWN
    if cell.fault not in LASTING:
        return SHORT
    drawn = hashlib.sha256(f"{seed} {cell.key}".encode()).digest()[0]
    return SHORT if drawn % 2 else LONG
