"""Logs: one JSON line per event on stderr; static event names, facts as fields, trace_id on each line.

Never a token, never a message's text: a processor removes both if they get in.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TypeAlias, cast

import structlog
from opentelemetry import trace
from structlog.typing import FilteringBoundLogger, Processor

Event: TypeAlias = MutableMapping[str, Any]

REDACTED = "[redacted]"
# Fields that hold secrets or what people wrote. `text` and `body` are message contents everywhere here.
_SECRET_FIELDS = frozenset(
    {"token", "authorization", "password", "secret", "body", "text", "content", "d"}
)
# A JWT anywhere in a text; the password in a URL.
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*")
# The secret part of an integration key; the key's id stands before it.
_KEY = re.compile(r"(dwk_[0-9a-f]{32}_)[0-9a-f]+")
_URL_PASSWORD = re.compile(r"(\w[\w+.-]*://[^\s:/@]*:)[^\s@/]+@")


def redact_text(text: str) -> str:
    """Return `text` without tokens, secrets of integration keys and URL passwords."""
    text = _KEY.sub(rf"\1{REDACTED}", _JWT.sub(REDACTED, text))
    return _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)


def _redact(_logger: Any, _method: str, event: Event) -> Event:
    for key, value in event.items():
        if key in _SECRET_FIELDS:
            event[key] = REDACTED
        elif isinstance(value, str):
            event[key] = redact_text(value)
    return event


def _add_trace(_logger: Any, _method: str, event: Event) -> Event:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", f"{context.trace_id:032x}")
    else:
        event.setdefault("trace_id", "")
    return event


class _Service:
    """Names the process on each of its lines."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        event.setdefault("service", self._name)
        return event


def setup_logging(service: str, level: str = "INFO") -> None:
    """Send this process's logs, the libraries' too, to stderr as JSON lines. `level` is INFO, DEBUG, …"""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _Service(service),
        _add_trace,
        structlog.processors.format_exc_info,
        _redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(sort_keys=False)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries log from WARNING on; DEBUG shows all that they log.
    root.setLevel(number if number <= logging.DEBUG else max(number, logging.WARNING))


def get_logger() -> FilteringBoundLogger:
    """Return a logger: `log.info("static_event_name", conversation_id=…)`."""
    return cast("FilteringBoundLogger", structlog.get_logger())
