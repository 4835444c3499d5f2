"""Links, made from the configured public address only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

Link = dict[str, str]


def of(public_url: str, collection: str, item: str) -> list[Link]:
    """Return an item's self and bookmark links."""
    return [
        {"rel": "self", "href": f"{public_url}/compute/v2.1/{collection}/{item}"},
        {"rel": "bookmark", "href": f"{public_url}/compute/{collection}/{item}"},
    ]


def bookmark(public_url: str, collection: str, item: str) -> list[Link]:
    """Return an item's bookmark link alone."""
    return of(public_url, collection, item)[1:]


def next_page(public_url: str, path: str, query: Mapping[str, Sequence[str]], marker: str) -> list[Link]:
    """Return the link to the page behind `marker`, the rest of the query as it was asked."""
    pairs = [(name, value) for name, values in query.items() if name != "marker" for value in values]
    return [{"rel": "next", "href": f"{public_url}{path}?{urlencode([*pairs, ('marker', marker)])}"}]
