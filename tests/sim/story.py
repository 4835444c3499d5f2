"""What happened, line by line: virtual time, who, what. A failed seed prints it; its digest proves a repetition."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from typing import Any

import structlog

from tests.sim.timeloop import CURRENT

Line = tuple[float, str, str]
_MACHINE = re.compile(r"(?<=\.boot-)\d+|/\S*/whimbrel-sim-\w+/")
"""What differs between two machines: process ids, and where the files are."""


class Story:
    """The lines of one run: what the world did to the processes, and what these logged."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.time: Callable[[], float] = lambda: 0.0
        self.alarms: list[str] = []

    def tell(self, who: str, what: str) -> None:
        """Add a line."""
        self.lines.append((self.time(), who, _MACHINE.sub("", what)))

    def record(self, logger: Any, method: str, event: dict[str, Any]) -> str:
        """Take a log line of the product (a structlog processor); an internal error is an alarm."""
        process = CURRENT.get()
        name = event.pop("event")
        bug = event.pop("exc_info", None)
        details = " ".join(f"{key}={value}" for key, value in sorted(event.items()) if value not in (None, ""))
        self.tell(process.name if process is not None else "-", f"{name} {details}")
        if name.startswith("internal error") and bug:
            error = sys.exc_info()[1]
            if not isinstance(error, OSError) and type(error).__module__ != "sqlite3":
                self.alarms.append(f"{name}: {error!r}")
        raise structlog.DropEvent

    def digest(self) -> str:
        """Return a fingerprint of all lines."""
        text = "\n".join(f"{time:.6f} {who} {what}" for time, who, what in self.lines)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def last(self, count: int) -> str:
        """Return the last lines for people."""
        return "\n".join(f"{time:10.3f}  {who:<12} {what}" for time, who, what in self.lines[-count:])
