"""What goes over the wire comes back, and the words have the numbers that the protos give them."""

from dataclasses import replace
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from comity.common.v1 import types_pb2
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2, features_service_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import ServiceError
from services.chassis.events import LogPosition
from services.chassis.visitors import SIGNAL_CHARACTERS_MAX
from services.decision.domain import vocabulary as words
from services.decision.domain.catalog import Cut
from services.decision.domain.record import DecisionRecord, Evidence
from services.decision.domain.request import Answer, Answers
from services.decision.domain.vocabulary import FallbackReason, Reason, StageOutcome
from services.decision.wire.calls import answers_to_pb, consent_from_pb, decide_from_pb, digest_of, evaluate_query
from services.decision.wire.record import record_from_bytes, record_to_bytes
from services.decision.wire.site import compiled_from_bytes, item_columns_from_pb
from tests.unit.decision.world import MEMBER, PROFILE, SUBJECT, decide, site

PAIRS = [
    (words.Level, types_pb2.SubjectLevel, "SUBJECT_LEVEL_"),
    (words.Reason, events_pb.Reason, "REASON_"),
    (words.FallbackReason, events_pb.FallbackReason, "FALLBACK_REASON_"),
    (words.Exclusion, events_pb.ExclusionReason, "EXCLUSION_REASON_"),
    (words.Activation, events_pb.Activation, "ACTIVATION_"),
    (words.StageOutcome, events_pb.StageOutcome, "STAGE_OUTCOME_"),
    (words.Origin, events_pb.Origin, "ORIGIN_"),
    (words.ValueState, features_service_pb2.ValueState, "VALUE_STATE_"),
]


@pytest.mark.parametrize(("word", "proto", "prefix"), PAIRS, ids=[word.__name__ for word, _, _ in PAIRS])
def test_words_have_the_protos_numbers(word: type[IntEnum], proto: EnumTypeWrapper, prefix: str) -> None:
    """The log keeps numbers: a word that had another one would rewrite the past."""
    for member in word:
        name = "UNSPECIFIED" if member.name == "NONE" else member.name
        assert proto.Value(prefix + name) == member.value


def same(one: DecisionRecord, other: DecisionRecord) -> bool:
    """Equal, arrays bit by bit."""
    return record_to_bytes(one) == record_to_bytes(other) and one.choice == other.choice and one.digest == other.digest


@pytest.mark.parametrize(
    "outcomes",
    [
        {},
        {"allowed": frozenset()},
        {"consent": StageOutcome.LATE},
        {"late": True},
        {"asked": ["nothing"]},
        {"cut": Cut(1500, "clicks")},
    ],
)
def test_a_record_comes_back_as_it_was(outcomes: dict[str, object]) -> None:
    """Bytes to record and back loses nothing, fallbacks included."""
    record = decide(site(), context={"hour": 3.5, "ignored": "x"}, **outcomes)  # type: ignore[arg-type]
    record = replace(record, evidence=Evidence(record.evidence.subject, LogPosition(1, 2, 3), LogPosition(1, 4, 5)))
    again = record_from_bytes(record_to_bytes(record), MEMBER)
    assert same(record, again)
    assert (again.final, again.default_also_answered) == (False, False)
    told = replace(record, final=True, default_also_answered=True)
    assert same(told, record_from_bytes(record_to_bytes(told), MEMBER))
    assert again.inputs.cut == record.inputs.cut
    assert again.context == {"hour": 3.5}
    assert again.decided_at == record.decided_at


texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9)
signals = st.builds(
    types_pb2.ConsentSignals,
    gpc=texts,
    tc_string=texts,
    gpp=texts,
    usp=texts,
    jurisdiction=texts,
    do_not_personalize=st.booleans(),
)


@given(message=signals)
def test_signals_reach_consent_as_they_came(message: types_pb2.ConsentSignals) -> None:
    """Consent is the one to judge them, malformed ones too."""
    request = decide_from_pb(pb.DecideRequest(consent_signals=message))
    assert evaluate_query((), (), request.signals).signals == message
    assert not evaluate_query((), (), decide_from_pb(pb.DecideRequest()).signals).HasField("signals")


