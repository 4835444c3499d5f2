"""Query parameters: numbers, times, booleans and patterns, each refused with 400 when it is none."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from whimbrel.api.call import Call
from whimbrel.domain.errors import Invalid

T = TypeVar("T")

MAX_LIMIT = 1000
TRUE = frozenset({"1", "t", "true", "on", "y", "yes", ""})
FALSE = frozenset({"0", "f", "false", "off", "n", "no"})


def limit(call: Call) -> int:
    """Return how many items a page may have: what was asked for, 1000 at most; 0 makes an empty one."""
    given = _limit(call)
    return MAX_LIMIT if given is None else min(given, MAX_LIMIT)


def _limit(call: Call) -> int | None:
    given = call.first("limit")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal()) or len(given) > 18:
        raise Invalid(
            f"Invalid input for query parameters limit. Value: {given[:80]}. It must be an integer, 0 or more."
        )
    return int(given)


def asked_page(call: Call, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is behind `marker`, as many as `limit` says: a client that pages ends at an empty page.

    Without either it is the whole list, because nothing in these services' answers links to a next page.
    """
    marker, limit = call.first("marker"), _limit(call)
    if marker is not None:
        places = [number for number, item in enumerate(items) if item.get("id") == marker]
        if not places:
            raise Invalid(f"Marker {marker[:80]} could not be found.")
        items = items[places[0] + 1 :]
    return list(items[:limit])


def cut(items: Sequence[T], limit: int) -> tuple[list[T], bool]:
    """Return the page's items, and whether a page that links to the next one leaves some out."""
    return list(items[:limit]), 0 < limit < len(items)


def moment(call: Call, name: str) -> float | None:
    """Return an ISO 8601 time as epoch seconds (UTC unless it says otherwise), None when it was not given."""
    given = call.first(name)
    if given is None:
        return None
    try:
        when = datetime.fromisoformat(given.replace(" ", "+") if re.search(r"\d \d\d:\d\d$", given) else given)
    except ValueError as error:
        raise Invalid(f"Invalid input for query parameters {name}. Value: {given}. It is no ISO 8601 time.") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def span(call: Call) -> tuple[float | None, float | None]:
    """Return `changes-since` and `changes-before`; Invalid when the second is the earlier one."""
    since, before = moment(call, "changes-since"), moment(call, "changes-before")
    if since is not None and before is not None and before < since:
        raise Invalid("The value of changes-since must be less than or equal to changes-before.")
    return since, before


def boolean(call: Call, name: str, default: bool | None = None) -> bool | None:
    """Return a boolean in any of the usual spellings, `default` when it was not given."""
    given = call.first(name)
    if given is None:
        return default
    if given.lower() in TRUE:
        return True
    if given.lower() in FALSE:
        return False
    raise Invalid(f"Invalid input for query parameters {name}. Value: {given}. It must be true or false.")


def pattern(call: Call, name: str) -> str | None:
    """Return a regular expression that is safe to run on names: no repeated groups, two repetitions at most.

    Others can take longer than anybody waits, on input that a user chooses.
    """
    given = call.first(name)
    if given is None:
        return None
    if len(given) > 255:
        raise Invalid(f"Invalid input for query parameters {name}: it is longer than 255 characters.")
    try:
        re.compile(given)
    except (re.error, RecursionError, OverflowError) as error:
        raise Invalid(f"Invalid input for query parameters {name}. Value: {given}. {error}.") from error
    bare = re.sub(r"\\.", "", given)
    if re.search(r"\)[*+?{]", bare) or len(re.findall(r"[*+{]", bare)) > 2:
        raise Invalid(
            f"Invalid input for query parameters {name}. Value: {given}. It repeats too much; make it simpler."
        )
    return given


def refuse_unknown(call: Call, known: Collection[str]) -> None:
    """Refuse a parameter that the resource does not have; older microversions let it pass."""
    unknown = sorted(set(call.query) - set(known))
    if unknown:
        raise Invalid(f"Invalid input for query parameters: {', '.join(unknown)} is not known here.")
