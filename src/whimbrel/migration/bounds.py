"""What a message may say at most. What is beyond is a fault or a forgery, and is refused whole, where it is decoded.

A message checks itself when it is made, so that neither end can hold an absurd one: the sender learns of it first, and
what arrives in spite of that is no message. ValueError names the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection

MOST_NUMBER = 2_000_000_000
"""The greatest epoch, order number or count: below 2^31, which is where databases end, with room to go on counting."""

MOST_BYTES = 2**62
MOST_RATIO = 1_000.0
MOST_SECONDS = 1e9
LONGEST_NAME = 255
LONGEST_TEXT = 65_536

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


def host(field: str, value: str) -> None:
    """Refuse what is no host's name: it becomes a queue's name, and stands in paths and commands."""
    if not _HOST.fullmatch(value):
        raise ValueError(f"{field} {value[:80]!r} is no host's name")


def label(field: str, *values: str) -> None:
    """Refuse what is no short name of ours: a server's id, an attempt, a step."""
    for value in values:
        if not _LABEL.fullmatch(value):
            raise ValueError(f"{field} {value[:80]!r} is no name")


def text(field: str, *values: str, most: int = LONGEST_NAME) -> None:
    """Refuse a text that is too long, or holds a NUL, which no database keeps."""
    for value in values:
        if len(value) > most or "\0" in value:
            raise ValueError(f"{field} has {len(value)} characters, {most} are the most, none of them NUL")


def number(field: str, *values: int, least: int = 0, most: int = MOST_NUMBER) -> None:
    """Refuse a number that cannot be meant, or would not fit where it is kept."""
    for value in values:
        if not least <= value <= most:
            raise ValueError(f"{field} {str(value)[:40]} is not from {least} to {most}")


def measure(field: str, *values: float, least: float = 0.0, most: float = MOST_SECONDS) -> None:
    """Refuse a measure that is out of its range, or no number at all."""
    for value in values:
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(f"{field} {value} is not from {least:g} to {most:g}")


def one_of(field: str, value: str, known: Collection[str]) -> None:
    """Refuse a word that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{field} {value[:80]!r} is none of {', '.join(known)}")


def nesting(field: str, value: object, most: int = 40) -> None:
    """Refuse facts that are nested deeper than anything that is told."""
    level = [value]
    for _ in range(most):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise ValueError(f"{field} is nested more than {most} deep")


def holds_nul(value: object) -> bool:
    """Return whether a NUL is in any text of a JSON-shaped value: databases and definitions cannot hold one."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if "\0" in value:
                return True
        else:
            waiting += [*value, *value.values()] if isinstance(value, dict) else _inside(value)
    return False


def _inside(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
