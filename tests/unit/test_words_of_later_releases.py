"""A replica of the next release may write a value of any enum that this one does not know: it is read all the same."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comity
import comity_client.wire
import numpy as np
import pytest
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict

import services.consent.wire
import services.consent.wire.policy
import services.decision.wire.calls
import services.decision.wire.record
import services.decision.wire.site
import services.features.wire
import services.feedback.wire
import services.identity.wire
from bench.world import answer_label
from learning.errors import LearningError
from learning.ranklens import run as ranklens
from services.chassis.errors import ServiceError
from services.chassis.limits import problems_of
from services.chassis.words import enum_word
from services.consent.domain.ledger import NEVER, Standing, State
from services.consent.domain.verdicts import combine, verdict
from services.decision.domain.explain import explain
from services.decision.domain.vocabulary import Exclusion, Reason
from services.feedback.domain.behavior import value_problem
from services.feedback.domain.schemas import EventProperty, PropertyKind
from services.identity.domain.permission import Word as Answer
from tests.unit.consent.test_ledger import NOW, purpose
from tests.unit.decision.world import PLACEMENT, site

Reader = Callable[[Any], object]


def in_record(**fields: Any) -> Any:
    """A logged decision that holds this."""
    made = events_pb.DecisionMade(**fields)
    made.decided_at.GetCurrentTime()
    made.inputs.digest = b"d"
    return made


def read_record(made: events_pb.DecisionMade) -> None:
    """Everybody who reads the log: decision itself, its explanation, feedback's copy, and what is printed of it."""
    record = services.decision.wire.record.record_from_pb(made, "m")
    explain(record, site().plans[PLACEMENT.id])
    again = services.decision.wire.record.record_to_pb(record)
    assert (again.reason, again.level, again.inputs.identity) == (made.reason, made.level, made.inputs.identity)
    services.feedback.wire.decode_decided("m", made.SerializeToString())
    MessageToDict(made)


def read_made(one: events_pb.DecisionMade) -> None:
    made = in_record()
    made.MergeFrom(one)
    read_record(made)


def read_answer(decision: decision_pb.PlacementDecision) -> None:
    """Callers: the client, and what commands and benchmarks print."""
    if decision.WhichOneof("answer") is None:
        decision.fallback.entries.add(item_id="a", propensity=1.0)
    comity_client.wire.decision_of(decision, placement_id="")
    answer_label(decision)


def read_result(result: decision_pb.RecordedResult) -> None:
    """Whoever records another system's slates."""
    with pytest.raises(LearningError, match="not scored"):
        ranklens.RankLens._judge(SimpleNamespace(), SimpleNamespace(item_ids=["a"]), result)  # type: ignore[arg-type]


def read_verdict(one: consent_pb.PurposeVerdict) -> None:
    """Whoever asks consent: none of them takes it for a permission, and identity takes it for a refusal."""
    evaluation = consent_pb.Evaluation(verdicts=[one])
    assert not services.decision.wire.calls.consent_from_pb(evaluation, "p").allowed
    assert not services.feedback.wire.permission_from_pb(evaluation).allowed
    (words,) = services.identity.wire.words_of(consent_pb.EvaluateResponse(evaluations=[evaluation]))
    assert words[one.purpose] is Answer.NO


def read_subject(one: identity_pb.ResolvedSubject) -> None:
    services.decision.wire.calls.person_from_pb(one)
    services.feedback.wire.subject_from_pb(one)
    services.consent.wire.person_of(identity_pb.ResolveResponse(subjects=[one]))


def read_feature(one: feature_set_pb2.Feature) -> None:
    """What computes a number must know how: the feature is none of this release's."""
    assert services.features.wire.features_from_pb([one]) == [None]


def read_property(one: feedback_pb.EventProperty) -> None:
    """Its values are taken, whatever they are."""
    schema = services.feedback.wire.decode_schema(feedback_pb.EventSchema(properties=[one]).SerializeToString())
    assert schema.properties[0].kind is PropertyKind.UNKNOWN
    services.feedback.wire.encode_schema(schema)


def read_layer(one: site_pb2.Layer) -> None:
    """A site in words that are not known does not decide here."""
    declared = site_pb2.Site(placements=[site_pb2.Placement(layers=[one])])
    with pytest.raises(ServiceError, match="upgrade decision first"):
        services.decision.wire.site.compiled_from_bytes(declared.SerializeToString(), b"")


def read_place(one: consent_pb.Jurisdiction) -> None:
    assert services.consent.wire.policy.decode_jurisdiction(one.SerializeToString()).regime == 0


def read_status(one: feedback_pb.TrackResult) -> None:
    with pytest.raises(comity_client.wire.GarbageError):
        comity_client.wire.tracked_of(one, event_id="")
    shown(one)


def refused(request: Any) -> None:
    """What a caller sends is refused with its field."""
    assert any("is not a value of" in problem.problem for problem in problems_of(request))


def shown(message: Any) -> None:
    """What commands print."""
    MessageToDict(message)
    for field in message.DESCRIPTOR.fields:
        if field.enum_type is not None and not field.is_repeated:
            enum_word(field.enum_type, getattr(message, field.name))