@pytest.mark.parametrize("name", ["gpc", "tc_string", "gpp", "usp", "jurisdiction"])
def test_a_signal_that_costs_a_batch_its_call_is_passed_on_malformed(name: str) -> None:
    """One that is too long stays too long, and what holds a NUL stays what no decoder takes."""
    for came, sent in (("C" * 20_000, "C" * SIGNAL_CHARACTERS_MAX), ("1\0", "1\N{REPLACEMENT CHARACTER}")):
        request = pb.DecideRequest()
        setattr(request.consent_signals, name, came)
        assert getattr(evaluate_query((), (), decide_from_pb(request).signals).signals, name) == sent


def test_what_a_visitor_brings_beside_signals_is_bounded_and_kept_out() -> None:
    """Of a text as much is read as is kept; an identity that can be nobody's is not passed on."""
    request = pb.DecideRequest(identities=[types_pb2.Identity(namespace="user_id", value="1")])
    for value in ("", "x" * 300, "a\0b"):
        request.identities.add(namespace="anonymous_id", value=value)
    request.context["agent"].string_value = "\0" + "x" * 1_500
    read = decide_from_pb(request)
    assert read.identities == (("user_id", "1"),)
    assert read.context == {"agent": "\N{REPLACEMENT CHARACTER}" + "x" * 1_023}


@given(message=signals)
def test_signals_are_no_part_of_what_a_retry_must_match(message: types_pb2.ConsentSignals) -> None:
    """Nor does anything that is kept hold a trace of them."""
    request = pb.DecideRequest(request_id="r", consent_signals=message)
    told = decide_from_pb(request)
    assert told.digest == decide_from_pb(pb.DecideRequest(request_id="r")).digest
    assert request.consent_signals == message
    strings = (text for text in (message.tc_string, message.gpp, message.usp) if text not in message.jurisdiction)
    assert not any(text in repr(told) for text in strings if len(text) > 6)


def test_what_consent_objects_to_and_why_is_taken_over() -> None:
    """By purpose; a verdict that no signal decided names none."""
    objected = consent_pb.PurposeVerdict(
        purpose="a", state=consent_pb.CONSENT_STATE_OBJECTED, signal="gpc", signal_reason="GLOBAL_PRIVACY_CONTROL"
    )
    denied = consent_pb.PurposeVerdict(
        purpose="b", state=consent_pb.CONSENT_STATE_DENIED, signal="tc_string", signal_reason="TOO_OLD"
    )
    granted = consent_pb.PurposeVerdict(
        purpose="c", allowed=True, state=consent_pb.CONSENT_STATE_GRANTED, signal="tc_string", signal_reason="CONSENTED"
    )
    plain = consent_pb.PurposeVerdict(purpose="d", allowed=True, state=consent_pb.CONSENT_STATE_GRANTED)
    consent = consent_from_pb(consent_pb.Evaluation(verdicts=[objected, denied, granted, plain]), "p1")
    assert (consent.allowed, consent.objected) == (frozenset("cd"), frozenset("a"))
    expected = {"ab": "GLOBAL_PRIVACY_CONTROL", "b": "TOO_OLD", "bd": "TOO_OLD", "c": "CONSENTED", "d": "", "": ""}
    for asked, reason in expected.items():
        assert consent.deciding(frozenset(asked)).reason == reason


def test_a_request_digest_covers_all_of_it() -> None:
    """Any change of a request changes its digest; the order of a map does not."""
    one, other = pb.DecideRequest(request_id="r"), pb.DecideRequest(request_id="r")
    for key in ("a", "b"):
        one.context[key].number_value = 1.0
    for key in ("b", "a"):
        other.context[key].number_value = 1.0
    assert digest_of(one) == digest_of(other)
    other.context["a"].number_value = 2.0
    assert digest_of(one) != digest_of(other)


