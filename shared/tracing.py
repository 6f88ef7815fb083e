"""Traces: what one request sets in motion, in every process. Off, unless LLMOS_TRACES_URL names a collector.

Messages and requests carry the W3C `traceparent` of the work that made them. Who does something about one writes

    with span("PublishArtifact", command.traceparent, job_id=command.job_id) as work:
        …  # what is sent from here carries work.traceparent

While off, nothing is recorded, OpenTelemetry is not even imported, and a client's own `traceparent` is carried all the
same.
"""

from __future__ import annotations

import atexit
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from shared.settings import Settings, SettingsError

if TYPE_CHECKING:
    from shared.opentelemetry import Recorder

Kind = Literal["internal", "server", "client", "consumer"]
Attribute = str | int | float | bool | None

_recorder: Recorder | None = None


class Span:
    """A piece of work. This one is not recorded: it only hands on the trace that it belongs to."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent
        """What messages that this work sends carry."""

    def set(self, **attributes: Attribute) -> None:
        """Say more about the work. `job_id` becomes `llmos.job_id`; None is left out."""

    def rename(self, name: str) -> None:
        """For who knows only at the end what it was."""

    def fail(self, reason: str) -> None:
        """The work failed."""

    def end(self) -> None:
        """The work is over. For spans that no `with` ends; once is enough, and more does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            self.fail(str(error) or type(error).__name__)
        self.end()


def span(
    name: str, parent: str | None, *, kind: Kind = "internal", begins: bool = False, **attributes: Attribute
) -> Span:
    """Begin a piece of work that belongs to the trace of `parent`.

    Without a parent nothing is recorded, unless the trace `begins` here.
    """
    if _recorder is None or not (parent or begins):
        return Span(parent)
    return _recorder.begin(name, parent, kind, attributes)


def start_tracing(settings: Settings, service: str) -> None:
    """Record from now on, if there is a collector to send to. Raises SettingsError."""
    global _recorder
    if not settings.traces_url:
        return
    try:
        from shared.opentelemetry import Recorder
    except ImportError as error:
        raise SettingsError(
            f"LLMOS_TRACES_URL needs a library that is not here ({error.name}): pip install 'llm-os[traces]'"
        ) from error
    _recorder = Recorder(settings.traces_url, settings.traces_ratio, service, settings.node)
    atexit.register(_recorder.close)
