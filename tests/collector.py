"""A collector of traces in the test's own process: OTLP over HTTP, as OpenTelemetry's exporters speak it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from shared import tracing
from shared.opentelemetry import Recorder

NO_PARENT = ""


@dataclass(frozen=True)
class Seen:
    """One span as it arrived."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, str | int | float | bool]
    failed: bool
    reason: str

    def __getitem__(self, name: str) -> str | int | float | bool | None:
        """One of our own attributes."""
        return self.attributes.get(f"llmos.{name}")


class Collector:
    """What came in, in order."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.posts: list[str] = []
        """The path of every request."""
        self.url = ""

    def take(self, path: str, raw: bytes) -> None:
        self.posts.append(path)
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            service = str(_plain(resource.resource.attributes)["service.name"])
            for scope in resource.scope_spans:
                self.spans.extend(_seen(service, span) for span in scope.spans)

    def trace(self, trace_id: str) -> list[Seen]:
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector on a port of this machine."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """The test looks at the spans."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


class Recording:
    """This process's own spans, at a collector."""

    def __init__(self, collector: Collector, recorder: Recorder) -> None:
        self._collector = collector
        self._recorder = recorder

    def arrived(self) -> list[Seen]:
        """In the order of their ends. Nothing is recorded after this."""
        self._recorder.close()
        return self._collector.spans


@contextmanager
def recording() -> Iterator[Recording]:
    """Traces are on in this process, until the block ends."""
    with collecting() as collector, pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(collector.url, 1, "tester", "here")
        patch.setattr(tracing, "_recorder", recorder)
        try:
            yield Recording(collector, recorder)
        finally:
            recorder.close()


def _seen(service: str, span: ProtoSpan) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_plain(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        reason=span.status.message,
    )


def _plain(attributes: list[KeyValue]) -> dict[str, str | int | float | bool]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}
