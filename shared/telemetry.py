"""Structured logs, and traces where they are wanted: the same in every process."""

from __future__ import annotations

import logging
import sys

import structlog

from shared.settings import Settings
from shared.tracing import start_tracing


def setup_telemetry(settings: Settings, service: str) -> structlog.stdlib.BoundLogger:
    """Configure logging and traces for this process and return its logger. Raises SettingsError."""
    level = getattr(logging, settings.log_level.upper())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _Named(service, settings.node),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info if not console else _keep,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    start_tracing(settings, service)
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(service)
    return logger


class _Named:
    """Every line says whose it is; context variables would not reach the other threads."""

    def __init__(self, service: str, node: str) -> None:
        self._names = {"service": service, "node": node}

    def __call__(self, _: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**self._names, **event}


def _keep(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return event
