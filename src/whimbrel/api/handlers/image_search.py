"""The query parameters of a list of images, as a search. What is no known parameter asks for a property's value."""

from __future__ import annotations

import re
from typing import Any

from whimbrel.api.call import Call
from whimbrel.api.schemas.images import VISIBILITIES
from whimbrel.domain.errors import Invalid
from whimbrel.store.images import SORT_KEYS, Search

DEFAULT_LIMIT = 100
LIMIT_MAX = 1000
PROPERTIES_MAX = 16
VALUES_MAX = 100
PROPERTY_NAME = re.compile(r'[^"\\\x00-\x1f]{1,255}')
"""A property's name becomes part of a path into JSON, where quotes and backslashes would end it."""

_TEXTS = {
    "id": "id",
    "name": "name",
    "status": "status",
    "owner": "project_id",
    "disk_format": "disk_format",
    "container_format": "container_format",
}
_NUMBERS = {"size": "size_bytes", "min_disk": "min_disk_gb", "min_ram": "min_ram_mb"}
_FLAGS = {"protected": "protected", "os_hidden": "hidden"}
_OTHERS = ("limit", "marker", "sort", "sort_key", "sort_dir", "visibility", "tag", "size_min", "size_max")
_IGNORED = ("member_status",)


def limit_of(call: Call) -> int:
    """Return how many images a page has: what is asked for, at most 1000."""
    return min(_number(call, "limit") or DEFAULT_LIMIT, LIMIT_MAX)


def search_of(call: Call) -> Search:
    """Return the search that the parameters ask for; Invalid names the one that makes no sense."""
    columns: dict[str, list[Any]] = {"hidden": [False]}
    for name, column in _TEXTS.items():
        if (text := call.first(name)) is not None:
            columns[column] = _any_of(text)
    for name, column in _NUMBERS.items():
        if (number := _number(call, name)) is not None:
            columns[column] = [number]
    for name, column in _FLAGS.items():
        if call.first(name) is not None:
            columns[column] = [_flag(call, name)]
    known = {*_TEXTS, *_NUMBERS, *_FLAGS, *_OTHERS, *_IGNORED}
    properties = {name: values[0] for name, values in call.query.items() if name not in known}
    strange = next((name for name in properties if not PROPERTY_NAME.fullmatch(name)), None)
    if strange is not None:
        raise Invalid(f"An image cannot be asked for by a property named {strange[:80]!r}.")
    if len(properties) > PROPERTIES_MAX:
        raise Invalid(f"At most {PROPERTIES_MAX} properties can be asked for at once.")
    visibility = call.first("visibility")
    if visibility not in (None, "all", *VISIBILITIES):
        raise Invalid(f"`visibility` is one of {', '.join(VISIBILITIES)} and all, not {visibility}.")
    return Search(
        project_id=None if call.who.is_admin else call.who.project_id or "",
        visibility=visibility,
        columns=columns,
        properties=properties,
        tags=list(call.query.get("tag", ()))[:PROPERTIES_MAX],
        size_min=_number(call, "size_min"),
        size_max=_number(call, "size_max"),
        sort=_sort(call),
    )


def _sort(call: Call) -> tuple[tuple[str, bool], ...]:
    """Read `sort=name:asc,size:desc`, or `sort_key` and `sort_dir`; the newest come first by default."""
    if call.first("sort"):
        words = [word.partition(":") for word in (call.first("sort") or "").split(",")]
        pairs = [(key.strip(), way or "desc") for key, _, way in words]
    else:
        ways = list(call.query.get("sort_dir", ())) or ["desc"]
        keys = list(call.query.get("sort_key", ())) or ["created_at"]
        pairs = [(key, ways[min(number, len(ways) - 1)]) for number, key in enumerate(keys)]
    if len({key for key, _ in pairs}) != len(pairs):
        raise Invalid("Images can be sorted by each key once.")
    for key, way in pairs:
        if key not in SORT_KEYS or way not in ("asc", "desc"):
            raise Invalid(f"Images cannot be sorted by {key}:{way}; use {', '.join(SORT_KEYS)} with asc or desc.")
    return tuple((key, way == "desc") for key, way in pairs)


def _any_of(text: str) -> list[str]:
    """Read `in:a,b` as two values, anything else as one."""
    if not text.startswith("in:"):
        return [text]
    values = [part.strip().strip('"') for part in text.removeprefix("in:").split(",")]
    if len(values) > VALUES_MAX:
        raise Invalid(f"At most {VALUES_MAX} values can be asked for at once.")
    return values


def _number(call: Call, name: str) -> int | None:
    text = call.first(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Invalid(f"`{name}` is a whole number that is not negative, not {text}.")
    return int(text)


def _flag(call: Call, name: str) -> bool:
    text = (call.first(name) or "").lower()
    if text not in ("true", "false"):
        raise Invalid(f"`{name}` is true or false, not {text}.")
    return text == "true"
