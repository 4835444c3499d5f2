"""Gates: places in a protocol where a test holds one migration still, exactly before or after a step.

A gate is a file in a directory that the test and the held processes share: its name says which step and which side of
it, its content which server (`*`: the first that comes). Who reaches it says so in a second file and waits until the
test takes the gate away. Outside of such a directory nothing is ever held.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from whimbrel.lab.processes import wait_until

HOLD = 60.0
"""Seconds after which a gate that nobody takes away lets everyone through."""
ANY = "*"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Gate:
    """One side of one step."""

    protocol: str
    step: str
    edge: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.protocol}.{self.step}.{self.edge}"


class Gates:
    """The gates of one directory."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir

    # --- the test's side ------------------------------------------------------------------------

    def arm(self, gate: Gate, server: str = ANY) -> None:
        """Let this server, or the first that comes, be held at the gate."""
        self.dir.mkdir(exist_ok=True)
        draft = self.dir / f".{gate.name}"
        draft.write_text(server)
        draft.rename(self.dir / gate.name)

    def holds(self, gate: Gate) -> str | None:
        """Return the server that is held at the gate, None while nobody is."""
        try:
            return (self.dir / f"{gate.name}.reached").read_text() or None
        except FileNotFoundError:
            return None

    def open(self) -> None:
        """Take all gates away; whoever is held goes on."""
        for path in self.dir.glob("*"):
            path.unlink(missing_ok=True)

    # --- the side of who is held -----------------------------------------------------------------

    def holds_up(self, gate: Gate, server: str) -> bool:
        """Return whether this server must stop at the gate; a gate holds one server only."""
        try:
            wanted = (self.dir / gate.name).read_text()
        except FileNotFoundError:
            return False
        if wanted not in (ANY, server):
            return False
        with suppress(FileExistsError):
            note = os.open(self.dir / f"{gate.name}.reached", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(note, server.encode())
            os.close(note)
        return self.holds(gate) == server

    def is_open(self, gate: Gate) -> bool:
        """Return whether the gate has been taken away."""
        return not (self.dir / gate.name).exists()

    def hold(self, gate: Gate, server: str) -> None:
        """Stop here, if the gate is meant for this server, until it is taken away."""
        if self.holds_up(gate, server):
            wait_until(lambda: self.is_open(gate), HOLD)
