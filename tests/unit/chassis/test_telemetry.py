"""What is traced, what leaves the process, and how it lies in a file."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import redis.asyncio
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY
from pydantic import SecretStr
from structlog.testing import capture_logs

from services.chassis import tracing
from services.chassis.alarms import Alarm, standing
from services.chassis.gather import Gatherer, Load
from services.chassis.old_files import DAY_S
from services.chassis.settings import ServiceSettings
from services.chassis.span_export import FileExporter, ScrubbingExporter, SpanQueue
from services.chassis.telemetry import Telemetry, process_of
from tests.traced import Kept, Traced

SAMPLED = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
NOT_SAMPLED = SAMPLED[:-2] + "00"


class Call(NamedTuple):
    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]

    @classmethod
    def to(cls, method: str, traceparent: str | None = None) -> Any:
        metadata = () if traceparent is None else (("user-agent", "x"), ("traceparent", traceparent))
        return cls(method, metadata)


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.telemetry.shutdown()


def test_without_telemetry_nothing_is_created() -> None:
    """A span outside of a traced process is no span, and carries no context onward."""
    with tracing.span("x") as span, tracing.root_span("y") as root:
        assert not span.is_recording()
        assert not root.is_recording()
        assert tracing.traceparent() == ""


def test_a_step_is_traced_only_inside_a_sampled_call(traced: Traced) -> None:
    """Outside of one no span begins, however high the ratio."""
    with tracing.span("outside"):
        pass
    with tracing.root_span("call"), tracing.span("inside", {tracing.COMITY_REASON: "RANKED"}):
        # Bit 0 says sampled; OpenTelemetry sets bit 1 as well: the trace id is random.
        assert int(tracing.traceparent()[-2:], 16) & 1
        tracing.set_attributes({tracing.COMITY_BATCH_SIZE: 3})
    spans = traced.spans()
    assert spans.keys() == {"call", "inside"}
    assert spans["inside"].parent == spans["call"].context
    assert dict(spans["inside"].attributes or {}) == {"comity.reason": "RANKED", "comity.batch.size": 3}


@pytest.mark.parametrize(
    ("ratio", "traceparent", "sampled"),
    [
        (0.0, SAMPLED, True),
        (1.0, NOT_SAMPLED, False),
        (1.0, None, True),
        (0.0, None, False),
        (1.0, "nonsense", False),
    ],
)
def test_the_caller_decides_and_else_the_dice(ratio: float, traceparent: str | None, sampled: bool) -> None:
    """A traceparent settles it, whatever the ratio; without one the ratio does."""
    filter_ = Telemetry("sample", None, ratio=ratio).sampled_call
    assert filter_(Call.to("/comity.x.v1.X/Y", traceparent)) is sampled


def test_probes_are_never_traced() -> None:
    """A health check a second would bury what matters."""
    assert not Telemetry("sample", None, ratio=1.0).sampled_call(Call.to("/grpc.health.v1.Health/Check", SAMPLED))


def test_the_dice_are_thrown_once() -> None:
    """What the filter let in is recorded, also at a ratio that the sampler would refuse."""
    traced = Traced(ratio=0.0)
    try:
        with tracing.tracer().start_as_current_span("server", kind=SpanKind.SERVER) as span:
            assert span.is_recording()
        with tracing.root_span("loop") as span:
            assert not span.is_recording()
    finally:
        traced.telemetry.shutdown()


def test_a_message_links_its_consumer_to_its_producer(traced: Traced) -> None:
    """The consumer's trace is its own, and finds the producer's by a link."""
    with tracing.root_span("produce"):
        headers = {tracing.TRACEPARENT: tracing.traceparent()}
    with tracing.consumer_span("consume", headers) as span:
        assert span.is_recording()
    spans = traced.spans()
    assert spans["consume"].parent is None
    assert spans["consume"].kind is SpanKind.CONSUMER
    assert [link.context.span_id for link in spans["consume"].links] == [spans["produce"].context.span_id]


@pytest.mark.parametrize("headers", [{}, {"traceparent": NOT_SAMPLED}, {"traceparent": "nonsense"}])
def test_a_message_of_an_untraced_producer_is_not_traced(traced: Traced, headers: dict[str, str]) -> None:
    """Nothing begins on the consumer's side either."""
    with tracing.consumer_span("consume", headers) as span:
        assert not span.is_recording()


