"""What the registry tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

PUBLISHED = Counter("llmos_registry_published_total", "Versions published.", ["kind"])
REJECTED = Counter("llmos_registry_rejected_total", "Commands refused.", ["type"])
WAITING = Gauge("llmos_registry_waiting_commands", "Commands taken from the bus and not answered yet.")
OUTBOX_AGE = Gauge(
    "llmos_registry_outbox_age_seconds", "How long the oldest entry of the outbox has waited for the bus."
)
LAG = Gauge("llmos_registry_bus_lag", "Records that the registry has not taken yet.", ["topic"])
DLQ = Gauge("llmos_registry_dlq_depth", "Records that can never be handled.", ["topic"])
