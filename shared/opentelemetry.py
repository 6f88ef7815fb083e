"""Traces as OpenTelemetry records and sends them. Imported only where traces are on.

Spans leave in batches, on a thread of their own: nobody waits for the collector, and while it is away they are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from shared.tracing import Attribute, Kind, Span

log = structlog.get_logger(__name__)

PATH = "/v1/traces"
"""Where OTLP over HTTP takes traces, unless the setting names a path."""
SEND_EVERY_S = 1.0
GIVE_UP_S = 3.0
"""For one batch. A process that ends waits no longer than for the one on its way and one more."""

_header = TraceContextTextMapPropagator()


class Recorder:
    """Begins spans, and sends those that ended. A request that brings a trace has decided whether it is recorded."""

    def __init__(self, url: str, ratio: float, service: str, node: str) -> None:
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # `_SaysItOnce` does
        self._exporter = _SaysItOnce(OTLPSpanExporter(endpoint(url), timeout=GIVE_UP_S))
        names = {"service.name": service, "service.namespace": "llmos", "host.name": node}
        sampler = ParentBased(TraceIdRatioBased(ratio))
        self._provider = TracerProvider(sampler, Resource.create(names), shutdown_on_exit=False)
        sender = BatchSpanProcessor(self._exporter, schedule_delay_millis=SEND_EVERY_S * 1000)
        self._provider.add_span_processor(sender)
        self._tracer = self._provider.get_tracer("llmos")

    def begin(self, name: str, parent: str | None, kind: Kind, attributes: Mapping[str, Attribute]) -> Span:
        above = _header.extract({"traceparent": parent} if parent else {}, Context())
        return _Recorded(self._tracer.start_span(name, above, SpanKind[kind.upper()], _named(attributes)))

    def close(self) -> None:
        """Send what waits, where the collector takes it."""
        self._exporter.in_haste = True
        self._provider.shutdown()


def endpoint(url: str) -> str:
    """Where spans are posted: `url` itself, or the usual path where it has none."""
    return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}{PATH}"


class _Recorded(Span):
    """Once it has ended, nothing changes it any more."""

    __slots__ = ("_span",)

    def __init__(self, span: OtelSpan) -> None:
        headers: dict[str, str] = {}
        _header.inject(headers, set_span_in_context(span, Context()))
        super().__init__(headers["traceparent"])
        self._span = span

    def set(self, **attributes: Attribute) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, reason: str) -> None:
        if self._span.is_recording():
            self._span.set_status(StatusCode.ERROR, reason)

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()


class _SaysItOnce(SpanExporter):
    """That the collector is away, and that it is back."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self.in_haste = False
        """The process ends: nothing is tried that did not work just now."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._away and self.in_haste:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            log.warning("traces_are_lost", reason="the collector does not take them; nothing else depends on it")
        if self._away and not away:
            log.info("traces_arrive_again")
        self._away = away
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _named(attributes: Mapping[str, Attribute]) -> dict[str, AttributeValue]:
    """Ours are in a namespace of their own; names that OpenTelemetry has for all have a dot."""
    said = {name: value for name, value in attributes.items() if value is not None}
    return {name if "." in name else f"llmos.{name}": value for name, value in said.items()}
