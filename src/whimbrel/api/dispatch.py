"""From a request to a Call and from a Reply to bytes: what a row of the table names is checked here, in one order.

Route, microversion, token, policy, body, schema; then the handler. Whatever is raised becomes the service's own
kind of error body, and every answer carries the request's id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as WebRoute

from whimbrel.api import faults, microversion, validation
from whimbrel.api.call import SERVICES, Call, Reply, Route, Version
from whimbrel.domain.errors import Invalid, NotFound, Unauthorized, WhimbrelError
from whimbrel.identity import policy
from whimbrel.identity.caller import Caller
from whimbrel.ops import clock, ids

if TYPE_CHECKING:
    from whimbrel.api.app import Services

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


def web_routes(table: Iterable[Route], services: Services) -> list[WebRoute]:
    """Return one Starlette route for each path of the table; within it the rows are told apart here."""
    paths: dict[str, list[Route]] = {}
    for row in table:
        paths.setdefault(row.url_path, []).append(row)
    return [WebRoute(path, Endpoint(rows[0].service, tuple(rows), services)) for path, rows in paths.items()]


def service_of(path: str) -> str:
    """Return which service's error bodies a path is answered with."""
    first = path.split("/", 2)[1] if "/" in path else ""
    return first if first in SERVICES else "whimbrel"


class Endpoint:
    """Everything that is served at one path, as an ASGI application."""

    def __init__(self, service: str, rows: Sequence[Route], services: Services) -> None:
        self._service = service
        self._rows = rows
        self._services = services

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await answer(self._service, self._rows, request, self._services)
        await response(scope, receive, send)


async def answer(service: str, rows: Sequence[Route], request: Request, services: Services) -> Response:
    """Answer one request from the rows of its path; none means that there is no such path."""
    began = clock.monotonic()
    request_id = ids.new_request_id()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    version = microversion.MIN
    try:
        if service == "compute":
            version = microversion.negotiate(request.headers)
        reply = await _handle(service, rows, request, services, (version, request_id))
    except WhimbrelError as error:
        reply = faults.reply(service, error)
    except ClientDisconnect:
        reply = faults.reply(service, Invalid("The client went away before its body was whole."))
    except Exception:  # the process must outlive a fault in one request
        _log.exception("request failed", method=request.method, path=request.scope["path"])
        reply = faults.unexpected(service)
    _log.info(
        "request",
        method=request.method,
        path=request.scope["path"],
        status=reply.status,
        ms=round((clock.monotonic() - began) * 1000, 1),
    )
    return _response(service, reply, version, request_id)


async def _handle(
    service: str, rows: Sequence[Route], request: Request, services: Services, about: tuple[Version, str]
) -> Reply:
    version, request_id = about
    rows = _for_method(rows, request, version)
    query = _query(request)
    caller = None if rows[0].public else _caller(request, services)
    body = None if rows[0].raw else await validation.read_json(request.stream())
    row = _for_action(rows, body)
    call = Call(
        method=request.method,
        path=request.scope["path"],
        params=request.path_params,
        query=query,
        headers=request.headers,
        body=body,
        stream=request.stream() if row.raw else _nothing(),
        caller=caller,
        version=version,
        request_id=request_id,
        services=services,
    )
    if row.policy is not None and caller is not None:
        await _enforce(row, row.policy, call)
    validation.check(row.schemas, version, body)
    return await row.handler(call)


async def _enforce(row: Route, rule: str, call: Call) -> None:
    """Raise Forbidden unless the caller may; NotFound when, to the caller, there is nothing to be forbidden."""
    target = {"project_id": call.who.project_id, "user_id": call.who.user_id}
    if not policy.allowed(rule, call.who, target):
        if row.subject is not None:
            await row.subject(call)
        policy.enforce(rule, call.who, target)


def _query(request: Request) -> dict[str, list[str]]:
    """Return all values of each query parameter; Invalid when the address holds a NUL, which no database keeps."""
    query = {name: request.query_params.getlist(name) for name in request.query_params}
    if any("\0" in text for text in [request.scope["path"], *query, *chain(*query.values())]):
        raise Invalid("The address holds a NUL character, which no name here may have.")
    return query


def _for_method(rows: Sequence[Route], request: Request, version: Version) -> Sequence[Route]:
    """Return the rows of this method that the version knows; HEAD is answered like GET."""
    method = "GET" if request.method == "HEAD" and not any(row.method == "HEAD" for row in rows) else request.method
    if not rows:
        raise NotFound("The resource could not be found.")
    rows = [row for row in rows if row.method == method]
    if not rows:
        raise faults.MethodNotAllowed(f"{request.method} is not allowed here.")
    known = [row for row in rows if row.since <= version and (row.until is None or version <= row.until)]
    if not known:
        raise NotFound(f"API version {microversion.text(version)} is not supported on this method.")
    return known


def _for_action(rows: Sequence[Route], body: Any) -> Route:
    """Return the row that the body's single key names, where the path is one of actions."""
    if rows[0].action is None:
        return rows[0]
    if not isinstance(body, dict) or len(body) != 1:
        raise Invalid("Malformed request body: it must be an object with the action as its only key.")
    name = next(iter(body))
    for row in rows:
        if row.action == name:
            return row
    raise Invalid(f"There is no such action: {name}")


def _caller(request: Request, services: Services) -> Caller:
    token = request.headers.get("x-auth-token")
    if not token:
        raise Unauthorized("The request you have made requires authentication.")
    caller: Caller = services.tokens.verify(token)
    return caller


def _response(service: str, reply: Reply, version: Version, request_id: str) -> Response:
    headers = {"x-openstack-request-id": request_id, **reply.headers}
    if service == "compute":
        headers |= {"x-compute-request-id": request_id, **microversion.response_headers(version)}
    if reply.stream is not None:
        return StreamingResponse(reply.stream, reply.status, headers, reply.media_type)
    if reply.body is None:
        return Response(None, reply.status, headers)
    content = _encode(reply.body) if reply.media_type == "application/json" else str(reply.body).encode()
    return Response(content, reply.status, headers, reply.media_type)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
