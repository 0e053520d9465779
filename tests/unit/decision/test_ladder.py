"""Every rung of the ladder answers for its own reason, says which, and is learned from only where that is right."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decision.domain.ladder import Candidates, Facts, Inputs, Kind, choose, rung_of
from services.decision.domain.rules import Verdict
from services.decision.domain.vocabulary import Exclusion, FallbackReason, Reason, StageOutcome
from tests.unit.decision.world import ITEMS, MEMBER, PLACEMENT, POLICY, catalog, decide, facts, site

OK, LATE, DEAD = StageOutcome.OK, StageOutcome.LATE, StageOutcome.UNAVAILABLE
SEED = b"0" * 32
DEFAULT = ["spring-sale", "gift-card"]


def inputs(**changes: Any) -> Inputs:
    """Four candidates, the third of them excluded, scored and of known popularity."""
    candidates = Candidates(
        item_ids=["a", "b", "c", "d"],
        variant_ids=["a1", "b1", "c1", "d1"],
        exclusions=np.array([0, 0, Exclusion.INELIGIBLE, 0], dtype=np.uint8),
    )
    if "exclusions" in changes:
        candidates = replace(candidates, exclusions=changes.pop("exclusions"))
    known = Inputs(
        candidates=candidates,
        slate_size=2,
        identity=OK,
        consent=OK,
        features=OK,
        ranker=OK,
        log=OK,
        scores=np.array([1.0, 3.0, 2.0], dtype=np.float32),
        popularity=np.array([2.0, np.nan, 7.0], dtype=np.float32),
    )
    return replace(known, **changes)


def plan_of(**placement: Any) -> Any:
    return site(placement=replace(PLACEMENT, **placement), policy=replace(POLICY, epsilon=0.0)).plans[PLACEMENT.id]


PLAN = plan_of()
POPULAR_PLAN = plan_of(popular_without_consent=True)


def test_the_best_scores_come_first() -> None:
    """Ranked: by score, excluded candidates never, and it may be learned from."""
    choice = choose(PLAN, facts(), inputs(), SEED)
    assert (choice.slate.item_ids, choice.slate.variant_ids) == (["b", "d"], ["b1", "d1"])
    assert (choice.slate.scores, choice.slate.propensities) == ([3.0, 2.0], [1.0, 1.0])
    assert (choice.reason, choice.fallback_reason, choice.learnable) == (Reason.RANKED, FallbackReason(0), True)


REFUSALS = [
    (facts(do_not_personalize=True), inputs(), FallbackReason.DO_NOT_PERSONALIZE),
    (facts(), inputs(identity=LATE, consent=StageOutcome.SKIPPED), FallbackReason.IDENTITY_UNAVAILABLE),
    (facts(), inputs(identity=DEAD), FallbackReason.IDENTITY_UNAVAILABLE),
    (facts(), inputs(consent=LATE), FallbackReason.CONSENT_UNAVAILABLE),
    (facts(allowed=frozenset()), inputs(consent=DEAD), FallbackReason.CONSENT_UNAVAILABLE),
    (facts(allowed=frozenset({"measurement"})), inputs(), FallbackReason.NO_CONSENT),
]


@pytest.mark.parametrize(("known", "given_inputs", "reason"), REFUSALS)
def test_without_consent_the_default_is_shown_and_says_why(
    known: Facts, given_inputs: Inputs, reason: FallbackReason
) -> None:
    """Consent fails closed: no answer is no consent."""
    choice = choose(PLAN, known, given_inputs, SEED)
    assert choice.slate.item_ids == DEFAULT
    assert (choice.reason, choice.fallback_reason, choice.learnable) == (Reason.DEFAULT, reason, False)


@pytest.mark.parametrize(("known", "given_inputs", "reason"), REFUSALS)
def test_without_consent_a_placement_may_show_what_is_popular(
    known: Facts, given_inputs: Inputs, reason: FallbackReason
) -> None:
    """Popular needs nothing about the person; where popularity is unknown too, the default answers."""
    choice = choose(POPULAR_PLAN, known, given_inputs, SEED)
    assert choice.slate.item_ids == ["d", "a"]
    assert (choice.reason, choice.fallback_reason, choice.learnable) == (Reason.POPULAR, reason, False)
    unknown = choose(POPULAR_PLAN, known, replace(given_inputs, popularity=None), SEED)
    assert (unknown.slate.item_ids, unknown.reason, unknown.fallback_reason) == (DEFAULT, Reason.DEFAULT, reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": LATE}, FallbackReason.FEATURES_UNAVAILABLE),
        ({"features": DEAD}, FallbackReason.FEATURES_UNAVAILABLE),
        ({"ranker": DEAD, "scores": None}, FallbackReason.MODEL_UNAVAILABLE),
        ({"ranker": LATE, "scores": None}, FallbackReason.MODEL_UNAVAILABLE),
    ],
)
def test_without_features_or_a_model_popular_answers(changes: dict[str, Any], reason: FallbackReason) -> None:
    """With consent, what cannot be ranked is answered by what is popular."""
    choice = choose(PLAN, facts(), inputs(**changes), SEED)
    assert (choice.slate.item_ids, choice.reason, choice.fallback_reason) == (["d", "a"], Reason.POPULAR, reason)
    assert not choice.learnable


@pytest.mark.parametrize(
    ("known", "changes", "reason", "fallback"),
    [
        (facts(holdout=True), {}, Reason.HOLDOUT, FallbackReason.UNSPECIFIED),
        (facts(audience=Verdict.NO), {}, Reason.DEFAULT, FallbackReason.UNSPECIFIED),
        (facts(audience=Verdict.ERROR), {}, Reason.ERROR, FallbackReason.UNSPECIFIED),
        (facts(), {"exclusions": np.ones(4, np.uint8)}, Reason.DEFAULT, FallbackReason.NO_ELIGIBLE_CANDIDATES),
        (facts(), {"late": True}, Reason.DEFAULT, FallbackReason.DEADLINE_EXCEEDED),
        (facts(), {"log": LATE}, Reason.DEFAULT, FallbackReason.LOG_UNAVAILABLE),
    ],
)
def test_the_default_answers_and_says_why(
    known: Facts, changes: dict[str, Any], reason: Reason, fallback: FallbackReason
) -> None:
    """Holdout, a missed audience, nothing eligible, too late, no log: the default, never learned from."""
    choice = choose(PLAN, known, inputs(**changes), SEED)
    assert (choice.slate.item_ids, choice.slate.propensities) == (DEFAULT, [1.0, 1.0])
    assert (choice.reason, choice.fallback_reason, choice.learnable) == (reason, fallback, False)


# What each stage is told as when it failed, whatever came of the others.
CAUSES = {
    "identity": FallbackReason.IDENTITY_UNAVAILABLE,
    "consent": FallbackReason.CONSENT_UNAVAILABLE,
    "features": FallbackReason.FEATURES_UNAVAILABLE,
    "ranker": FallbackReason.MODEL_UNAVAILABLE,
    "log": FallbackReason.LOG_UNAVAILABLE,
}


def test_the_sweep_knows_every_stage() -> None:
    """A new one says its own cause, too."""
    assert CAUSES.keys() == {field.name for field in fields(Inputs) if field.type is StageOutcome}


@pytest.mark.parametrize("too_short", [False, True])
@pytest.mark.parametrize("outcome", [LATE, DEAD, StageOutcome.REFUSED, StageOutcome.SKIPPED])
@pytest.mark.parametrize("stage", CAUSES)
def test_each_reason_says_its_own_cause(stage: str, outcome: StageOutcome, too_short: bool) -> None:
    """What had its time and did not answer is named; what never had its time is the budget's fault, and only that."""
    choice = choose(PLAN, facts(), inputs(**{stage: outcome}, budget_too_short=too_short), SEED)
    expected = CAUSES[stage]
    if outcome is LATE and too_short:
        expected = FallbackReason.DEADLINE_EXCEEDED
    if (stage, outcome) == ("consent", StageOutcome.REFUSED):
        expected = FallbackReason.NO_CONSENT
    assert choice.fallback_reason is expected


