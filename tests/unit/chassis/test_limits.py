"""What the declared limits let pass and what they refuse."""

import importlib
import math
import pkgutil
import re
from typing import Any

import comity
import pytest
from comity.common.v1 import holdings_pb2, options_pb2, types_pb2
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import never_list_pb2
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2, features_service_pb2
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Kind, ServiceError
from services.chassis.limits import PROBLEMS_MAX, UNPRINTABLE, check_of, problems_of, require_valid
from services.chassis.rpc_guard import REQUEST_BYTES_MAX
from services.chassis.rpc_server import RECEIVE_BYTES_MAX
from services.decision.domain.layout import COLUMNS_MAX as COLUMNS_TAKEN_MAX
from services.features.domain.feature_set import COLUMNS_MAX, compile_features
from services.features.wire import feature_set_to_pb, features_from_pb

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


@pytest.mark.parametrize(
    "character",
    ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f"],
    ids=ascii,
)
def test_id_that_forges_lines_or_directions_is_refused_everywhere(character: str) -> None:
    """No control character, line break or turned writing: in a string, an entry and a key alike."""
    request = decide()
    request.request_id = f"a{character}b"
    request.placements[0].excluded_item_ids.append(f"a{character}b")
    request.context[f"a{character}b"].boolean_value = True
    assert set(found(request)) == {"request_id", "placements[0].excluded_item_ids[0]", "context[a key]"}


@pytest.mark.parametrize("text", ["[/red]boom", "käse 49,90 €", "شطرنج", "a\u00a0b", "👩\u200d🍳"])
def test_id_may_be_whatever_can_be_shown(text: str) -> None:
    """Letters of any language, spaces, emoji with joiners and brackets stay allowed."""
    request = decide()
    request.placements[0].candidate_ids.append(text)
    assert found(request) == {}


def test_text_for_people_may_have_lines() -> None:
    """What describes a thing and names nothing is refused for NUL alone."""
    item = site_pb2.Item(id="i", title="first\nsecond \N{RIGHT-TO-LEFT MARK}")
    assert found(item) == {}
    item.title = "a\0b"
    assert found(item) == {"title": "holds a NUL character; remove it"}


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
        or any(UNPRINTABLE.search(text) for text in (name, *ids, *context))
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


def _sent(descriptor: Descriptor, into: dict[str, FieldDescriptor]) -> None:
    """Every field that a message of this type can carry, by its full name."""
    for field in descriptor.fields:
        if field.full_name not in into and not descriptor.full_name.startswith("google."):
            into[field.full_name] = field
            if field.message_type is not None:
                _sent(field.message_type, into)


def _all_sent() -> dict[str, FieldDescriptor]:
    into: dict[str, FieldDescriptor] = {}
    for service in SERVICES:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            _sent(method.input_type, into)
    _sent(never_list_pb2.NeverList.DESCRIPTOR, into)
    return into


# Every field that a caller or a bundle can send.
SENT = _all_sent()
STRINGS = {name: field for name, field in SENT.items() if field.type == FieldDescriptor.TYPE_STRING}
INTEGERS = {
    name: field
    for name, field in SENT.items()
    if field.cpp_type
    in (
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    )
}


def limits_of(field: FieldDescriptor) -> options_pb2.FieldLimits:
    return field.GetOptions().Extensions[options_pb2.limits]


def of_entry(name: str) -> bool:
    """Whether the field is the key or value of a map: the map itself declares their limits."""
    return name.rpartition(".")[0].endswith("Entry")


def test_every_string_that_is_sent_says_what_it_may_hold() -> None:
    """A pattern, a length, or that it is text for people or a visitor's: none is left to the default unsaid."""
    unsaid = [
        name
        for name, field in STRINGS.items()
        if not of_entry(name)
        and not any((limits_of(field).pattern, limits_of(field).len_max))
        and not limits_of(field).prose
        and not limits_of(field).from_visitor
    ]
    assert len(STRINGS) > 100
    assert unsaid == []


def test_members_and_subjects_have_the_pattern_of_a_member_wherever_they_are_sent() -> None:
    """A member's id reaches keys, lists and searches of bytes: only what identity derives can be one."""
    named = {name for name in STRINGS if re.search(r"(member|subject)_ids?$", name)}
    assert len(named) > 8
    assert {limits_of(STRINGS[name]).pattern for name in named} == {"[a-z2-7]{26}"}


def test_fields_of_one_name_hold_the_same_in_every_proto() -> None:
    """One pattern each: what one method refuses as an id no other takes for one."""
    patterns: dict[str, set[str]] = {}
    for field in STRINGS.values():
        if field.name.endswith(("_id", "_ids", "_version", "sha256", "_hash")):
            patterns.setdefault(field.name, set()).add(limits_of(field).pattern)
    assert {name: found for name, found in patterns.items() if len(found) > 1} == {}
    assert not any(limits_of(field).prose for field in STRINGS.values() if field.name.endswith(("id", "ids", "name")))


