"""The api role: what its handlers share, the application made of the table of routes, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import BaseRoute

from whimbrel.api import dispatch
from whimbrel.api.patience import PatientProtocol
from whimbrel.api.progress import ProgressHub
from whimbrel.api.routes import ROUTES
from whimbrel.bus.port import Bus
from whimbrel.domain.errors import SettingsError
from whimbrel.identity import policy
from whimbrel.identity.passwords import Passwords
from whimbrel.identity.tokens import Tokens
from whimbrel.ops.settings import Api, Settings
from whimbrel.store.engine import Store
from whimbrel.store.outbox import Relay

SHUTDOWN_SECONDS = 5
KEEP_ALIVE_SECONDS = 65
MAX_REQUESTS_AT_ONCE = 1_000
BACKLOG = 1_024
PUBLISH_SECONDS = 1.0


@dataclass(frozen=True)
class Services:
    """What every handler may use. One per process."""

    settings: Settings
    store: Store
    bus: Bus
    relay: Relay
    tokens: Tokens
    passwords: Passwords = field(default_factory=Passwords)
    hub: ProgressHub = field(default_factory=ProgressHub)

    @property
    def public_url(self) -> str:
        """Return the address that links are made with, never the request's own."""
        return self.settings.api.public_url.rstrip("/")

    async def publish(self, rows: list[tuple[int, str, object]]) -> None:
        """Hand what was just committed to the bus; nobody waits for a broker that is away, the sweep sends the rest."""
        with anyio.move_on_after(PUBLISH_SECONDS):
            await self.relay.send_now(rows)


def build_app(services: Services, more: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application: the table's routes, then `more` (the web pages)."""
    policy.require_names(row.policy for row in ROUTES if row.policy is not None)
    app = Starlette(routes=[*dispatch.web_routes(ROUTES, services), *more])
    app.router.redirect_slashes = False

    async def nowhere(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = await dispatch.answer(dispatch.service_of(scope["path"]), (), request, services)
        await response(scope, receive, send)

    app.router.default = nowhere
    app.add_middleware(WithoutTrailingSlash)
    return app


class WithoutTrailingSlash:
    """`/placement/` and `/placement` are one; a redirect would believe the request's Host header."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


class Server(uvicorn.Server):
    """Uvicorn, but live streams are ended at exit, and signals are the process's own matter."""

    def __init__(self, config: uvicorn.Config, hub: ProgressHub) -> None:
        super().__init__(config)
        self._hub = hub

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def shutdown(self, sockets: Any = None) -> None:
        """Send the watchers home first, so that only real work is waited for."""
        self._hub.close()
        await super().shutdown(sockets)


async def serve(services: Services, more: Sequence[BaseRoute] = ()) -> None:
    """Serve until cancelled; then finish what runs within 5 s. SettingsError when the address cannot be had."""
    api = services.settings.api
    tls = _tls(api)
    listener = _listen(api)
    await services.hub.listen(services.bus)
    config = uvicorn.Config(
        build_app(services, more),
        http=PatientProtocol,
        ws="none",
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=MAX_REQUESTS_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = Server(config, services.hub)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            await running
        raise


def _tls(api: Api) -> ssl.SSLContext | None:
    """Return what TLS is spoken with, None for plain HTTP; SettingsError when the files are not what is needed."""
    if api.certificate_file is None and api.key_file is None:
        return None
    if api.certificate_file is None or api.key_file is None:
        raise SettingsError("[api] certificate_file and key_file belong together; name both, or neither.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(api.certificate_file, api.key_file)
    except OSError as error:
        raise SettingsError(f"[api] certificate_file and key_file cannot be used: {error}.") from error
    return context


def _listen(api: Api) -> socket.socket:
    """Take the address before anything else starts, so that a second api fails with words."""
    family = socket.AF_INET6 if ":" in api.listen else socket.AF_INET
    try:
        listener = socket.create_server((api.listen, api.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {api.listen} port {api.port}: {error.strerror}; change [api] listen or port."
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that it made itself, and without it the kernel keeps
    # the body of an answer back for 40 ms after the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
