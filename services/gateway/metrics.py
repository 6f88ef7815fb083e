"""The gateway's numbers for Prometheus: requests as they are answered, the rest when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog import get_logger

from services.gateway.gateway import Gateway
from services.gateway.view.follower import MOST_WAITING
from services.gateway.view.view import GROUP, GROUP_TOPICS
from shared.bus.port import BusError
from shared.contracts.topics import TOPICS

log = get_logger("gateway.metrics")

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """A registry of its own, so that several applications can live in one process."""

    def __init__(self, gateway: Gateway) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("llmos_http_requests", "Answers.", labels, registry=self._registry)
        self.seconds = Histogram(
            "llmos_http_request_seconds",
            "Until the answer's last byte.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_AtScrape(gateway))

    def render(self) -> tuple[bytes, str]:
        """Ours, and the process's own (memory, CPU, inference)."""
        return generate_latest(self._registry) + generate_latest(REGISTRY), CONTENT_TYPE_LATEST


class Measured:
    """ASGI middleware that counts and times."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(scope["method"], route).observe(time.perf_counter() - began)


class _AtScrape(Collector):
    """Gauges that are looked up when Prometheus asks. What cannot be looked up is left out."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterable[Metric]:
        for gauge in (self._outbox, self._lag, self._dlq, self._unaccepted):
            yield from self._if_there(gauge)

    def describe(self) -> Iterable[Metric]:
        return []

    def _if_there(self, gauge: Callable[[], Metric]) -> Iterable[Metric]:
        try:
            yield gauge()
        except (BusError, SQLAlchemyError) as error:
            log.warning("metric_left_out", reason=str(error).splitlines()[0])

    def _outbox(self) -> Metric:
        oldest = self._gateway.submissions.outbox.oldest_unpublished()
        return GaugeMetricFamily("llmos_outbox_age_seconds", "Age of the oldest unpublished command.", _age_s(oldest))

    def _unaccepted(self) -> Metric:
        oldest = self._gateway.view.jobs.oldest_unaccepted()
        return GaugeMetricFamily(
            "llmos_oldest_unaccepted_attempt_seconds", "How long a dispatched attempt has not started.", _age_s(oldest)
        )

    def _lag(self) -> Metric:
        meaning = (
            f"Records that the view has not taken in; of a state topic {MOST_WAITING} at most: the bus has the rest."
        )
        gauge = GaugeMetricFamily("llmos_view_lag_records", meaning, labels=["topic"])
        for follower in self._gateway.view.followers:
            gauge.add_metric([follower.topic.name], follower.waiting)
        for topic in GROUP_TOPICS:
            gauge.add_metric([topic.name], self._gateway.bus.lag(topic, GROUP))
        return gauge

    def _dlq(self) -> Metric:
        gauge = GaugeMetricFamily("llmos_dlq_records", "Records that could never be handled.", labels=["topic"])
        for topic in TOPICS:
            gauge.add_metric([topic.name], self._gateway.bus.dlq_depth(topic))
        return gauge


def _age_s(since: datetime | None) -> float:
    return (datetime.now(UTC) - since).total_seconds() if since else 0.0