def holding(field: FieldDescriptor, value: object) -> Any:
    """A message of the field's type with this value in it."""
    containing: Any = field.containing_type
    message: Any = message_factory.GetMessageClass(containing)()
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)
    return message


def problems_in(field: FieldDescriptor, value: object) -> list[str]:
    return [one for one in found(holding(field, value)) if one.split("[")[0] == field.name]


@pytest.mark.parametrize("name", sorted(name for name in STRINGS if not of_entry(name)))
def test_every_string_refuses_what_no_terminal_should_see(name: str) -> None:
    """Names, ids and versions hold neither an escape sequence nor a line break; text for people and visitors' may."""
    field = STRINGS[name]
    free = limits_of(field).prose or limits_of(field).from_visitor
    assert bool(problems_in(field, "a\x1b[2J\n")) != free


@pytest.mark.parametrize("name", sorted(name for name in INTEGERS if not of_entry(name)))
def test_every_integer_fits_the_column_that_keeps_it(name: str) -> None:
    """The largest number of the type that no column holds is refused, not raised behind the edge."""
    field = INTEGERS[name]
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    column_max = 2**31 - 1 if field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_INT32) else 2**63 - 1
    assert limits_of(field).lte <= column_max
    if not signed:
        assert problems_in(field, column_max + 1) == [f"{field.name}[0]" if field.is_repeated else field.name]


def test_number_without_bounds_may_be_the_largest_that_is_kept() -> None:
    """The column's own largest passes; what a log can never reach does not."""
    assert found(consent_pb.TcfRule(purposes=[2**31 - 1])) == {}
    assert found(types_pb2.LogPosition(epoch=2**31 - 1, xid=2**53, position=2**53)) == {}
    assert set(found(types_pb2.LogPosition(epoch=2**31, xid=2**53 + 1, position=2**64 - 1))) == {
        "epoch",
        "xid",
        "position",
    }


@pytest.mark.parametrize("member_id", ["", "a", "A" * 26, "a" * 27, f"{'a' * 25}\n"])
def test_erasure_of_no_member_is_refused_at_the_edge(member_id: str) -> None:
    """Empty, shortened and mistyped ids are no members, and erase nobody."""
    request = holdings_pb2.EraseHoldingsRequest(
        erasure_id="e", member_ids=[member_id], step=holdings_pb2.ERASURE_STEP_SUPPRESS
    )
    assert set(found(request)) == {"member_ids[0]"}


# What `comity apply` sends of a bundle.
PUBLISHED = (
    consent_pb.PublishPurposesRequest,
    features_service_pb2.PublishFeatureSetRequest,
    feedback_pb.PublishEventSchemasRequest,
    decision_pb.UpsertItemsRequest,
    decision_pb.ApplySiteRequest,
)


@pytest.mark.parametrize("request_type", PUBLISHED, ids=lambda one: one.DESCRIPTOR.name)
def test_every_list_of_a_bundle_says_how_long_it_may_be(request_type: Any) -> None:
    """None is cut to the default of 64 unsaid: what features takes decision takes, too."""
    sent: dict[str, FieldDescriptor] = {}
    _sent(request_type.DESCRIPTOR, sent)
    unsaid = [name for name, field in sent.items() if field.is_repeated and not limits_of(field).items_max]
    assert unsaid == []


def test_largest_feature_set_can_be_published_and_applied() -> None:
    """256 features with all the words and columns that each may have: within the limits and the size of both calls."""
    features = [
        feature_set_pb2.Feature(
            name=f"feature_{k:03}".ljust(64, "x"),
            description="d" * 1024,
            reason="r" * 1024,
            owner="o" * 64,
            retention_days=1,
            item_category=feature_set_pb2.ItemCategory(attribute="a" * 64, values=["one", "two"]),
        )
        for k in range(256)
    ]
    published = features_service_pb2.PublishFeatureSetRequest(features=features)
    compiled = compile_features([one for one in features_from_pb(features) if one is not None])
    assert len(compiled.columns) == COLUMNS_MAX == COLUMNS_TAKEN_MAX
    applied = decision_pb.ApplySiteRequest(feature_set=feature_set_to_pb(compiled, features))
    applied.site.name = "largest"
    for request, service in ((published, "features.v1.FeatureService"), (applied, "decision.v1.CatalogService")):
        assert [one for one in found(request) if not one.startswith("site")] == []
        name = type(request).DESCRIPTOR.name.removesuffix("Request")
        method = descriptor_pool.Default().FindServiceByName(f"comity.{service}").methods_by_name[name]
        bytes_max = method.GetOptions().Extensions[options_pb2.rules].request_bytes_max or REQUEST_BYTES_MAX
        assert request.ByteSize() <= bytes_max <= RECEIVE_BYTES_MAX
