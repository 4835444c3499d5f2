"""What a handler gets and gives, free of any web framework: `async def handler(call: Call) -> Reply`.

A route is one row: method, path, handler, policy and schemas. Everything that a row names is checked before the
handler runs, so a handler begins with a caller who may and a body that makes sense.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whimbrel.identity.caller import Caller

if TYPE_CHECKING:
    from whimbrel.api.app import Services

Version = tuple[int, int]

SERVICES = ("compute", "identity", "image", "network", "placement", "whimbrel")


@dataclass(frozen=True)
class Call:
    """One request, checked. `query` keeps every value of a repeated parameter; `stream` is the raw body."""

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: Any
    stream: AsyncIterator[bytes]
    caller: Caller | None
    version: Version
    request_id: str
    services: Services

    def first(self, name: str) -> str | None:
        """Return the first value of a query parameter, None when it is not there."""
        values = self.query.get(name)
        return values[0] if values else None

    @property
    def who(self) -> Caller:
        """Return the caller of a route that needs one."""
        assert self.caller is not None
        return self.caller


@dataclass(frozen=True)
class Reply:
    """What goes back. `body` is JSON-shaped, None for no body; `stream` sends bytes instead."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
    media_type: str = "application/json"


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Schema:
    """A JSON schema for bodies from one microversion on."""

    since: Version
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """One row of the table. `service` prefixes the path (`compute`, `identity`, `image`, `network`, `whimbrel`).

    `action` is the single key of the body of `POST /servers/{id}/action`. `since` and `until` bound the
    microversions that know the route (404 outside). `policy` is the rule's name, None for anybody with a token;
    `public` needs no token. `raw` leaves the body unread for the handler's stream. `subject` finds what the path
    names: it is asked before a refusal, because what is another project's is not there (404), rather than forbidden.
    """

    service: str
    method: str
    path: str
    handler: Handler
    policy: str | None = None
    action: str | None = None
    schemas: tuple[Schema, ...] = ()
    since: Version = (2, 1)
    until: Version | None = None
    public: bool = False
    raw: bool = False
    subject: Callable[[Call], Awaitable[object]] | None = None

    @property
    def url_path(self) -> str:
        """Return the whole path: the service's prefix, if it has one, and the row's."""
        return f"/{self.service}{self.path}" if self.service in SERVICES else self.path
