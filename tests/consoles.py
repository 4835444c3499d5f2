"""What the lab's guests write on their consoles: for each boot the records that it found and those that it wrote."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VERIFY = re.compile(r"WRITER VERIFY total=(\d+) intact=(\d+) torn=(\d+) bad=(\d+) last=(\d+) boot=(\d+)")
_RECORD = re.compile(r"WRITER seq=(\d+) ")
_LATER = re.compile(r"WRITER (?:READY|DOWN|seq=\d+ )")
"""What a guest says after it has verified its disk."""
FAULT = re.compile(r"WRITER (?:FAIL|FATAL).*|WRITER FILL .*bad=[1-9].*|WRITER DISK2 .*bad=[1-9].*")


@dataclass(frozen=True)
class Boot:
    """What one boot of a guest said: the records that it found whole and its last one, and those that it wrote."""

    text: str
    found: Mapping[str, int]
    first: int
    last: int


def boots_of(text: str) -> list[Boot]:
    """Split a console into the boots that got as far as verifying the disk; what was said on the way is theirs."""
    verified = list(_VERIFY.finditer(text))
    starts, before = [], 0
    for verify in verified:
        said = [match.end() for match in _LATER.finditer(text, before, verify.start())]
        starts.append(said[-1] if said else before)
        before = verify.end()
    boots = []
    for verify, (start, end) in zip(verified, itertools.pairwise([*starts, len(text)]), strict=True):
        part = text[start:end]
        numbers = [int(number) for number in _RECORD.findall(part)]
        names = ("total", "intact", "torn", "bad", "last", "boot")
        found = dict(zip(names, map(int, verify.groups()), strict=True))
        boots.append(Boot(part, found, min(numbers, default=0), max(numbers, default=0)))
    return boots


def has_records(text: str) -> bool:
    """Return whether a guest has written a record."""
    return _RECORD.search(text) is not None


def read(path: Path) -> str:
    """Return a console's whole lines; nothing if it is not there."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return text[: text.rfind("\n") + 1]