def test_texts_of_exceptions_do_not_leave(traced: Traced) -> None:
    """A driver's error may hold a value; its type is enough."""

    def fail() -> None:
        with tracing.root_span("call") as span:
            span.set_attribute("enduser.id", "canary")
            span.set_attribute("db.statement.parameters", "canary")
            span.set_attribute("db.statement", "SELECT 1")
            raise ValueError("canary")

    with pytest.raises(ValueError, match="canary"):
        fail()
    exported = traced.spans()["call"]
    assert "canary" not in exported.to_json()
    assert exported.status.status_code is StatusCode.ERROR
    assert dict(exported.attributes or {}) == {"db.statement": "SELECT 1"}
    assert [dict(event.attributes or {}) for event in exported.events] == [{"exception.type": "ValueError"}]


def test_a_file_holds_otlp_json_lines(tmp_path: Path) -> None:
    """Ids are hex and enums integers, as the OTLP/JSON encoding says; each line is one export."""
    made = Telemetry("sample", FileExporter(tmp_path, "sample"), ratio=1.0)
    with tracing.root_span("first", links=[SAMPLED]) as first, tracing.span("second"):
        pass
    made.shutdown()
    (path,) = tmp_path.iterdir()
    (line,) = path.read_text().splitlines()
    request = json.loads(line)
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    by_name = {span["name"]: span for span in spans}
    context = first.get_span_context()
    assert by_name["first"]["traceId"] == f"{context.trace_id:032x}"
    assert by_name["second"]["parentSpanId"] == by_name["first"]["spanId"] == f"{context.span_id:016x}"
    assert by_name["first"]["links"][0]["traceId"] == "a" * 32
    assert by_name["first"]["kind"] == 1
    assert isinstance(by_name["first"]["startTimeUnixNano"], str)
    names = {one["key"]: one["value"] for one in request["resourceSpans"][0]["resource"]["attributes"]}
    assert names["service.name"] == {"stringValue": "sample"}
    Parse(line, ExportTraceServiceRequest())


class Refusing(SpanExporter):
    """Takes nothing while it refuses, as a collector that is away; holds the queue's thread while it is held."""

    def __init__(self) -> None:
        self.refuses = True
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        self.goes_on.wait(30.0)
        return SpanExportResult.FAILURE if self.refuses else SpanExportResult.SUCCESS


def lost(why: str) -> float:
    return REGISTRY.get_sample_value("comity_spans_lost_total", {"why": why}) or 0.0


def end_spans(count: int) -> None:
    for _ in range(count):
        with tracing.root_span("call"):
            pass


def test_spans_that_are_not_exported_are_counted_and_an_alarm() -> None:
    """It is told once, and cleared by the first export that succeeds."""
    exporter = Refusing()
    exporter.goes_on.set()
    made = Telemetry("sample", exporter, ratio=1.0)
    before = lost("not_exported")
    try:
        with capture_logs() as told:
            for refuses in (True, True, False):
                exporter.refuses = refuses
                end_spans(3)
                made.flush()
                assert (Alarm.SPANS_LOST in standing()) is refuses
    finally:
        made.shutdown()
    assert lost("not_exported") - before == 6.0
    assert [line["event"] for line in told] == ["alarm_raised", "alarm_cleared"]


