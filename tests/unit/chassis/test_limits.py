"""What the declared limits let pass and what they refuse."""

import importlib
import math
import pkgutil
from typing import Any

import comity
import pytest
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2, features_service_pb2
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf import descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Kind, ServiceError
from services.chassis.limits import PROBLEMS_MAX, check_of, problems_of, require_valid

# Every service there is: walking the packages registers their descriptors.
SERVICES = sorted(
    service.full_name
    for module in pkgutil.walk_packages(comity.__path__, "comity.")
    if module.name.endswith("_service_pb2")
    for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()
)


def decide() -> decision_pb.DecideRequest:
    request = decision_pb.DecideRequest(request_id="r1")
    request.identities.add(namespace="user_id", value="42")
    request.placements.add(placement_id="home_hero", candidate_ids=["a", "b"])
    request.context["hour"].number_value = 9.0
    return request


def found(message: Any) -> dict[str, str]:
    return {problem.field: problem.problem for problem in problems_of(message)}


def test_a_request_within_its_limits_passes() -> None:
    """Nothing is wrong with what is allowed."""
    require_valid(decide())


def test_an_empty_request_names_all_that_is_missing() -> None:
    """Required strings and lists are found together."""
    assert found(decision_pb.DecideRequest()) == {
        "request_id": "is missing; set it",
        "identities": "is empty; give at least one",
        "placements": "is empty; give at least one",
    }


def test_ten_thousand_candidates_are_refused_by_path() -> None:
    """The problem names the nested field and how many are allowed."""
    request = decide()
    request.placements.add(placement_id="p")
    request.placements.add(placement_id="q", candidate_ids=["i"] * 10_000)
    assert found(request) == {"placements[2].candidate_ids": "has 10000 entries; at most 1,000 are allowed"}


def test_the_refusal_is_one_typed_error() -> None:
    """It carries every problem, and its text the first."""
    with pytest.raises(ServiceError) as caught:
        require_valid(decision_pb.DecideRequest())
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "INVALID_FIELD")
    assert len(caught.value.problems) == 3
    assert caught.value.message == "request_id: is missing; set it (and 2 more)"


@pytest.mark.parametrize(
    ("length", "problem"),
    [(64, None), (65, "has 65 characters; at most 64 are allowed")],
)
def test_a_string_is_bounded_in_characters(length: int, problem: str | None) -> None:
    """Characters count, not bytes."""
    request = decide()
    request.request_id = "ö" * length
    assert found(request).get("request_id") == problem


def test_one_long_entry_of_a_list_is_named_by_its_index() -> None:
    """The fast look at a whole list still says which entry is wrong."""
    request = decide()
    request.placements[0].candidate_ids.extend(["x" * 65, "y" * 64, "z" * 66])
    assert set(found(request)) == {"placements[0].candidate_ids[2]", "placements[0].candidate_ids[4]"}


def test_nul_is_refused_everywhere() -> None:
    """Postgres cannot store it: in a string, an entry and a key alike."""
    request = decide()
    request.request_id = "a\0b"
    request.placements[0].excluded_item_ids.append("a\0b")
    request.context["a\0b"].boolean_value = True
    assert set(found(request)) == {"request_id", "placements[0].excluded_item_ids[0]", "context[a key]"}


