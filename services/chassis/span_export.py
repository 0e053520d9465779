"""Where spans go when they leave the process, and what of them goes.

Instrumentations put exception texts and addresses on spans. A text may hold a value (`Key (value)=(…) already exists`),
so what leaves is an allow-list: attributes with known names, exceptions by type, statuses by code. Chosen over filters
in each instrumentation because this holds for the ones that come later, too.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status
from opentelemetry.util.types import AttributeValue

from services.chassis import metrics
from services.chassis.alarms import Alarm, set_alarm
from services.chassis.old_files import DAY_S, delete_old

# One file holds a few thousand traced Decides; what fills four of them a service fits on any machine and still reaches
# back hours.
FILE_BYTES_MAX = 32 * 1024 * 1024
FILES_MAX = 4

ALLOWED_PREFIXES = ("comity.", "rpc.", "db.", "messaging.", "network.", "server.")
ALLOWED_NAMES = frozenset({"error.type", "exception.type", "net.peer.name", "net.peer.port", "net.transport"})
# Parameters are values.
REFUSED_PREFIXES = ("db.statement.parameters", "db.query.parameter")

_log = structlog.get_logger(__name__)


class ScrubbingExporter(SpanExporter):
    """Hands on to another exporter only what may leave the process; what that does not take is counted, an alarm."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        # How many spans it was given so far.
        self.given_count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans without what may be personal."""
        self.given_count += len(spans)
        try:
            result = self._exporter.export([scrubbed(span) for span in spans])
        except Exception as error:
            # A bug; what is raised here would be counted nowhere.
            _log.error("spans not exported", exc_info=error)
            result = SpanExportResult.FAILURE
        is_lost = result is not SpanExportResult.SUCCESS
        if is_lost:
            metrics.SPANS_LOST.labels("not_exported").inc(len(spans))
        set_alarm(Alarm.SPANS_LOST, is_lost)
        return result

    def shutdown(self) -> None:
        """Shut the exporter behind it down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the exporter behind it."""
        return self._exporter.force_flush(timeout_millis)


class SpanQueue(BatchSpanProcessor):
    """What has ended and waits to be exported; spans that it has no room for are counted."""

    def __init__(self, exporter: ScrubbingExporter, *, spans_max: int, delay_ms: int) -> None:
        super().__init__(exporter, max_queue_size=spans_max, schedule_delay_millis=delay_ms)
        self._scrubbing = exporter
        self._spans_max = spans_max
        self._queued_count = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended."""
        # In a queue that is full it takes the place of the oldest.
        if self._queued_count - self._scrubbing.given_count >= self._spans_max:
            metrics.SPANS_LOST.labels("queue_full").inc()
        else:
            self._queued_count += 1
        super().on_end(span)


class FileExporter(SpanExporter):
    """Appends one OTLP/JSON ExportTraceServiceRequest a line to `<folder>/<service>-<pid>.jsonl`.

    A file that is full, or was begun a day ago, is put aside under a number. Of all files of the service the newest are
    kept, as much as fills four and none that is two weeks old.

    Args:
        clock: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        service: str,
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
        files_max: int = FILES_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        # Spans come on a thread of their own, the daily look at what is old on the loop.
        self._lock = threading.Lock()
        self._service = service
        self._path = folder / f"{service}-{os.getpid()}.jsonl"
        self._file_bytes_max = file_bytes_max
        self._files_max = files_max
        self._rotations = 0
        self._begun_s = clock()
        self._file = self._path.open("ab")
        if self._file.tell() > 0:
            self._rotate()  # of an earlier process that had this pid
        self._prune()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append the spans as one line."""
        line = json.dumps(otlp_json(spans), separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                if self._opened().tell() + len(line) > self._file_bytes_max or self._is_of_yesterday():
                    self._rotate()
                self._file.write(line)
                self._file.flush()
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def delete_old(self) -> None:
        """Delete what is too old; to be called once a day, also where nothing is exported."""
        with self._lock:
            if self._is_of_yesterday():
                self._rotate()
            self._prune()

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_of_yesterday(self) -> bool:
        return not 0.0 <= self._clock() - self._begun_s < DAY_S

    def _opened(self) -> BinaryIO:
        """The file, opened again where a rotation failed halfway."""
        if self._file.closed:
            self._file = self._path.open("ab")
        return self._file

    def _rotate(self) -> None:
        self._begun_s = self._clock()
        if self._opened().tell() == 0:
            return
        self._file.close()
        self._rotations += 1
        self._path.replace(self._path.with_suffix(f".{self._rotations}.jsonl"))
        self._file = self._path.open("ab")
        self._prune()

    def _prune(self) -> None:
        """Delete the service's oldest files, those of earlier processes too; never the one being written."""
        pattern = f"{self._service}-*.jsonl"
        delete_old(self._path.parent, pattern, self._clock(), being_written=self._path)
        others = [(*_changed(path), path) for path in self._path.parent.glob(pattern) if path != self._path]
        room_bytes = self._file_bytes_max * (self._files_max - 1)
        for _, size_bytes, path in sorted(others, reverse=True):
            room_bytes -= size_bytes
            if room_bytes < 0:
                path.unlink(missing_ok=True)


def otlp_json(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """The spans as an ExportTraceServiceRequest in OTLP/JSON: ids in hex, enums as integers, 64-bit numbers as text."""
    request: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    ids = iter(spans_in_order(spans))
    for resource_spans in request.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                _put_hex_ids(span, next(ids))
    return request


def spans_in_order(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """The spans in the order that encode_spans groups them in: by resource, then by scope, as they first occur."""
    groups: dict[Any, dict[Any, list[ReadableSpan]]] = {}
    for span in spans:
        groups.setdefault(span.resource, {}).setdefault(span.instrumentation_scope, []).append(span)
    return [span for scopes in groups.values() for group in scopes.values() for span in group]


def _put_hex_ids(encoded: dict[str, Any], span: ReadableSpan) -> None:
    """Protobuf's JSON has bytes in base64; OTLP's has ids in hex."""
    encoded["traceId"] = f"{span.context.trace_id:032x}"
    encoded["spanId"] = f"{span.context.span_id:016x}"
    if span.parent is not None:
        encoded["parentSpanId"] = f"{span.parent.span_id:016x}"
    for encoded_link, link in zip(encoded.get("links", ()), span.links, strict=True):
        encoded_link["traceId"] = f"{link.context.trace_id:032x}"
        encoded_link["spanId"] = f"{link.context.span_id:016x}"


def scrubbed(span: ReadableSpan) -> ReadableSpan:
    """The span without what may be personal."""
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_allowed(span.attributes or {}),
        events=[Event(event.name, _allowed(event.attributes or {}), event.timestamp) for event in span.events],
        links=span.links,
        kind=span.kind,
        # A server span's description is a ServiceError's message, which is safe to show; others may hold anything.
        status=span.status if span.kind is SpanKind.SERVER else Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _allowed(attributes: Any) -> dict[str, AttributeValue]:
    return {
        name: value
        for name, value in attributes.items()
        if (name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES)) and not name.startswith(REFUSED_PREFIXES)
    }


def _changed(path: Path) -> tuple[int, int]:
    """When the file was changed, and how many bytes it has."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
