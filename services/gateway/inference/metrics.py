"""What Prometheus reads of inference in this gateway."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("llmos_inference_requests_total", "Requests answered", ["path", "status"])
FRAMES = Counter("llmos_inference_frames_total", "Pieces of answers passed on: about one a token in streams")
FIRST_FRAME = Histogram(
    "llmos_inference_first_frame_seconds",
    "From the request's body to the first frame of its answer",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
IN_FLIGHT = Gauge("llmos_inference_in_flight", "Requests that wait for an answer or receive one")
BUFFERED = Gauge("llmos_inference_buffered_bytes", "Bytes kept for clients that read slowly")
RETRIES = Counter("llmos_inference_retries_total", "Second attempts at another replica", ["reason"])
REFUSALS = Counter("llmos_inference_refusals_total", "Times that a replica would not take a request")
CANCELS = Counter("llmos_inference_cancels_total", "Requests called back from a replica")
