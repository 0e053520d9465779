"""Logs: one JSON object a line on stderr, with the fields that are allowed and no others.

A log line must not tell who a person is or what was sent, and a deny-list would hold only until the next field. So
fields have declared names; of an exception the types and the frames are kept, and its text only where it is ours or the
operating system's; of a line that a library logs, which library and where in it, in a sentence of ours.
"""

import logging
import os
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import PurePath
from typing import Any

import structlog
from opentelemetry import trace

from services.chassis.errors import ServiceError

VALUE_CHARACTERS_MAX = 300
FRAMES_MAX = 25
CAUSES_MAX = 4

# Names for how the service runs. An id in here names a thing that the service made, never a person.
# fmt: off
ALLOWED_FIELDS = frozenset({
    "alarm", "cause", "channels", "consumer", "count", "crashes", "decision_id", "dropped", "durable", "epoch",
    "erasure_id", "error", "event", "event_id", "level", "logger", "loop", "members_count", "method", "model", "name",
    "port", "reason", "remedy", "retry_in_s", "service", "settings", "site_version", "source", "stage", "timeout_s",
    "span_id", "timestamp", "trace_id", "where",
})
# fmt: on

# What a library's line means to who reads our log. Its own text is not kept: some put values into it, others reprs.
LIBRARIES = {
    "asyncio": "a task or callback of this process failed, and nobody took its error",
    "asyncpg": "the pool of connections to Postgres reported a problem",
    "grpc": "gRPC reported a problem with a call or a connection",
    "nats": "the connection to NATS reported a problem; it connects again by itself",
    "redis": "the connection to Redis reported a problem; what it keeps is read from Postgres",
}
UNKNOWN_LIBRARY = "a library reported a problem"
# Libraries whose troubles this process tells itself, once and with a remedy. OpenTelemetry: spans that are lost are an
# alarm and a counter (chassis.span_export), and long SQL is cut in every span on purpose.
SILENCED = ("opentelemetry",)
# Loggers of ours that take the standard library's way, because commands use them too.
OURS = ("services", "learning", "cli")

# Their texts say what the code did, not what it was given.
_TEXT_IS_SAFE = (ServiceError, AttributeError, NameError, ImportError, NotImplementedError)


def setup_logs(service: str, level: str) -> None:
    """Log as JSON lines on stderr, what libraries log as well."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _Service(service),
            name_span,
            describe_error,
            only_allowed,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # gRPC's core writes to stderr by itself, in no format of ours.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(handlers=[_Foreign()], level=max(threshold, logging.WARNING), force=True)
    for name in SILENCED:
        # Above everything: a library's own children of this logger have no level of theirs.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def only_allowed(_logger: object, _name: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """The fields that are allowed; of the others the names, so that somebody notices."""
    kept = {name: _bounded(value) for name, value in event.items() if name in ALLOWED_FIELDS}
    dropped = sorted(event.keys() - kept.keys())
    if dropped:
        kept["dropped"] = dropped
    return kept


def name_span(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Say which span the line is from, where the call is sampled; a line that is told later still names it."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid and context.trace_flags.sampled:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event


def describe_error(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn exc_info into types and frames."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error"] = _described(error, CAUSES_MAX)
    return event


def _described(error: BaseException, causes_left: int) -> dict[str, Any]:
    described: dict[str, Any] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
    text = _text(error)
    if text:
        described["text"] = text[:VALUE_CHARACTERS_MAX]
    code = getattr(error, "sqlstate", None) or getattr(error, "errno", None)
    if code is not None:
        described["code"] = code
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    described["frames"] = [f"{_place(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and causes_left > 0:
        described["cause"] = _described(cause, causes_left - 1)
    if isinstance(error, BaseExceptionGroup) and causes_left > 0:
        described["errors"] = [_described(one, causes_left - 1) for one in error.exceptions[:CAUSES_MAX]]
    return described


def _text(error: BaseException) -> str:
    """What may be told of an exception's text."""
    if isinstance(error, _TEXT_IS_SAFE):
        return str(error)
    if isinstance(error, OSError):
        # What the operating system or asyncio says; the file it was about comes apart from it, and is left out.
        return error.strerror or ("" if error.filename is not None else str(error))
    return ""


def _place(filename: str) -> str:
    """Enough of a path to find the file, and nothing of where it is installed."""
    return "/".join(PurePath(filename).parts[-3:])


def _bounded(value: Any) -> Any:
    return value[:VALUE_CHARACTERS_MAX] if isinstance(value, str) else value


class _Service:
    """Says which service a line is from."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", self._service)
        return event


class _Foreign(logging.Handler):
    """Hands on what libraries log, in words of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log which library had what kind of trouble, and where it says so."""
        library = record.name.partition(".")[0]
        line = record.getMessage() if library in OURS else LIBRARIES.get(library, UNKNOWN_LIBRARY)
        where = f"{_place(record.pathname)}:{record.lineno}"
        # What was given as `extra=`; a record's own attributes have other names, but for `name`.
        extra = {name: value for name, value in vars(record).items() if name in ALLOWED_FIELDS - {"name"}}
        log = structlog.get_logger()
        told = {"where": where, **extra, "logger": record.name}
        log.log(record.levelno, line, **told, exc_info=record.exc_info or None)