def test_a_pattern_holds_for_the_whole_string() -> None:
    """A match inside is not enough, and an optional empty string passes."""
    request = decide()
    request.identities[0].namespace = "user_id!"
    assert found(request) == {"identities[0].namespace": "does not match [a-z][a-z0-9_]*"}
    query = feedback_pb.TrackedEvent(event_id="e", type="t")
    query.subject.identities.add(namespace="user_id", value="1")
    assert found(query) == {}
    query.subject.subject_id = "A" * 26
    assert set(found(query)) == {"subject.subject_id"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(value: float) -> None:
    """Declared or not, NaN and infinity are refused: in a oneof, a list and a map."""
    request = decide()
    request.context["hour"].number_value = value
    assert set(found(request)) == {"context[hour].number_value"}
    header = decision_pb.ModelHeader(name="m", sha256="0" * 64, feature_set_version="v", columns=["c"])
    header.metrics["ndcg"] = value
    assert set(found(header)) == {"metrics[ndcg]"}
    item = site_pb2.Item(id="i")
    item.numbers["price"] = value
    assert set(found(item)) == {"numbers[price]"}


@pytest.mark.parametrize(
    ("value", "passes"), [(0.0, True), (1.0, True), (-0.01, False), (1.01, False), (math.nan, False)]
)
def test_numbers_keep_their_bounds(value: float, passes: bool) -> None:
    """Bounds are inclusive and hold for each entry."""
    record = decision_pb.RecordedDecision(external_id="e", placement_id="p", item_ids=["i"])
    record.subject.identities.add(namespace="user_id", value="1")
    record.decided_at.seconds = 1
    record.propensities.extend([0.5, value])
    assert found(record).keys() == (set() if passes else {"propensities[1]"})


def test_a_lower_bound_refuses_an_unset_number() -> None:
    """An unset number is 0, and 0 is out of [1, 100]."""
    affinity = feature_set_pb2.CategoryAffinity(attribute="a", numerator="n")
    assert found(affinity) == {"buckets": "is missing; set it to a number other than 0"}
    affinity.buckets = 1025
    assert found(affinity) == {"buckets": "is out of bounds; 1 to 1,024 is allowed"}


def test_a_required_message_must_be_there_and_right() -> None:
    """A missing one is named; a present one is walked."""
    request = consent_pb.HistoryRequest()
    assert found(request) == {"subject": "is missing; set it"}
    request.subject.identities.add(value="1")
    assert found(request) == {"subject.identities[0].namespace": "is missing; set it"}


def test_a_required_message_that_cannot_be_wrong_must_still_be_there() -> None:
    """Presence is checked also where nothing inside has a limit."""
    request = features_service_pb2.AwaitPositionRequest(source="feedback")
    assert found(request) == {"position": "is missing; set it"}
    request.position.SetInParent()
    assert found(request) == {}


@pytest.mark.parametrize(("state", "problem"), [(0, "is missing"), (1, None), (99, "is not a value of ConsentState")])
def test_enums_are_known(state: int, problem: str | None) -> None:
    """A number that the enum does not have is refused, and so is 0 where one is required."""
    answer = consent_pb.PurposeAnswer(purpose="p", state=state)  # type: ignore[arg-type]
    text = found(answer).get("state")
    assert (text is None) if problem is None else (text is not None and text.startswith(problem))


@pytest.mark.parametrize(
    ("seconds", "nanos", "passes"),
    [
        (0, 0, True),
        (-62_135_596_800, 0, True),
        (253_402_300_799, 999_999_999, True),
        (253_402_300_800, 0, False),
        (0, -1, False),
    ],
)
def test_times_fit_a_datetime(seconds: int, nanos: int, passes: bool) -> None:
    """A time that no datetime can hold is the caller's error, not a crash behind the edge."""
    event = feedback_pb.TrackedEvent(event_id="e", type="t")
    event.subject.subject_id = "a" * 26
    event.occurred_at.seconds, event.occurred_at.nanos = seconds, nanos
    assert found(event).keys() == (set() if passes else {"occurred_at"})


def test_too_many_map_entries_are_refused() -> None:
    """A map is bounded like a list."""
    request = decide()
    for index in range(65):
        request.context[f"k{index}"].boolean_value = True
    assert found(request) == {"context": "has 66 entries; at most 64 are allowed"}


def test_a_key_that_is_no_declared_name_is_not_repeated() -> None:
    """A problem holds no value of the request, and a key may be one."""
    request = decide()
    request.context["Ann@example.com"].number_value = math.nan
    assert set(found(request)) == {"context[…].number_value"}


def test_a_batch_judged_apart_is_left_to_its_handler() -> None:
    """One bad event must not refuse the call; the handler finds its problems with the same check."""
    request = feedback_pb.TrackRequest(events=[feedback_pb.TrackedEvent()])
    assert found(request) == {}
    assert set(found(request.events[0])) == {"event_id", "type", "subject"}
    assert found(feedback_pb.TrackRequest()) == {"events": "is empty; give at least one"}


def test_a_flood_of_problems_is_cut() -> None:
    """At most twenty come back."""
    request = decision_pb.RecordDecisionsRequest(decisions=[decision_pb.RecordedDecision()] * 256)
    assert len(problems_of(request)) == PROBLEMS_MAX


@pytest.mark.parametrize("service", SERVICES)
def test_every_request_type_compiles(service: str) -> None:
    """No method's limits contradict themselves, and an empty request of each is judged without a crash."""
    for method in descriptor_pool.Default().FindServiceByName(service).methods:
        check_of(method.input_type)
        problems_of(message_factory.GetMessageClass(method.input_type)())


@given(
    st.lists(st.text(max_size=70), max_size=20),
    st.text(max_size=70),
    st.dictionaries(st.text(max_size=70), st.floats(), max_size=5),
    st.integers(min_value=0, max_value=2**32 - 1),
)
def test_no_request_crashes_the_check(ids: list[str], name: str, context: dict[str, float], size: int) -> None:
    """Whatever comes in, the answer is a list of problems, and exactly what the declared limits say."""
    request = decision_pb.DecideRequest(request_id=name)
    request.identities.add(namespace="user_id", value="1")
    request.placements.add(placement_id="p", candidate_ids=ids, slate_size=size)
    for key, value in context.items():
        request.context[key].number_value = value
    wrong = (
        not 0 < len(name) <= 64
        or any("\0" in text for text in (name, *ids, *context))
        or any(len(text) > 64 for text in (*ids, *context))
        or size > 100
        or not all(math.isfinite(value) for value in context.values())
    )
    assert bool(problems_of(request)) == wrong


FROM_VISITORS = {
    "comity.common.v1.Identity.value",
    "comity.common.v1.ConsentSignals.gpc",
    "comity.common.v1.ConsentSignals.tc_string",
    "comity.common.v1.ConsentSignals.gpp",
    "comity.common.v1.ConsentSignals.usp",
    "comity.common.v1.ConsentSignals.jurisdiction",
    "comity.decision.v1.ContextFact.string_value",
}


@pytest.mark.parametrize("name", sorted(FROM_VISITORS))
@pytest.mark.parametrize(
    "value", ["", "\0", "x" * 20_000, "tab\t\n\x7f\N{PILE OF POO}"], ids=lambda value: repr(value)[:12]
)
def test_what_a_visitor_sent_is_never_refused(name: str, value: str) -> None:
    """Its reader judges it: a header, cookie or consent string that is wrong must not cost a page its call."""
    message_name, _, field = name.rpartition(".")
    message = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(message_name))()
    if message_name.endswith("Identity"):
        message.namespace = "user_id"  # type: ignore[attr-defined]
    setattr(message, field, value)
    assert problems_of(message) == ()