def test_spans_that_no_room_was_left_for_are_counted() -> None:
    """While the exporter hangs the queue fills up; each span that pushes another out is one that is lost."""
    exporter = Refusing()
    exporter.refuses = False
    queue = SpanQueue(ScrubbingExporter(exporter), spans_max=600, delay_ms=3_600_000)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    before = lost("queue_full")

    def end_spans_of(count: int) -> None:
        for _ in range(count):
            provider.get_tracer("x").start_span("call").end()

    end_spans_of(512)  # so many are handed to the exporter at once, which holds the queue's thread from then on
    assert exporter.begun.wait(30.0)
    end_spans_of(600)
    assert lost("queue_full") == before
    end_spans_of(3)
    assert lost("queue_full") - before == 3.0
    exporter.goes_on.set()
    provider.shutdown()


def test_span_is_found_by_every_decision_that_it_is_about(traced: Traced) -> None:
    """One is an attribute, of several each is an event: backends search the fields of both for a plain value."""
    with tracing.root_span("one"):
        tracing.tell_decisions({"d1"})
    with tracing.root_span("more"):
        tracing.tell_decisions(["d1", "d2"])
    with tracing.root_span("none"):
        tracing.tell_decisions(())
    one, more, none = (traced.spans()[name] for name in ("one", "more", "none"))
    assert dict(one.attributes or {}) == {tracing.COMITY_DECISION_ID: "d1"}
    assert [dict(event.attributes or {}) for event in more.events] == [
        {tracing.COMITY_DECISION_ID: "d1"},
        {tracing.COMITY_DECISION_ID: "d2"},
    ]
    assert not more.attributes
    assert not none.events


def test_two_processes_of_a_service_are_told_apart() -> None:
    """By the pod's name, else at random: the process id of every container is 1."""
    plain = ServiceSettings(database_url=SecretStr("x"), nats_url="x")
    first, second = process_of(plain), process_of(plain)
    assert first["service.instance.id"] != second["service.instance.id"]
    assert first.keys() == {"service.instance.id", "service.namespace"}
    told = plain.model_copy(update={"instance": "pod-7", "environment": "staging", "version": "1.2", "namespace": "a"})
    assert process_of(told) == {
        "service.instance.id": "pod-7",
        "service.namespace": "a",
        "service.version": "1.2",
        "deployment.environment.name": "staging",
    }


def test_process_is_on_what_it_exports() -> None:
    """The resource of every span has the service's name and which process of it this is."""
    kept = Kept()
    made = Telemetry("sample", kept, ratio=1.0, process={"service.instance.id": "pod-7"})
    with tracing.root_span("call"):
        pass
    made.shutdown()
    resource = kept.spans[0].resource.attributes
    assert (resource["service.name"], resource["service.instance.id"]) == ("sample", "pod-7")


def one_span() -> list[ReadableSpan]:
    made = Traced()
    with tracing.root_span("call"):
        pass
    made.telemetry.shutdown()
    return list(made.spans().values())


def test_files_are_bounded(tmp_path: Path) -> None:
    """A full file is put aside, and of all of them the newest are kept."""
    spans = one_span()
    (tmp_path / "other-1.jsonl").touch()
    exporter = FileExporter(tmp_path, "sample", file_bytes_max=2000, files_max=3)
    for _ in range(40):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    sizes = [path.stat().st_size for path in tmp_path.glob("sample-*.jsonl")]
    assert len(sizes) > 1
    assert max(sizes) <= 2000
    assert sum(sizes) <= 3 * 2000
    assert (tmp_path / "other-1.jsonl").exists()


def test_rotation_that_fails_halfway_is_made_up_for(tmp_path: Path) -> None:
    """What could not be written is counted as lost, whatever was raised, and the next export is written again."""
    spans = one_span()
    files = FileExporter(tmp_path, "sample", file_bytes_max=1)
    exporter = ScrubbingExporter(files)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    # A folder stands where the full file is to be put aside.
    in_the_way = tmp_path / f"sample-{os.getpid()}.1.jsonl"
    in_the_way.mkdir()
    before = lost("not_exported")
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert lost("not_exported") - before == 1.0
    in_the_way.rmdir()
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert Alarm.SPANS_LOST not in standing()
    exporter.shutdown()