# Who reads each message that holds an enum. Of a request the limits are the first reader, and refuse what is not known.
READERS: dict[str, Reader] = {
    "comity.common.v1.EraseHoldingsRequest": refused,
    "comity.consent.v1.ConsentRecord": shown,
    "comity.consent.v1.ErasureProgress": shown,
    "comity.consent.v1.GetErasureResponse": shown,
    "comity.consent.v1.Jurisdiction": read_place,
    "comity.consent.v1.PurposeAnswer": refused,
    "comity.consent.v1.PurposeVerdict": read_verdict,
    "comity.decision.v1.ConsentBasis": lambda one: read_record(in_record(consent=one)),
    "comity.decision.v1.DecideRequest": refused,
    "comity.decision.v1.DecisionInputs": lambda one: read_record(in_record(inputs=one)),
    "comity.decision.v1.DecisionMade": read_made,
    "comity.decision.v1.Layer": read_layer,
    "comity.decision.v1.PlacementDecision": read_answer,
    "comity.decision.v1.RecordedResult": read_result,
    "comity.decision.v1.SlateEntry": lambda one: read_record(in_record(slate=[one])),
    "comity.features.v1.ItemAttribute": lambda one: read_feature(feature_set_pb2.Feature(item_attribute=one)),
    "comity.features.v1.ItemCount": lambda one: read_feature(feature_set_pb2.Feature(item_count=one)),
    "comity.features.v1.SubjectCount": lambda one: read_feature(feature_set_pb2.Feature(subject_count=one)),
    "comity.feedback.v1.EventProperty": read_property,
    "comity.feedback.v1.ReplayEventsRequest": lambda one: services.feedback.wire.kinds_from_pb(one.kinds),
    "comity.feedback.v1.TrackResult": read_status,
    "comity.identity.v1.ResolvedSubject": read_subject,
}


def enum_fields() -> Iterator[tuple[Descriptor, FieldDescriptor]]:
    """Every field of every message of the protos that holds an enum."""
    (root,) = comity.__path__
    for path in sorted(Path(root).rglob("*_pb2.py")):
        module = importlib.import_module(".".join(("comity", *path.relative_to(root).with_suffix("").parts)))
        waiting = list(module.DESCRIPTOR.message_types_by_name.values())
        while waiting:
            message = waiting.pop()
            waiting.extend(message.nested_types)
            yield from ((message, field) for field in message.fields if field.enum_type is not None)


FIELDS = list(enum_fields())


def test_every_message_with_an_enum_has_its_readers() -> None:
    """A new one is read here, too."""
    assert {message.full_name for message, _ in FIELDS} == READERS.keys()


@pytest.mark.parametrize("beyond", [1, 1_000], ids=["next", "far"])
@pytest.mark.parametrize(("message", "field"), FIELDS, ids=[field.full_name for _, field in FIELDS])
def test_an_enum_value_of_a_later_release_is_read(message: Descriptor, field: FieldDescriptor, beyond: int) -> None:
    """Or refused, where a caller sends it or a site declares it, with an error that says so; nothing else is raised."""
    written: Any = message_factory.GetMessageClass(message)()
    assert field.enum_type is not None
    number = max(field.enum_type.values_by_number) + beyond
    if field.is_repeated:
        getattr(written, field.name).append(number)
    else:
        setattr(written, field.name, number)
    READERS[message.full_name](type(written).FromString(written.SerializeToString()))


@pytest.mark.parametrize("number", [5, 17])
def test_a_reason_that_no_word_has_is_kept_as_its_number(number: int) -> None:
    """It is equal to no word, and the record goes on as it came."""
    record = services.decision.wire.record.record_from_pb(in_record(reason=number), "m")
    assert record.choice.reason == number
    assert all(record.choice.reason is not word for word in Reason)
    assert record.choice.reason.name == f"NUMBER_{number}"
    assert services.decision.wire.record.record_to_pb(record).reason == number


def test_an_answer_of_the_ledger_that_no_word_has_allows_nothing() -> None:
    """And is the strictest of all when persons become one."""
    unknown = Standing(State(9), 1, NOW, NOW, NEVER, 2)
    objected = Standing(State.OBJECTED, 1, NOW, NOW, NEVER, 2)
    assert not verdict("ads", purpose("ads"), [(None, unknown)], NOW).allowed
    assert combine([(None, objected), (NOW, unknown)], NOW) is unknown


def test_a_property_of_a_kind_that_is_not_known_takes_any_value() -> None:
    """Nothing that was declared to a newer replica is lost on this one."""
    entry = EventProperty("size", PropertyKind.UNKNOWN)
    assert [value_problem(entry, value) for value in ("m", 3.0, True)] == [None] * 3


def test_numbers_of_arrays_are_read_as_others_are() -> None:
    """Exclusions travel as arrays: replay and explanations name those of a later release, too."""
    numbers: Any = np.array([200, 1], dtype=np.uint8)
    later, known = Exclusion(numbers[0]), Exclusion(numbers[1])
    assert (later, later.name, known) == (200, "NUMBER_200", Exclusion(1))
