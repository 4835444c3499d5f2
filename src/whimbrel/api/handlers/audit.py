"""Audits on demand, and what this process counts."""

from __future__ import annotations

import asyncio

from whimbrel.api.call import Call, Reply
from whimbrel.api.views import audit as view
from whimbrel.audit.auditor import Auditor
from whimbrel.ops import metrics


async def show(call: Call) -> Reply:
    """Compare the books with the hosts, now, and change nothing."""
    return await _audit(call, mend=False)


async def run(call: Call) -> Reply:
    """Compare the books with the hosts, and mend what is safe to mend if the body says so."""
    return await _audit(call, mend=call.body["repair"])


async def _audit(call: Call, *, mend: bool) -> Reply:
    services = call.services
    auditor = Auditor(services.store, services.bus, services.relay, services.settings.conductor.service_down_after)
    return Reply(body={"audit": view.report(await auditor.run(mend=mend, host=call.first("host")))})


async def metrics_page(call: Call) -> Reply:
    """Return this process's metrics in Prometheus' text format."""
    page = await asyncio.to_thread(metrics.page)  # it asks the database
    return Reply(body=page.decode(), media_type=metrics.CONTENT_TYPE)
