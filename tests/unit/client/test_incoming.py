"""What comes in from visitors and programs: a bad value costs at most itself, in every field of every call."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity_client import ComityClient, ConsentSignals, Happening, InvalidRequestError
from comity_client.incoming import FACT_CHARACTERS_MAX, IDENTITY_CHARACTERS_MAX, SIGNAL_CHARACTERS_MAX, entry
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.limits import problems_of
from tests.unit.client.test_client import ACCEPTED, ALICE, DEFAULTS, Decisions, Feedback, dead_address, ranked, served

SURROGATE = "\ud800"
# What a browser may send in the place of anything.
FROM_BROWSERS = ["", "\0", "x" * 300, "x" * 20_000, SURROGATE, "a\n\x7fb", "\N{PILE OF POO}"]
SIGNALS = ("gpc", "tc_string", "gpp", "usp", "jurisdiction")
FIELDS_OF_DECIDE: dict[str, Any] = {
    "identity": lambda value: {"identities": {"anonymous_id": value}},
    "identity beside another": lambda value: {"identities": ALICE | {"anonymous_id": value}},
    "context": lambda value: {"context": {"user_agent": value}},
    "gpc": lambda value: {"gpc": value},
    "candidate": lambda value: {"candidate_ids": [value, value]},
    "exclusion": lambda value: {"excluded_item_ids": ["kite", value, value]},
    "request id": lambda value: {"request_id": value},
    "traceparent": lambda value: {"traceparent": value},
    **{name: lambda value, name=name: {"consent_signals": ConsentSignals(**{name: value})} for name in SIGNALS},
}


class Takes(Feedback):
    """Takes every event in, each under its own id."""

    async def Track(self, request: Any, context: Any) -> feedback_pb.TrackResponse:  # noqa: N802
        self.requests.append(request)
        status = feedback_pb.TRACK_STATUS_ACCEPTED
        return feedback_pb.TrackResponse(
            results=[feedback_pb.TrackResult(event_id=one.event_id, status=status) for one in request.events]
        )


def visitors_texts(request: decision_pb.DecideRequest) -> Iterator[tuple[str, int]]:
    """What a visitor may have sent, and the longest that a service of a release before takes: it refuses the others."""
    yield from ((identity.value, IDENTITY_CHARACTERS_MAX) for identity in request.identities)
    yield from ((fact.string_value, FACT_CHARACTERS_MAX) for fact in request.context.values())
    yield from ((getattr(request.consent_signals, name), SIGNAL_CHARACTERS_MAX) for name in SIGNALS)


@pytest.mark.parametrize("value", FROM_BROWSERS, ids=lambda value: ascii(value)[:12])
@pytest.mark.parametrize("field", FIELDS_OF_DECIDE)
async def test_no_value_of_a_browser_raises_in_a_page(field: str, value: str) -> None:
    """What is sent keeps every limit of the server, so that it does not refuse; or the page gets its default."""
    decisions = Decisions(ranked)
    async with served(decisions) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=10) as comity:
        asked = {"identities": ALICE, "placements": ["home_hero"]} | FIELDS_OF_DECIDE[field](value)
        hero = (await comity.decide(**asked))["home_hero"]
    assert hero.entries
    for request in decisions.requests:
        assert problems_of(request) == ()
        for text, characters_max in visitors_texts(request):
            assert len(text) <= characters_max
            assert "\0" not in text
    if value == SURROGATE and field.startswith("identity"):
        assert hero.fallback_reason == "CLIENT_REFUSED"
    else:
        assert hero.source == "slate"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 10**400, True, 7], ids=ascii)
async def test_a_fact_that_is_none_is_left_out(value: Any) -> None:
    """None, NaN and what no number can hold are facts that nobody knows."""
    decisions = Decisions(ranked)
    async with served(decisions) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=10) as comity:
        page = await comity.decide(identities=ALICE, placements=["home_hero"], context={"price": value, "hour": 7})
    assert page["home_hero"].source == "slate"
    assert sorted(decisions.requests[0].context) == (["hour", "price"] if value in (True, 7) else ["hour"])


async def test_a_signal_that_is_unfit_is_sent_as_a_malformed_one() -> None:
    """Never cut, because a part of a string may grant what the whole does not; never left out, because it was sent."""
    decisions = Decisions(ranked)
    async with served(decisions) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=10) as comity:
        for value in ("1" + "x" * 20_000, "1\0", SURROGATE):
            signals = ConsentSignals(gpc=value, tc_string=value, gpp=value, usp=value, jurisdiction=value)
            await comity.decide(identities=ALICE, placements=["home_hero"], consent_signals=signals)
    for request in decisions.requests:
        assert {getattr(request.consent_signals, name) for name in SIGNALS} == {"\N{REPLACEMENT CHARACTER}"}


async def test_candidates_of_which_none_can_be_an_item_are_not_the_whole_catalog() -> None:
    """An empty list would mean that; exclusions that can be no item exclude nothing."""
    decisions = Decisions(ranked)
    async with served(decisions) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=10) as comity:
        odd = ["x" * 65, "\0"]
        await comity.decide(identities=ALICE, placements=["home_hero"], candidate_ids=odd, excluded_item_ids=odd)
    (asked,) = decisions.requests[0].placements
    assert (list(asked.candidate_ids), list(asked.excluded_item_ids)) == (["\N{REPLACEMENT CHARACTER}"], [])


async def test_an_id_that_cannot_be_sent_is_sent_as_its_digest() -> None:
    """The same id stays the same, so a retry is one; another one is another."""
    decisions = Decisions(ranked)
    async with served(decisions) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=10) as comity:
        for request_id in ("x" * 65, "x" * 65, "x" * 66, "r1"):
            await comity.decide(identities=ALICE, placements=["home_hero"], request_id=request_id)
    first, again, other, plain = (request.request_id for request in decisions.requests)
    assert first == again != other
    assert plain == "r1"


PROGRAMS_MISTAKES: dict[str, dict[str, Any]] = {
    "identities[user_id]": {"identities": {"user_id": 42}},
    "identities": {"identities": ["user_id"]},
    "occurred_at": {"occurred_at": datetime(2026, 11, 29, 12)},  # noqa: DTZ001
    "type": {"type": 7},
    "item_ids": {"item_ids": "kite"},
    "item_ids[0]": {"item_ids": [7]},
    "properties[amount]": {"properties": {"amount": [1]}},
    "event_id": {"event_id": 7},
    "decision": {"decision": {"id": "d1"}},
    "consent_signals": {"consent_signals": {"gpc": "1"}},
    "event": {"properties": 7},
}
BROWSERS_VALUES: dict[str, dict[str, Any]] = {
    "identities[user_id]": {"identities": {"user_id": SURROGATE}},
    "item_ids[1]": {"item_ids": ["kite", SURROGATE]},
    "properties[query]": {"properties": {"query": SURROGATE}},
    "properties[amount]": {"properties": {"amount": float("nan")}},
}


@pytest.mark.parametrize("field", PROGRAMS_MISTAKES | BROWSERS_VALUES)
async def test_a_bad_event_is_refused_with_its_field_and_costs_no_other(field: str) -> None:
    """The others of the batch are sent, and the results are in order."""
    good = Happening("click", ALICE, item_ids=["kite"], occurred_at=datetime.now(UTC))
    for wrong in (PROGRAMS_MISTAKES.get(field), BROWSERS_VALUES.get(field)):
        feedback = Takes(ACCEPTED)
        async with served(feedback) as address, ComityClient(address) as comity:
            bad = replace(good, **(wrong or BROWSERS_VALUES["properties[query]"]))
            tracked = await comity.track_many([good, bad, replace(good, event_id="e3")])
        assert [one.status for one in tracked] == ["ACCEPTED", "REFUSED", "ACCEPTED"]
        assert tracked[2].event_id == "e3"
        assert wrong is None or tracked[1].field == field
        assert len(feedback.requests[0].events) == 2


@pytest.mark.parametrize("field", PROGRAMS_MISTAKES)
async def test_one_event_that_is_the_programs_mistake_raises_typed(field: str) -> None:
    """With the field; where the caller wants no errors it is REFUSED."""
    wrong = {"identities": ALICE} | PROGRAMS_MISTAKES[field]
    event_type = wrong.pop("type", "click")
    async with ComityClient(dead_address()) as comity:
        with pytest.raises(InvalidRequestError) as caught:
            await comity.track(event_type, **wrong)
    assert caught.value.problems[0].field == field
    async with ComityClient(dead_address(), raise_on_invalid=False) as comity:
        assert (await comity.track(event_type, **wrong)).status == "REFUSED"


@pytest.mark.parametrize("field", BROWSERS_VALUES)
async def test_one_event_that_a_browser_spoiled_is_refused_and_raises_nothing(field: str) -> None:
    """Tracking never breaks the page."""
    async with ComityClient(dead_address()) as comity:
        tracked = await comity.track("click", **({"identities": ALICE} | BROWSERS_VALUES[field]))
    assert (tracked.status, tracked.field) == ("REFUSED", field)


@pytest.mark.parametrize(
    "field", ["item_ids[0]", "properties[query]", "subject.identities[0].namespace", "decision_id"]
)
async def test_what_the_server_refuses_of_a_browsers_values_raises_nothing(field: str) -> None:
    """Another field is the program's, and raises."""
    refused = feedback_pb.TrackResult(status=feedback_pb.TRACK_STATUS_REFUSED, field=field, problem="is too long")
    async with served(Feedback(refused)) as address, ComityClient(address) as comity:
        assert (await comity.track("click", identities=ALICE)).field == field


@pytest.mark.parametrize("wrong", [{"identities": {"user_id": 42}}, {"context": {"a": []}}, {"candidate_ids": "kite"}])
async def test_a_decide_of_wrong_types_is_a_typed_error_or_the_default(wrong: dict[str, Any]) -> None:
    """It names the field."""
    asked = {"identities": ALICE, "placements": ["home_hero"]} | wrong
    async with ComityClient(dead_address(), defaults=DEFAULTS) as comity:
        with pytest.raises(InvalidRequestError) as caught:
            await comity.decide(**asked)
    assert caught.value.problems[0].field.partition("[")[0] in wrong
    async with ComityClient(dead_address(), defaults=DEFAULTS, raise_on_invalid=False) as comity:
        assert (await comity.decide(**asked))["home_hero"].fallback_reason == "CLIENT_REFUSED"


@given(name=st.text(max_size=80), value=st.text(max_size=80))
def test_no_refusal_repeats_what_may_be_somebodys(name: str, value: str) -> None:
    """Only names as a bundle declares them are told."""
    told = entry("identities", f"{name} {value}")
    assert told == "identities[…]"
