"""The story of the whole lab: all processes' logs in the order of their times, as lines for people.

A process logs JSON lines; what is not JSON (a traceback, sshd's words) keeps its place behind the line before it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

FOLLOW_PAUSE = 0.25
READ_MAX = 1 << 20
# Their lines carry no time, so they are shown only when asked for.
TIMELESS = ("init", "sshd", "libvirtd")
_SHOWN_APART = ("timestamp", "event", "role", "host", "level", "exception")


@dataclass(frozen=True, order=True)
class Entry:
    """One line of one process; `time` is in seconds since the epoch, `fields` is empty for a line that is no JSON."""

    time: float
    source: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    def render(self) -> str:
        """Return the entry as one line: time, who, what, and the rest as key=value."""
        at = datetime.fromtimestamp(self.time, UTC).strftime("%H:%M:%S.%f")[:-3]
        extra = " ".join(f"{key}={value}" for key, value in self.fields.items() if key not in _SHOWN_APART)
        level = str(self.fields.get("level", ""))
        mark = level.upper() + " " if level in ("warning", "error", "critical") else ""
        lines = f"{at} {self.source:<14} {mark}{self.text} {extra}".rstrip()
        trace = self.fields.get("exception")
        return f"{lines}\n{trace}" if trace else lines


@dataclass(frozen=True)
class Wanted:
    """Which entries to show: of one role, one request, one migration; None means all."""

    role: str | None = None
    request: str | None = None
    migration: str | None = None

    def admits(self, entry: Entry) -> bool:
        """Tell whether the entry is wanted; a line without fields belongs to no request."""
        if self.request is not None and entry.fields.get("request_id") != self.request:
            return False
        return self.migration is None or str(entry.fields.get("migration")) == self.migration


class Tail:
    """One log file, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._time = 0.0

    def read(self) -> Iterator[Entry]:
        """Yield the whole lines that came since the last call, a mebibyte at most."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(READ_MAX)
        except FileNotFoundError:
            return
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.decode(errors="replace").splitlines():
            if line.strip():
                yield self._entry(line)

    def read_all(self) -> Iterator[Entry]:
        """Yield every whole line that is there."""
        before = -1
        while before != self._offset:
            before = self._offset
            yield from self.read()

    def _entry(self, line: str) -> Entry:
        try:
            fields = json.loads(line)
            self._time = _seconds(fields["timestamp"])
        except (ValueError, KeyError, TypeError):
            return Entry(self._time, self.path.stem, line)
        role, host = fields.get("role"), fields.get("host")
        source = f"{role}@{host}" if role and host else str(role or self.path.stem)
        return Entry(self._time, source, str(fields.get("event", "")), fields)


def entries(dir: Path, wanted: Wanted, *, follow: bool = False) -> Iterator[Entry]:
    """Yield the wanted entries of all logs in `dir` by time; with `follow`, go on until interrupted."""
    tails: dict[Path, Tail] = {}
    _look_for_new(dir, wanted, tails)
    yield from filter(wanted.admits, heapq.merge(*(tail.read_all() for tail in tails.values())))
    pause = Event()
    while follow:
        pause.wait(FOLLOW_PAUSE)
        _look_for_new(dir, wanted, tails)
        news = sorted(entry for tail in tails.values() for entry in tail.read())
        yield from filter(wanted.admits, news)


def _look_for_new(dir: Path, wanted: Wanted, tails: dict[Path, Tail]) -> None:
    for path in sorted(dir.glob("*.log")):
        role = path.stem.partition("@")[0]
        if wanted.role in (path.stem, role) or (wanted.role is None and role not in TIMELESS):
            tails.setdefault(path, Tail(path))


def _seconds(value: str | float) -> float:
    if isinstance(value, str):
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return float(value)
