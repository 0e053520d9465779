"""What the spans of one Decide say: which decisions it made, why they came out so, and where its time went."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from services.chassis import tracing
from services.chassis.errors import Kind, ServiceError
from services.decision.domain.request import Answer, Ask
from tests.traced import Traced
from tests.unit.decision.fakes import DEAD, Harness, request
from tests.unit.decision.test_decide import CERTAIN, two_placements


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.telemetry.shutdown()


async def decide(harness: Harness, *asks: Ask) -> tuple[Answer, ...]:
    """Decide inside the span that gRPC's instrumentation makes of a sampled call."""
    with tracing.tracer().start_as_current_span("Decide", kind=SpanKind.SERVER):
        return (await harness.decide(request(*asks))).decisions


def named(traced: Traced, name: str) -> list[ReadableSpan]:
    return [span for span in traced.ended() if span.name == name]


def holding(traced: Traced, decision_id: str) -> set[str]:
    """Names of the spans that a search for this attribute and plain value finds, as tracing backends search."""
    return {
        span.name
        for span in traced.ended()
        for name, value in (span.attributes or {}).items()
        if (name, value) == (tracing.COMITY_DECISION_ID, decision_id)
    }


async def test_decision_is_found_by_its_plain_id_on_the_call_itself(traced: Traced) -> None:
    """With one placement the call's span says all of the decision in scalars, and so does the answer's span."""
    (answer,) = await decide(Harness(CERTAIN))
    assert holding(traced, answer.decision_id) == {"Decide", "decision.answer"}
    (call,) = named(traced, "Decide")
    expected = {
        tracing.COMITY_DECISION_ID: answer.decision_id,
        tracing.COMITY_PLACEMENT_ID: "home_hero",
        tracing.COMITY_REASON: "RANKED",
        tracing.COMITY_FALLBACK: False,
        tracing.COMITY_LAYER: "KNOWN",
        tracing.COMITY_MODEL_VERSION: "ranker@1",
        tracing.COMITY_FEATURE_SET_VERSION: "features-1",
        tracing.COMITY_CONSENT_POLICY_VERSION: "consent-1",
        tracing.COMITY_DECISION_POLICY_VERSION: "policy-1",
        tracing.COMITY_CATALOG_VERSION: "1",
        tracing.COMITY_SITE_VERSION: "site-1",
    }
    (own,) = named(traced, "decision.answer")
    assert dict(call.attributes or {}) == dict(own.attributes or {}) == expected


async def test_each_decision_of_a_call_has_a_span_of_its_own(traced: Traced) -> None:
    """With several placements each is found by its own id and reasons; the call says what holds of all of them."""
    harness = Harness()
    harness.serving = two_placements()
    answers = await decide(harness, Ask("home_hero"), Ask("side"))
    for answer in answers:
        assert holding(traced, answer.decision_id) == {"decision.answer"}
    (call,) = named(traced, "Decide")
    told = {
        (span.attributes or {})[tracing.COMITY_PLACEMENT_ID]: span.attributes or {}
        for span in named(traced, "decision.answer")
    }
    assert {placement: each[tracing.COMITY_REASON] for placement, each in told.items()} == {
        answer.placement_id: answer.choice.reason.name for answer in answers
    }
    shared = dict(set(told["home_hero"].items()) & set(told["side"].items()))
    assert dict(call.attributes or {}) == shared
    assert tracing.COMITY_SITE_VERSION in shared
    assert not {tracing.COMITY_DECISION_ID, tracing.COMITY_PLACEMENT_ID} & shared.keys()
    assert [span.context.trace_id for span in traced.ended()] == [call.context.trace_id] * len(traced.ended())


async def test_no_attribute_of_a_decide_is_a_list(traced: Traced) -> None:
    """Tracing backends index and search plain values."""
    harness = Harness()
    harness.serving = two_placements()
    await decide(harness, Ask("home_hero"), Ask("side"))
    lists = [
        name for span in traced.ended() for name, value in (span.attributes or {}).items() if isinstance(value, tuple)
    ]
    assert lists == []


async def test_fallback_is_found_and_is_no_error(traced: Traced) -> None:
    """A default answered without consent is what was promised: marked, and the call has not failed."""
    harness = Harness(CERTAIN)
    harness.consent.allowed = frozenset()
    await decide(harness)
    for name in ("Decide", "decision.answer"):
        (span,) = named(traced, name)
        attributes = span.attributes or {}
        assert (attributes[tracing.COMITY_FALLBACK], attributes[tracing.COMITY_FALLBACK_REASON]) == (True, "NO_CONSENT")
        assert span.status.status_code is not StatusCode.ERROR


async def test_stage_that_failed_is_an_error_with_its_cause(traced: Traced) -> None:
    """A service that is away shows as the failed step of a call that was answered all the same."""
    harness = Harness(CERTAIN)
    harness.features.fails = DEAD
    await decide(harness)
    failed = {span.name: (span.attributes or {})["error.type"] for span in traced.ended() if not span.status.is_ok}
    assert failed == {"decision.features": "DOWN"}


async def test_model_that_breaks_is_an_error_of_its_step(traced: Traced) -> None:
    """The span of scoring says how scoring ended, like every other step."""
    harness = Harness(CERTAIN)
    harness.ranker.fails = True
    await decide(harness)
    (span,) = named(traced, "decision.score")
    assert (span.attributes or {})[tracing.COMITY_STAGE_OUTCOME] == "UNAVAILABLE"
    assert span.status.status_code is StatusCode.ERROR


async def test_answer_that_is_refused_is_an_error_of_its_placement(traced: Traced) -> None:
    """The id of another request: the placement's span fails, by type and without a text."""
    harness = Harness(CERTAIN)
    await harness.decide(request(digest=b"e" * 32))
    with pytest.raises(ServiceError) as caught:
        await decide(harness)
    assert caught.value.kind is Kind.ALREADY_EXISTS
    (span,) = named(traced, "decision.answer")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)


async def test_choosing_is_a_step_of_its_own_for_each_placement(traced: Traced) -> None:
    """Eligibility, assembly, scores and draws take most of a Decide; scoring is inside."""
    harness = Harness()
    harness.serving = two_placements()
    await decide(harness, Ask("home_hero"), Ask("side"))
    chosen = named(traced, "decision.choose")
    assert [(span.attributes or {})[tracing.COMITY_PLACEMENT_ID] for span in chosen] == ["home_hero", "side"]
    parents = [span.parent.span_id for span in named(traced, "decision.score") if span.parent]
    assert parents == [span.context.span_id for span in chosen]


async def test_decide_that_is_not_sampled_makes_no_span(traced: Traced) -> None:
    """The usual case costs nothing."""
    await Harness(CERTAIN).decide(request())
    assert traced.ended() == []