def test_a_disabled_placement_is_always_the_default() -> None:
    """The kill switch stands before everything else."""
    choice = choose(plan_of(disabled=True), facts(do_not_personalize=True), inputs(late=True), SEED)
    assert (choice.reason, choice.fallback_reason) == (Reason.DISABLED, FallbackReason.POLICY_DISABLED)


def test_the_holdout_is_asked_for_consent_too() -> None:
    """Both arms of the comparison consist of people who consented: without consent nobody is HOLDOUT."""
    choice = choose(PLAN, facts(holdout=True, allowed=frozenset()), inputs(), SEED)
    assert (choice.reason, choice.fallback_reason) == (Reason.DEFAULT, FallbackReason.NO_CONSENT)


def test_a_default_that_is_declared_empty_says_why_it_answers() -> None:
    """As it always did: nothing of it was left out, and old records of such placements go on replaying."""
    choice = choose(plan_of(default_slate=()), facts(allowed=frozenset()), inputs(), SEED)
    assert (choice.slate.item_ids, choice.fallback_reason) == ([], FallbackReason.NO_CONSENT)


def test_the_default_is_cut_to_the_size_asked_for() -> None:
    """A caller that asks for one entry gets one."""
    assert choose(PLAN, facts(holdout=True), inputs(slate_size=1), SEED).slate.item_ids == DEFAULT[:1]


@given(
    outcomes=st.fixed_dictionaries({name: st.sampled_from(StageOutcome) for name in ("identity", "consent", "log")}),
    known=st.builds(
        facts,
        do_not_personalize=st.booleans(),
        allowed=st.sampled_from([frozenset(), frozenset({"profile_personalization"})]),
        holdout=st.booleans(),
        audience=st.sampled_from(Verdict),
    ),
    late=st.booleans(),
)
def test_the_profile_is_used_only_when_everything_says_so(
    outcomes: dict[str, StageOutcome], known: Facts, late: bool
) -> None:
    """The ranked rung needs identity, consent and time; everything else answers with another rung and never nothing."""
    given_inputs = inputs(**outcomes, late=late)
    rung, choice = rung_of(PLAN, known, given_inputs), choose(PLAN, known, given_inputs, SEED)
    assert choice.slate.item_ids
    assert choice.learnable is (rung.kind is Kind.RANKED)
    if rung.kind is Kind.RANKED:
        assert known.allowed >= PLAN.purposes
        assert (known.do_not_personalize, known.holdout, late) == (False, False, False)
        assert (outcomes["identity"], outcomes["consent"]) == (OK, OK)


def test_a_column_ranks_with_unknown_values_last() -> None:
    """A ranker may be one column, descending; an item without a value comes last and its score is 0."""
    compiled = site(policy=replace(POLICY, model="", column="clicks", epsilon=0.0))
    items = (*ITEMS[:2], replace(ITEMS[2], id="new"))
    record = decide(compiled, items=items)
    assert record.choice.reason is Reason.RANKED
    assert record.choice.slate.scores == sorted(record.choice.slate.scores, reverse=True)
    assert catalog(items).rows["new"] == 2
    assert record.subject_id == MEMBER
