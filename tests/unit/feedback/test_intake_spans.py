"""The span of a message that brought decisions is found by each of them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from services.chassis import tracing
from services.chassis.events import LogPosition, RecordedEvent
from services.chassis.ids import uuid7
from services.feedback.subscribers import on_decision_events
from services.feedback.wire import DECISION_MADE
from tests.traced import Traced

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


class Taking:
    """A connection that takes every statement; what is stored is the integration tests' business."""

    async def execute(self, *_: object) -> None:
        """Take it."""


def decision(decision_id: str) -> RecordedEvent:
    return RecordedEvent(
        event_id=uuid7(NOW),
        type=DECISION_MADE,
        payload=b"",
        occurred_at=NOW,
        subject_id="",
        traceparent="",
        stream_id=decision_id,
        version=1,
        position=LogPosition(1, 1, 1),
    )


async def test_intake_of_decisions_is_found_by_their_ids() -> None:
    """One is an attribute, several are events; what else decision emits is not told."""
    traced, connection = Traced(), Taking()
    taken: Any = connection
    try:
        with tracing.root_span("one"):
            await on_decision_events(taken, [decision("d1"), replace(decision("m1"), type="comity.decision.v1.Other")])
        with tracing.root_span("two"):
            await on_decision_events(taken, [decision("d1"), decision("d2")])
        spans = traced.spans()
    finally:
        traced.telemetry.shutdown()
    assert (spans["one"].attributes or {})[tracing.COMITY_DECISION_ID] == "d1"
    told = {(event.attributes or {})[tracing.COMITY_DECISION_ID] for event in spans["two"].events}
    assert told == {"d1", "d2"}
