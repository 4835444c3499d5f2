"""The rows of Whimbrel's own API, and of the health check."""

from __future__ import annotations

from whimbrel.api.call import Route
from whimbrel.api.handlers import audit, discovery, journal, recovery
from whimbrel.api.schemas import services as schema
from whimbrel.api.schemas.audit import RUN

WHIMBREL: tuple[Route, ...] = (
    Route("", "GET", "/healthz", discovery.health, public=True),
    Route("whimbrel", "GET", "/v1/migrations", journal.index, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/migrations/{id}", journal.show, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/migrations/{id}/events", journal.events, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/hosts", journal.hosts, "whimbrel:hosts"),
    Route("whimbrel", "GET", "/v1/audit", audit.show, "whimbrel:audit"),
    Route("whimbrel", "POST", "/v1/audit", audit.run, "whimbrel:audit", schemas=RUN),
    Route("", "GET", "/metrics", audit.metrics_page, "whimbrel:metrics"),
    Route("whimbrel", "POST", "/v1/hosts/{name}/fence", recovery.prove, "whimbrel:hosts:fence", schemas=schema.FENCE),
)