def test_spans_of_an_exporter_that_raises_are_lost() -> None:
    """They are counted, and the alarm clears with the next export that succeeds."""

    class Raising(Kept):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise ValueError("closed")

    before = lost("not_exported")
    assert ScrubbingExporter(Raising()).export(one_span()) is SpanExportResult.FAILURE
    assert lost("not_exported") - before == 1.0
    assert Alarm.SPANS_LOST in standing()
    assert ScrubbingExporter(Kept()).export([]) is SpanExportResult.SUCCESS


def test_traces_of_two_weeks_ago_are_deleted(tmp_path: Path) -> None:
    """At the start and once a day, of earlier processes and of this one, whether or not anything is exported."""
    spans = one_span()
    now_s = [time.time()]

    def last_written(name: str, days_ago: float) -> Path:
        (tmp_path / name).write_text("{}\n")
        os.utime(tmp_path / name, (now_s[0] - days_ago * DAY_S,) * 2)
        return tmp_path / name

    gone, kept = last_written("sample-1.jsonl", 12.1), last_written("sample-2.jsonl", 11.9)
    exporter = FileExporter(tmp_path, "sample", clock=lambda: now_s[0])
    assert (gone.exists(), kept.exists()) == (False, True)
    exporter.export(spans)
    first = (tmp_path / f"sample-{os.getpid()}.jsonl").read_bytes()
    now_s[0] += 1.5 * DAY_S
    exporter.export(spans)
    aside = tmp_path / f"sample-{os.getpid()}.1.jsonl"
    assert aside.read_bytes() == first, "a file holds one day"
    now_s[0] += 11 * DAY_S
    exporter.delete_old()
    assert (kept.exists(), aside.exists()) == (False, False)
    now_s[0] += 20 * DAY_S
    exporter.delete_old()
    exporter.export(spans)
    exporter.shutdown()
    assert (tmp_path / f"sample-{os.getpid()}.jsonl").read_bytes() == first


def test_shutting_down_leaves_the_drivers_as_they_were() -> None:
    """Set up and shut down as often as one likes."""
    places = [(asyncpg.Connection, "fetch"), (redis.asyncio.Redis, "execute_command")]
    before = [getattr(owner, name) for owner, name in places]
    for _ in range(2):
        made = Traced()
        assert [getattr(owner, name) for owner, name in places] != before
        assert tracing.client_interceptors()
        made.telemetry.shutdown()
        made.telemetry.shutdown()
        assert [getattr(owner, name) for owner, name in places] == before
        assert not tracing.client_interceptors()


async def test_a_batch_is_traced_by_its_first_sampled_waiter_and_linked_by_the_others(traced: Traced) -> None:
    """What the batch does nests in one trace; every other sampled one finds it by a link; the unsampled add nothing."""

    async def send(queries: list[str]) -> Sequence[str | Exception]:
        with tracing.span("read"):
            return queries

    load = Load()
    gatherer = Gatherer(send, load, name="consent")

    async def call(name: str, sampled: bool) -> str:
        if not sampled:
            return await gatherer(name)
        with tracing.root_span(name):
            return await gatherer(name)

    calls = [call("dark", False), call("one", True), call("two", True)]
    assert await asyncio.gather(*calls) == ["dark", "one", "two"]
    traced.telemetry.flush()
    kept = traced.kept.spans
    one, two = (next(span for span in kept if span.name == name) for name in ("one", "two"))
    gathers = [span for span in kept if span.name == "gather consent"]
    (first,) = [span for span in gathers if span.context.trace_id == one.context.trace_id]
    (other,) = [span for span in gathers if span.context.trace_id == two.context.trace_id]
    (read,) = [span for span in kept if span.name == "read"]
    assert read.parent == first.context
    assert first.parent == one.context
    assert other.parent == two.context
    assert [link.context.span_id for link in other.links] == [first.context.span_id]
    assert (first.attributes or {})["comity.batch.size"] == 3
    assert len(kept) == 5
