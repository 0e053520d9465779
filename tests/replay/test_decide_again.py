"""A logged decision decides again to the identical slate, and one flipped bit anywhere is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from comity.decision.v1 import site_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.decision.domain.ladder import Inputs
from services.decision.domain.layout import Floats, Subject
from services.decision.domain.plan import CompiledSite
from services.decision.domain.record import DecisionRecord, Evidence
from services.decision.domain.replay import Pinned, decide_again
from services.decision.domain.site import Item
from services.decision.domain.vocabulary import Activation, FallbackReason, Origin, Reason, StageOutcome
from services.decision.wire.record import record_from_bytes, record_to_bytes
from services.decision.wire.site import item_from_bytes
from tests.unit.decision.world import (
    ITEMS,
    PLACEMENT,
    POLICY,
    SEED_KEY,
    SEED_KEY_ID,
    SUBJECT,
    decide,
    model,
    site,
    with_digest,
)

SITE = site(policy=replace(POLICY, eligibility="item.attributes.price < context.limit"))
CONTEXT = {"limit": 4.0, "hour": 20.0}
decision_ids = st.text("0123456789abcdef", min_size=32, max_size=32)


def pinned(record: DecisionRecord, compiled: CompiledSite = SITE, **changes: Any) -> Pinned:
    by_id: dict[str, Item] = {item.id: item for item in ITEMS}
    items = [by_id.get(item_id) for item_id in record.inputs.candidates.item_ids]
    return replace(Pinned(compiled, items, model, SEED_KEY, SEED_KEY_ID), **changes)


def ranked(decision_id: str = "cd" * 16) -> DecisionRecord:
    asked = ["item-5", "item-3", "nothing", "item-1", "item-0", "item-2"]
    return decide(SITE, decision_id=decision_id, asked=asked, context=CONTEXT, excluded=frozenset({"item-0"}))


@given(decision_id=decision_ids, bucket=st.sampled_from([0, 999, 1000, 9999]))
def test_every_decision_decides_again_identically(decision_id: str, bucket: int) -> None:
    """Ranked, explored and held out alike: same slate, scores, propensities, reasons."""
    record = decide(SITE, decision_id=decision_id, context=CONTEXT, bucket=bucket)
    assert decide_again(record, pinned(record)).differences == ()


@pytest.mark.parametrize(
    "outcomes",
    [
        {"allowed": frozenset()},
        {"identity": StageOutcome.UNAVAILABLE},
        {"consent": StageOutcome.LATE},
        {"consent": StageOutcome.REFUSED},
        {"features": StageOutcome.UNAVAILABLE},
        {"ranker": StageOutcome.LATE},
        {"late": True},
        {"log": StageOutcome.LATE},
        {"asked": ["nothing"]},
    ],
)
@pytest.mark.parametrize("popular", [True, False])
def test_every_fallback_decides_again_identically(outcomes: dict[str, Any], popular: bool) -> None:
    """The logged outcomes of the stages lead a replay to the same rung."""
    compiled = site(placement=replace(PLACEMENT, popular_without_consent=popular))
    record = decide(compiled, **outcomes)
    assert record.choice.fallback_reason is not FallbackReason.UNSPECIFIED
    assert decide_again(record, pinned(record, compiled)).differences == ()


@given(decision_id=decision_ids, bit=st.integers(0, 255))
def test_one_flipped_bit_in_the_seed_key_is_caught(decision_id: str, bit: int) -> None:
    """Also where the ranked slate is the same for both seeds: the coin is logged."""
    key = bytearray(SEED_KEY)
    key[bit // 8] ^= 1 << bit % 8
    record = ranked(decision_id)
    replayed = decide_again(record, pinned(record, seed_key=bytes(key)))
    assert any(difference.startswith("coin") for difference in replayed.differences)


@given(column=st.integers(0, 4), row=st.integers(0, 2), bit=st.integers(0, 31))
def test_one_flipped_bit_in_the_matrix_is_caught(column: int, row: int, bit: int) -> None:
    """Down to the last bit of a mantissa that no score would show."""
    record = ranked()
    assert record.inputs.matrix is not None
    changed = replace(record.inputs, matrix=flipped(record.inputs.matrix, row * 5 + column, bit))
    assert decide_again(replace(record, inputs=changed), pinned(record)).differences


@given(value=st.integers(0, 2), bit=st.integers(0, 31))
def test_one_flipped_bit_in_the_subject_vector_is_caught(value: int, bit: int) -> None:
    """By the digest, and where the value is a column of its own by the matrix as well."""
    record = ranked()
    subject = Subject(flipped(SUBJECT.vector, value, bit), SUBJECT.states)
    assert decide_again(replace(record, evidence=Evidence(subject)), pinned(record)).differences


@given(value=st.integers(0, 2), bit=st.integers(0, 31))
def test_a_flipped_feature_that_was_digested_again_is_caught_by_the_matrix(value: int, bit: int) -> None:
    """Someone who recomputes the digest still has to explain where the matrix comes from."""
    record = ranked()
    if value == 0:
        subject = Subject(flipped(SUBJECT.vector, value, bit), SUBJECT.states)
        forged = with_digest(replace(record, evidence=Evidence(subject)))
        assert any("visits" in difference for difference in decide_again(forged, pinned(record)).differences)


@given(slot=st.integers(0, 2), bit=st.integers(0, 31))
def test_one_flipped_bit_in_a_score_is_caught(slot: int, bit: int) -> None:
    """The pinned model scores the logged matrix again, bit for bit."""
    record = ranked()
    assert record.inputs.scores is not None
    changed = replace(record.inputs, scores=flipped(record.inputs.scores, slot, bit))
    differences = decide_again(replace(record, inputs=changed), pinned(record)).differences
    assert any(difference.startswith("inputs.scores") for difference in differences)


def test_another_model_is_caught() -> None:
    """A model with one changed weight gives other scores; one that is not kept cannot vouch for any."""
    record = ranked()

    def other(matrix: Floats) -> Floats:
        return np.nextafter(model(matrix), np.float32(9), dtype=np.float32)

    assert "inputs.scores" in decide_again(record, pinned(record, scorer=other)).differences[0]
    assert "versions.model" in decide_again(record, pinned(record, scorer=None)).differences[0]


CHANGES: list[tuple[str, Callable[[DecisionRecord], DecisionRecord]]] = [
    ("seed_key_id", lambda r: replace(r, seed_key_id="other")),
    ("versions.site", lambda r: replace(r, versions=replace(r.versions, site="other"))),
    ("versions.decision_policy", lambda r: replace(r, versions=replace(r.versions, decision_policy="x"))),
    ("placement_id", lambda r: replace(r, placement_id="other")),
    ("reason", lambda r: replace(r, choice=replace(r.choice, reason=Reason.HOLDOUT))),
    ("learnable", lambda r: replace(r, choice=replace(r.choice, learnable=False))),
    ("slate.item_ids", lambda r: with_slate(r, item_ids=[*r.choice.slate.item_ids[::-1]])),
    ("slate.propensities", lambda r: with_slate(r, propensities=[0.5, 0.5, 0.5])),
    ("slate.scores", lambda r: with_slate(r, scores=[0.0, 0.0, 0.0])),
    ("inputs.exclusions[5]", lambda r: with_exclusions(r, [1, 0, 4, 0, 2, 1])),
    ("inputs.digest", lambda r: with_inputs(r, slate_size=2)),
    ("fallback_reason", lambda r: with_inputs(r, late=True)),
    ("inputs.scores", lambda r: with_inputs(r, scores=None)),
    ("inputs.columns_count", lambda r: with_inputs(r, matrix=np.zeros((3, 4), np.float32), scores=None)),
]


@pytest.mark.parametrize(("field", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_change_to_the_record_is_named(field: str, change: Callable[[DecisionRecord], DecisionRecord]) -> None:
    """Each difference names the field."""
    record = ranked()
    changed = change(record)
    differences = decide_again(changed, pinned(changed)).differences
    assert any(difference.startswith(field) for difference in differences), differences


def test_items_that_the_pinned_rules_judge_otherwise_are_named() -> None:
    """Eligibility is checked again by the pinned rules and items."""
    record = ranked()
    items = [replace(ITEMS[0], retired=True)] * len(record.inputs.candidates.item_ids)
    differences = decide_again(record, pinned(record, items=items)).differences
    assert any("RETIRED" in difference for difference in differences)


def test_a_recorded_decision_replays_its_scores_and_keeps_its_slate() -> None:
    """A slate made elsewhere is not ours to draw again; its features and scores are."""
    record = decide(SITE, origin=Origin.RECORDED, context=CONTEXT)
    assert decide_again(record, pinned(record)).differences == ()
    assert record.inputs.scores is not None
    changed = replace(record, inputs=replace(record.inputs, scores=record.inputs.scores * 2))
    assert decide_again(changed, pinned(record)).differences


def flipped(values: Floats, index: int, bit: int) -> Floats:
    """The values with one bit changed."""
    bits = values.copy().view(np.uint32).reshape(-1)
    bits[index] ^= np.uint32(1 << bit)
    return bits.view(np.float32).reshape(values.shape)


def with_slate(record: DecisionRecord, **changes: Any) -> DecisionRecord:
    return replace(record, choice=replace(record.choice, slate=replace(record.choice.slate, **changes)))


def with_exclusions(record: DecisionRecord, exclusions: list[int]) -> DecisionRecord:
    candidates = replace(record.inputs.candidates, exclusions=np.array(exclusions, np.uint8))
    return with_inputs(record, candidates=candidates)


def with_inputs(record: DecisionRecord, **changes: Any) -> DecisionRecord:
    inputs: Inputs = replace(record.inputs, **changes)
    return replace(record, inputs=inputs)


@pytest.mark.parametrize("activation", [Activation.IMMEDIATE, Activation.DEFERRED])
def test_what_other_attempts_were_answered_is_no_difference(activation: Activation) -> None:
    """Learnable is taken away from an immediate decision beside which the default was answered, and from no other."""
    record = replace(ranked(), activation=activation, final=True, default_also_answered=True)
    assert decide_again(record, pinned(record)).differences == (
        ("learnable: logged True, again False",) if activation is Activation.IMMEDIATE else ()
    )
    told = replace(record, choice=replace(record.choice, learnable=activation is Activation.DEFERRED))
    assert decide_again(told, pinned(told)).differences == ()


def test_ids_that_are_refused_today_are_read_and_decide_again() -> None:
    """A log and a catalog of an earlier release may hold ids with line breaks and control characters."""
    stored = [
        site_pb2.Item(id=f"{item.id}\n\x1b[2J\u202e", numbers=item.numbers, variants=item.variants).SerializeToString()
        for item in ITEMS
    ]
    items = [item_from_bytes(one) for one in stored]
    record = decide(SITE, items=items, context=CONTEXT)
    read = record_from_bytes(record_to_bytes(record), record.member_id)
    assert list(read.inputs.candidates.item_ids) == [item.id for item in items]
    assert decide_again(read, pinned(read, items=items)).differences == ()
