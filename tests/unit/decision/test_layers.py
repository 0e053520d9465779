"""A placement uses as much of a person as its layers, the person's level and their consent all allow, and says so."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import ServiceError
from services.decision.domain.explain import explain
from services.decision.domain.layers import layer_of
from services.decision.domain.replay import Pinned, decide_again
from services.decision.domain.request import Answer
from services.decision.domain.site import Layer
from services.decision.domain.vocabulary import FallbackReason, Level, Reason
from services.decision.wire.record import record_from_bytes, record_to_bytes
from tests.unit.decision.fakes import Harness, request
from tests.unit.decision.world import (
    ITEMS,
    MEMBER,
    PLACEMENT,
    POLICY,
    PROFILE,
    SEED_KEY,
    SEED_KEY_ID,
    decide,
    model,
    site,
)

SESSION = "session_personalization"
LAYERED = replace(
    PLACEMENT,
    purposes=(SESSION, PROFILE),
    layers=(Layer(Level.ANONYMOUS, frozenset({SESSION})), Layer(Level.PSEUDONYMOUS, frozenset({PROFILE}))),
)
SITE = site(placement=LAYERED, policy=replace(POLICY, epsilon=0.0))
PLAN = SITE.plans[PLACEMENT.id]
# Of FEATURE_SET's columns those that the profile's purpose is for.
OF_PROFILE = [2, 3]


async def answer_of(harness: Harness, **changes: Any) -> Answer:
    """The only decision."""
    (answer,) = (await harness.decide(request(**changes))).decisions
    return answer


@pytest.mark.parametrize(
    ("level", "allowed", "used"),
    [
        (Level.KNOWN, {SESSION, PROFILE}, Level.PSEUDONYMOUS),
        (Level.PSEUDONYMOUS, {PROFILE}, Level.PSEUDONYMOUS),
        (Level.KNOWN, {SESSION}, Level.ANONYMOUS),
        (Level.ANONYMOUS, {SESSION, PROFILE}, Level.ANONYMOUS),
        (Level.ANONYMOUS, {PROFILE}, None),
        (Level.KNOWN, set(), None),
        (Level.UNSPECIFIED, {SESSION, PROFILE}, Level.ANONYMOUS),
    ],
)
def test_the_strongest_layer_that_level_and_consent_allow_is_used(
    level: Level, allowed: set[str], used: Level | None
) -> None:
    """Neither makes up for the other; where none is left there is no consent."""
    layer = layer_of(PLAN, level, frozenset(allowed))
    assert (layer.level if layer else None) == used


async def test_a_weaker_layer_reads_only_its_own_columns() -> None:
    """Whoever agreed to the visit alone is ranked without their profile: it enters neither the model nor the log."""
    harness = Harness(SITE)
    harness.consent.allowed = frozenset({SESSION})
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.layer) == (Reason.RANKED, Level.ANONYMOUS)
    record = await harness.logged(answer.decision_id)
    assert record.layer is Level.ANONYMOUS
    assert record.inputs.matrix is not None
    assert np.isnan(record.inputs.matrix[:, OF_PROFILE]).all()
    assert record.evidence.subject is not None
    assert np.isnan(record.evidence.subject.vector).all()
    harness.consent.allowed = frozenset({SESSION, PROFILE})
    full = await answer_of(harness, request_id="r-2")
    assert full.layer is Level.PSEUDONYMOUS
    matrix = (await harness.logged(full.decision_id)).inputs.matrix
    assert matrix is not None
    assert not np.isnan(matrix[:, OF_PROFILE]).any()


async def test_a_layer_reads_no_column_of_another_purpose_that_is_allowed() -> None:
    """What is allowed elsewhere does not widen a layer: a person known by a device alone has no profile here."""
    harness = Harness(SITE)
    harness.identity.person = replace(harness.identity.person, level=Level.ANONYMOUS)
    harness.consent.allowed = frozenset({SESSION, PROFILE})
    answer = await answer_of(harness)
    assert answer.layer is Level.ANONYMOUS
    matrix = (await harness.logged(answer.decision_id)).inputs.matrix
    assert matrix is not None
    assert np.isnan(matrix[:, OF_PROFILE]).all()


async def test_without_any_layer_the_answer_is_the_default() -> None:
    """Refused is refused: nothing of the person is used, and the answer says so."""
    harness = Harness(SITE)
    harness.consent.allowed = frozenset()
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.choice.fallback_reason) == (Reason.DEFAULT, FallbackReason.NO_CONSENT)
    assert answer.layer is Level.UNSPECIFIED
    assert (await harness.logged(answer.decision_id)).layer is Level.UNSPECIFIED


async def test_a_layer_without_purposes_ranks_for_everybody_where_it_is_declared() -> None:
    """It reads nothing that needs a purpose; where it is not declared, who refused gets the default."""
    bare = replace(LAYERED, layers=(Layer(Level.ANONYMOUS, frozenset()), *LAYERED.layers[1:]), purposes=(PROFILE,))
    harness = Harness(site(placement=bare, policy=replace(POLICY, epsilon=0.0)))
    harness.consent.allowed = frozenset()
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.layer) == (Reason.RANKED, Level.ANONYMOUS)
    matrix = (await harness.logged(answer.decision_id)).inputs.matrix
    assert matrix is not None
    assert np.isnan(matrix[:, OF_PROFILE]).all()


async def test_a_retry_after_a_revocation_does_not_show_what_a_stronger_layer_made() -> None:
    """The visit alone is still allowed, and the stored slate was made from the profile."""
    harness = Harness(SITE)
    harness.consent.allowed = frozenset({SESSION, PROFILE})
    first = await answer_of(harness)
    assert first.layer is Level.PSEUDONYMOUS
    assert (await answer_of(harness)).choice == first.choice
    harness.consent.allowed = frozenset({SESSION})
    again = await answer_of(harness)
    assert (again.choice.reason, again.choice.fallback_reason) == (Reason.DEFAULT, FallbackReason.NO_CONSENT)
    assert again.layer is Level.UNSPECIFIED


@given(
    level=st.sampled_from(list(Level)),
    allowed=st.frozensets(st.sampled_from([SESSION, PROFILE])),
    decision_id=st.text("0123456789abcdef", min_size=32, max_size=32),
)
def test_every_layer_decides_again_identically(level: Level, allowed: frozenset[str], decision_id: str) -> None:
    """Through the log and back, digest and all; a record that names another layer is caught."""
    made = decide(SITE, decision_id=decision_id, level=level, allowed=allowed)
    record = record_from_bytes(record_to_bytes(made), MEMBER)
    pinned = Pinned(SITE, list(ITEMS), model, SEED_KEY, SEED_KEY_ID)
    assert decide_again(record, pinned).differences == ()
    if record.inputs.matrix is not None:
        other = Level.KNOWN if record.layer is not Level.KNOWN else Level.ANONYMOUS
        (difference,) = decide_again(replace(record, layer=other), pinned).differences
        assert difference.startswith("consent.layer")


@pytest.mark.parametrize(
    ("level", "allowed", "said"),
    [
        (Level.KNOWN, {SESSION, PROFILE}, "PSEUDONYMOUS layer: profile_personalization allowed"),
        (Level.KNOWN, {SESSION}, "ANONYMOUS layer: .*; not PSEUDONYMOUS: profile_personalization not allowed"),
        (Level.ANONYMOUS, {SESSION, PROFILE}, "ANONYMOUS layer: .*; not PSEUDONYMOUS: the person is ANONYMOUS"),
        (
            Level.KNOWN,
            set(),
            "no layer .*not PSEUDONYMOUS: profile.* not allowed; not ANONYMOUS: session.* not allowed",
        ),
    ],
)
def test_an_explanation_says_which_layer_and_why_none_that_is_stronger(
    level: Level, allowed: set[str], said: str
) -> None:
    """In words, with the purposes that are missing."""
    record = decide(SITE, level=level, allowed=frozenset(allowed))
    (finding,) = [step.finding for step in explain(record, PLAN).steps if step.stage == "consent"]
    assert re.search(said, finding), finding


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        (
            (Layer(Level.PSEUDONYMOUS, frozenset({PROFILE})), Layer(Level.ANONYMOUS, frozenset({SESSION}))),
            "layers[1].level",
        ),
        ((Layer(Level.KNOWN, frozenset({PROFILE})), Layer(Level.KNOWN, frozenset({SESSION}))), "layers[1].level"),
        ((Layer(Level.UNSPECIFIED, frozenset({SESSION})),), "layers[0].level"),
        ((Layer(Level.ANONYMOUS, frozenset({"fame"})),), "layers[0].purposes"),
    ],
)
def test_layers_that_make_no_sense_are_refused(layers: tuple[Layer, ...], field: str) -> None:
    """Not rising, twice the same, weaker than ANONYMOUS, or with a purpose that the placement does not name."""
    with pytest.raises(ServiceError) as caught:
        site(placement=replace(LAYERED, layers=layers))
    assert caught.value.reason == "SITE_INVALID"
    assert [problem.field for problem in caught.value.problems] == [f"site.placements[0].{field}"]
