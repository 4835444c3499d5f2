"""The rows of Whimbrel's own API, and of the health check."""

from __future__ import annotations

from whimbrel.api.call import Handler, Route, Schema
from whimbrel.api.handlers import audit, discovery, finding, journal, plan, recovery
from whimbrel.api.schemas import servers as server_schema
from whimbrel.api.schemas import services as schema
from whimbrel.api.schemas.audit import RUN


def _plan(name: str, handler: Handler, rule: str, schemas: tuple[Schema, ...]) -> Route:
    """A plan takes the body of the newest form of the action that it is about."""
    return Route(
        "whimbrel",
        "POST",
        "/v1/servers/{id}/plan",
        handler,
        f"os_compute_api:{rule}",
        action=name,
        schemas=server_schema.one((2, 1), dict(schemas[-1].body)),
        subject=finding.subject,
    )


WHIMBREL: tuple[Route, ...] = (
    Route("", "GET", "/healthz", discovery.health, public=True),
    Route("whimbrel", "GET", "/v1/migrations", journal.index, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/migrations/{id}", journal.show, "os_compute_api:servers:show"),
    Route("whimbrel", "GET", "/v1/migrations/{id}/events", journal.events, "os_compute_api:servers:show"),
    _plan("migrate", plan.migrate, "os-migrate-server:migrate", server_schema.MIGRATE),
    _plan("os-migrateLive", plan.migrate_live, "os-migrate-server:migrate_live", server_schema.MIGRATE_LIVE),
    _plan("resize", plan.resize, "servers:resize", server_schema.RESIZE),
    Route("whimbrel", "GET", "/v1/hosts", journal.hosts, "whimbrel:hosts"),
    Route("whimbrel", "GET", "/v1/audit", audit.show, "whimbrel:audit"),
    Route("whimbrel", "POST", "/v1/audit", audit.run, "whimbrel:audit", schemas=RUN),
    Route("", "GET", "/metrics", audit.metrics_page, "whimbrel:metrics"),
    Route("whimbrel", "POST", "/v1/hosts/{name}/fence", recovery.prove, "whimbrel:hosts:fence", schemas=schema.FENCE),
)
