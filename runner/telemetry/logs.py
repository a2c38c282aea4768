"""Structured logs: one JSON object a line for machines, columns for people at a terminal."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str = "info", **fields: str) -> None:
    """Log to stderr from `level` up; `fields` (node, role) are on every line. Libraries' logs go the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    pretty = sys.stderr.isatty()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())
    for noisy in ("botocore", "urllib3", "kombu", "amqp", "celery.redirected", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    structlog.contextvars.clear_contextvars()
    _static(fields)


def _static(fields: dict[str, str]) -> None:
    # contextvars do not reach threads, so the fields go in through a processor
    processors = structlog.get_config()["processors"]

    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**fields, **event}

    structlog.configure(processors=[add, *processors])
