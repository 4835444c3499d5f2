"""The rows of Whimbrel's own API, and of the health check."""

from __future__ import annotations

from whimbrel.api.call import Route
from whimbrel.api.handlers import discovery, journal, recovery
from whimbrel.api.schemas import services as schema

WHIMBREL: tuple[Route, ...] = (
    Route("", "GET", "/healthz", discovery.health, public=True),
    Route("whimbrel", "GET", "/v1/migrations", journal.index, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/migrations/{id}", journal.show, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/migrations/{id}/events", journal.events, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/hosts", journal.hosts, "whimbrel:hosts"),
    Route("whimbrel", "POST", "/v1/hosts/{name}/fence", recovery.prove, "whimbrel:hosts:fence", schemas=schema.FENCE),
)