def test_a_slate_and_a_fallback_are_told_apart() -> None:
    """What the policy aimed for is the slate, everything else is the fallback, never both."""
    record = decide(site())
    for reason, fallback, field in [
        (Reason.RANKED, FallbackReason.UNSPECIFIED, "slate"),
        (Reason.EXPLORED, FallbackReason.MODEL_UNAVAILABLE, "fallback"),
        (Reason.HOLDOUT, FallbackReason.UNSPECIFIED, "fallback"),
        (Reason.POPULAR, FallbackReason.NO_CONSENT, "fallback"),
    ]:
        choice = replace(record.choice, reason=reason, fallback_reason=fallback)
        answer = Answer("p", "d", choice, record.versions, False, 0, b"", True)
        (decision,) = answers_to_pb(Answers((answer,), 50, 1)).decisions
        assert decision.WhichOneof("answer") == field
        entries = getattr(decision, field).entries
        assert [entry.item_id for entry in entries] == list(choice.slate.item_ids)
        assert [entry.slot for entry in entries] == [0, 1, 2]


def chunk(
    rows: list[float], *, ids: list[str] | None = None, offsets: list[int] | None = None, last: bool = False
) -> Any:
    return features_service_pb2.GetItemColumnsResponse(
        columns_version="v", item_ids=ids or [], rows=np.array(rows, "<f4").tobytes(), offsets=offsets or [], last=last
    )


def test_item_columns_are_joined_from_their_chunks() -> None:
    """Rows of another width than the layout's are refused."""
    chunks = [chunk([0, 1, 2, 3], ids=["a", "b"]), chunk([4, 5], ids=["c"], last=True)]
    columns = item_columns_from_pb("f", 2, chunks)
    assert (columns.item_ids, columns.rows.tolist()) == (("a", "b", "c"), [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match="reshape"):
        item_columns_from_pb("f", 3, chunks)


def test_changed_columns_are_put_over_those_held() -> None:
    """The rest of a row stays; the snapshot that was held stays as it was for the decisions that run with it."""
    held = item_columns_from_pb("f", 2, [chunk([0, 1, 2, 3], ids=["a", "b"], last=True)])
    changed = item_columns_from_pb("f", 2, [chunk([7], offsets=[1]), chunk([8], offsets=[1], last=True)], held)
    assert (changed.item_ids, changed.rows.tolist()) == (("a", "b"), [[0, 7], [2, 8]])
    assert held.rows.tolist() == [[0, 1], [2, 3]]
    for misfit in ([chunk([7], offsets=[1], last=True)], [chunk([7, 8, 9], offsets=[1], last=True)]):
        with pytest.raises(ValueError, match="fit"):
            item_columns_from_pb("f", 2, misfit, held)
    with pytest.raises(ValueError, match="held"):
        item_columns_from_pb("f", 2, [chunk([7], offsets=[1], last=True)])


def test_purposes_and_vectors_of_others_do_not_leak_into_a_record() -> None:
    """A value that no allowed column reads is neither in the matrix nor in the logged vector."""
    compiled = site()
    permitted = compiled.layout.permitted(SUBJECT, frozenset())
    assert np.isnan(permitted.vector).all()
    assert compiled.layout.permitted(SUBJECT, frozenset({PROFILE})) is SUBJECT


SITE, LAYER, FEATURES = site_pb2.Site, site_pb2.Layer, feature_set_pb2.FeatureSet
LATER = {
    "feature_set.columns": (SITE(), FEATURES(columns=[feature_set_pb2.ModelColumn(name="sum")])),
    "site.placements": (SITE(placements=[site_pb2.Placement(layers=[LAYER(level=9)])]), FEATURES()),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("field", LATER)
def test_a_site_in_words_of_a_later_release_is_refused(field: str) -> None:
    """A replica that is not upgraded yet goes on with the site it has, and never guesses what a model reads."""
    declared, feature_set = LATER[field]
    with pytest.raises(ServiceError) as refused:
        compiled_from_bytes(declared.SerializeToString(), feature_set.SerializeToString())
    assert (refused.value.reason, refused.value.problems[0].field) == ("SITE_INVALID", field)
