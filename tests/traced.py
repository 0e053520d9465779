"""Tracing that keeps its spans, for tests of what is on them."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.chassis.telemetry import Telemetry


class Kept(SpanExporter):
    """Keeps what is exported."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keep the spans."""
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


class Traced:
    """A process that is traced."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.kept = Kept()
        self.telemetry = Telemetry("sample", self.kept, ratio=ratio)

    def ended(self) -> list[ReadableSpan]:
        """The spans that have ended, the earliest to end first."""
        self.telemetry.flush()
        return self.kept.spans

    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended, by name."""
        return {span.name: span for span in self.ended()}
