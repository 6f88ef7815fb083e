"""What the scheduler tells Prometheus."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

DISPATCH_LATENCY = Histogram(
    "llmos_scheduler_dispatch_latency_seconds",
    "From coming into the queue to being given a place.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 600, 3600),
)
JOBS = Gauge("llmos_scheduler_jobs", "Jobs by status.", ["status"])
OUTBOX_AGE = Gauge(
    "llmos_scheduler_outbox_age_seconds", "How long the oldest entry of the outbox has waited for the bus."
)
OLDEST_UNACCEPTED = Gauge(
    "llmos_scheduler_oldest_unaccepted_attempt_seconds",
    "How long the oldest dispatched attempt has waited for its worker.",
)
NODES = Gauge("llmos_scheduler_nodes", "Nodes that are alive.", ["role"])
LAG = Gauge("llmos_scheduler_bus_lag", "Records that the scheduler has not handled yet.", ["topic"])
DLQ = Gauge("llmos_scheduler_dlq_depth", "Records that can never be handled.", ["topic"])
LEADS = Gauge("llmos_scheduler_leads", "1 while this scheduler leads, 0 while it stands by.")


def forget() -> None:
    """What a leader measured is no news of one that stands by."""
    for gauge in (JOBS, NODES, LAG, DLQ):
        gauge.clear()
    OUTBOX_AGE.set(0)
    OLDEST_UNACCEPTED.set(0)
