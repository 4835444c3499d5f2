"""What each process counts for Prometheus, and how it is read: by the API's `/metrics`, or at a port of its own.

A counter is defined here, once, and counted where it happens. What the database knows is not counted twice: it is asked
at each reading, by whoever registers a `Reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from whimbrel.ops.errors import SettingsError, WhimbrelError
from whimbrel.ops.settings import Metrics

CONTENT_TYPE = CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, that nobody asks for

audit_findings = Gauge("whimbrel_audit_findings", "Findings of the last audit by kind.", ["kind"])
audit_at = Gauge("whimbrel_audit_timestamp_seconds", "When the last audit ended, in epoch seconds.")
audit_repairs = Counter("whimbrel_audit_repairs", "Repairs that audits did, by what was done.", ["mend"])
migrations_ended = Counter("whimbrel_migrations_ended", "Migrations that ended.", ["kind", "outcome"])
orders_sent = Counter("whimbrel_orders_sent", "Orders to hosts, repetitions too.", ["step", "verb"])
store_retries = Counter("whimbrel_store_retries", "Transactions that were run again, by why.", ["reason"])
store_lock_wait = Histogram(
    "whimbrel_store_lock_wait_seconds",
    "Seconds for which a writing transaction waited: for its `turn` (a writer thread, on SQLite the write lock), or, "
    "on PostgreSQL, in a statement that locks `rows`.",
    ["at"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 15.0),
)

Numbers = Mapping[str, float]


class Reading(Collector):
    """Gauges `whimbrel_<name>` whose values are read when they are asked for; while they cannot be, there are none."""

    def __init__(self, read: Callable[[], Numbers], meanings: Mapping[str, str]) -> None:
        self._read = read
        self._meanings = meanings

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        try:
            numbers = self._read()
        except WhimbrelError:
            return
        for name, meaning in self._meanings.items():
            yield GaugeMetricFamily(f"whimbrel_{name}", meaning, numbers[name])

    def describe(self) -> Iterable[Metric]:
        """Name the gauges without reading them."""
        return [GaugeMetricFamily(f"whimbrel_{name}", meaning) for name, meaning in self._meanings.items()]


def show(reading: Reading) -> None:
    """Let every page of this process have these gauges too; once for each name."""
    REGISTRY.register(reading)


def page() -> bytes:
    """Return every metric of this process in Prometheus' text format; it may ask the database, so not in a loop."""
    return generate_latest(REGISTRY)


def serve(settings: Metrics) -> None:
    """Serve the page at a port of its own, in threads of its own; SettingsError if the address cannot be had."""
    if not settings.port:
        return
    try:
        start_http_server(settings.port, settings.listen)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {settings.listen} port {settings.port}: {error.strerror}; "
            f"change [metrics] listen or port."
        ) from error
