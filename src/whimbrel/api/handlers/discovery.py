"""What may be asked without a token: which APIs there are, and whether this process is well."""

from __future__ import annotations

from whimbrel.api.call import Call, Reply
from whimbrel.api.views import versions
from whimbrel.ops import clock


async def compute_versions(call: Call) -> Reply:
    """List the compute API's versions."""
    return Reply(body=versions.compute_versions(call.services.public_url))


async def compute_version(call: Call) -> Reply:
    """Show v2.1 and the microversions that it speaks."""
    return Reply(body={"version": versions.compute_version(call.services.public_url)})


async def compute_version_2_0(call: Call) -> Reply:
    """Show that v2.0 is a thing of the past."""
    return Reply(body={"version": versions.compute_version_2_0(call.services.public_url)})


async def compute_choices(call: Call) -> Reply:
    """Send whoever asks for another version to v2.1."""
    return Reply(300, versions.compute_choices(call.services.public_url))


async def placement_versions(call: Call) -> Reply:
    """List the placement API's versions."""
    return Reply(body=versions.placement_versions())


async def health(call: Call) -> Reply:
    """Say whether the bus and the database answer: 200 or 503."""
    bus = call.services.bus.healthy()
    began = clock.monotonic()
    await call.services.store.read(lambda tx: tx.exec_driver_sql("SELECT 1").scalar())
    body = {"bus": bus, "database_ms": round((clock.monotonic() - began) * 1000, 1)}
    return Reply(200 if bus else 503, body)
