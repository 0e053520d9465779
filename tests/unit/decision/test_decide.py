"""Decide answers whatever happens around it, says why, and the log holds exactly what was answered."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN
from services.chassis.exposure_token import verify
from services.chassis.sealing import DataKey
from services.decision.domain.plan import compile_site
from services.decision.domain.record import SEMANTICS, Said
from services.decision.domain.request import NOBODY, Answer, Ask, Person, Profile
from services.decision.domain.serving import Serving
from services.decision.domain.site import Site
from services.decision.domain.vocabulary import Exclusion, FallbackReason, Reason, StageOutcome
from services.decision.handlers.stages import PREFETCHED_BY
from services.decision.wire.record import record_from_pb, record_to_pb
from tests.unit.decision.fakes import DEAD, KEYS, Harness, Port, person, request
from tests.unit.decision.world import FEATURE_SET, ITEMS, MEMBER, NOW, PLACEMENT, POLICY, PROFILE, site
from tests.virtual_time import in_virtual_time

DEFAULT = ["spring-sale", "gift-card"]
CERTAIN = site(policy=replace(POLICY, epsilon=0.0))


async def answer_of(harness: Harness, **changes: object) -> Answer:
    answers = await harness.decide(request(**changes))  # type: ignore[arg-type]
    assert len(answers.decisions) == 1
    return answers.decisions[0]


async def test_a_known_person_who_agreed_gets_a_ranking() -> None:
    """The answer carries versions, a token that proves it, and is what the log holds."""
    harness = Harness(CERTAIN)
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.learnable) == (Reason.RANKED, True)
    assert answer.choice.slate.scores == sorted(answer.choice.slate.scores, reverse=True)
    assert (answer.versions.model, answer.versions.consent_policy) == ("ranker@1", "consent-1")
    claim = verify(KEYS.token, answer.exposure_token, NOW)
    assert (claim.decision_id, claim.member_id) == (answer.decision_id, MEMBER)
    record = await harness.logged(answer.decision_id)
    assert record.choice.slate.item_ids == answer.choice.slate.item_ids
    assert record.consent_version == 7


@pytest.mark.parametrize("how", ["dead", "slow", "broken"])
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("identity", FallbackReason.IDENTITY_UNAVAILABLE),
        ("consent", FallbackReason.CONSENT_UNAVAILABLE),
        ("features", FallbackReason.FEATURES_UNAVAILABLE),
        ("log", FallbackReason.LOG_UNAVAILABLE),
        ("keys", FallbackReason.IDENTITY_UNAVAILABLE),
    ],
)
@in_virtual_time
async def test_with_a_service_away_decide_answers_and_says_which(part: str, how: str, reason: FallbackReason) -> None:
    """Dead, slow or answering nonsense: the ladder answers inside the budget."""
    harness = Harness(CERTAIN)
    port: Port = getattr(harness, part)
    port.hangs, port.fails = how == "slow", DEAD if how == "dead" else RuntimeError("bug")
    answer = await answer_of(harness)
    assert answer.choice.fallback_reason is reason
    assert answer.choice.slate.item_ids
    assert not answer.learnable
    in_log = part not in ("log", "keys")
    assert bool(answer.exposure_token) is in_log
    harness.log.hangs = False
    harness.log.fails = None


@pytest.mark.parametrize("part", ["identity", "consent", "features", "log", "keys"])
@in_virtual_time
async def test_a_service_that_is_slow_and_in_time_costs_nothing(part: str) -> None:
    """Each dependency may take a part of the budget; the person's ranking is answered and proven all the same."""
    harness = Harness(CERTAIN)
    port: Port = getattr(harness, part)
    port.takes_s = 0.1 * 60.0
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.learnable) == (Reason.RANKED, True)
    assert answer.exposure_token


@in_virtual_time
async def test_features_are_told_until_when_they_are_waited_for() -> None:
    """They divide their time among cache and database: they must not believe in the whole of the caller's."""
    harness, told = Harness(CERTAIN), []

    async def read(feature_set_version: str, person: Person, as_of: datetime) -> Profile:
        told.append(remaining_s())
        raise DEAD

    harness.features.read = read  # type: ignore[method-assign]
    with deadline_scope(600.0):
        await answer_of(harness)
    assert told[0] is not None
    assert told[0] <= PREFETCHED_BY * 60.0


@pytest.mark.parametrize(("scores", "fails"), [(np.array([np.nan]), False), (np.array([np.inf]), False), (None, True)])
async def test_a_broken_model_costs_the_ranking_and_not_the_answer(
    scores: np.ndarray[tuple[int], np.dtype[np.float32]] | None, fails: bool
) -> None:
    """Scores that are no numbers and models that raise: popular answers."""
    harness = Harness(CERTAIN)
    harness.ranker.scores, harness.ranker.fails = scores, fails
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.choice.fallback_reason) == (Reason.POPULAR, FallbackReason.MODEL_UNAVAILABLE)
    assert not answer.learnable


async def test_a_dear_model_is_scored_in_a_thread() -> None:
    """Above the inline cost the loop is not blocked, and the answer is the same."""
    cheap, dear = Harness(CERTAIN), Harness(CERTAIN)
    dear.ranker.cost = 1.0
    assert (await answer_of(dear)).choice.slate == (await answer_of(cheap)).choice.slate


async def test_before_there_is_a_model_popular_is_explored_and_learned_from() -> None:
    """The first model must be trained on something: the matrix is logged, and the propensities are true."""
    harness = Harness()
    harness.serving = harness.serve(site(policy=replace(POLICY, epsilon=1.0)), with_model=False)
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.choice.fallback_reason) == (Reason.EXPLORED, FallbackReason.MODEL_UNAVAILABLE)
    assert answer.choice.slate.propensities == [1 / len(ITEMS)] * 3
    assert answer.learnable
    record = await harness.logged(answer.decision_id)
    assert record.inputs.matrix is not None
    assert record.inputs.ranker is StageOutcome.SKIPPED


async def test_before_there_are_item_columns_the_default_answers() -> None:
    """Without item rows nothing can be ranked, and nothing is popular."""
    harness = Harness()
    harness.serving = harness.serve(CERTAIN, with_columns=False)
    answer = await answer_of(harness)
    assert (answer.choice.slate.item_ids, answer.choice.fallback_reason) == (
        DEFAULT,
        FallbackReason.FEATURES_UNAVAILABLE,
    )


async def test_without_consent_nothing_of_the_profile_is_kept() -> None:
    """The record holds no vector, no matrix and no scores."""
    harness = Harness(CERTAIN)
    harness.consent.allowed = frozenset()
    answer = await answer_of(harness)
    assert (answer.choice.slate.item_ids, answer.choice.fallback_reason) == (DEFAULT, FallbackReason.NO_CONSENT)
    record = await harness.logged(answer.decision_id)
    assert record.evidence.subject is None
    assert (record.inputs.matrix, record.inputs.scores) == (None, None)


async def test_what_a_signal_means_is_consents_to_say() -> None:
    """The objection is consent's answer; the record says which signal it was, and keeps nothing of the profile."""
    harness = Harness(CERTAIN)
    answer = await answer_of(harness, gpc="1")
    assert answer.choice.fallback_reason is FallbackReason.DO_NOT_PERSONALIZE
    record = await harness.logged(answer.decision_id)
    assert (record.do_not_personalize, record.said) == (True, Said("gpc", "GLOBAL_PRIVACY_CONTROL"))
    assert (record.evidence.subject, record.inputs.matrix) == (None, None)
    assert (await answer_of(harness, gpc="0", request_id="r-2")).choice.reason is Reason.RANKED


async def test_an_objection_in_the_ledger_is_told_as_one() -> None:
    """Only where it is why the purpose is missing; anything else that is missing is no consent."""
    harness = Harness(CERTAIN)
    harness.consent.allowed, harness.consent.objected = frozenset(), frozenset({PROFILE})
    objected = await answer_of(harness)
    assert objected.choice.fallback_reason is FallbackReason.DO_NOT_PERSONALIZE
    assert (await harness.logged(objected.decision_id)).said == Said()
    harness.consent.objected = frozenset({"something else"})
    assert (await answer_of(harness, request_id="r-2")).choice.fallback_reason is FallbackReason.NO_CONSENT


async def test_a_retry_with_an_objection_gets_the_default() -> None:
    """The signals of the retry are judged, not those of the first call; the decision in the log stays what it was."""
    harness = Harness(CERTAIN)
    first = await answer_of(harness)
    assert first.choice.reason is Reason.RANKED
    again = await answer_of(harness, gpc="1")
    assert (again.decision_id, again.choice.slate.item_ids) == (first.decision_id, DEFAULT)
    assert again.choice.fallback_reason is FallbackReason.DO_NOT_PERSONALIZE
    assert not again.exposure_token
    assert (await harness.logged(first.decision_id)).choice.reason is Reason.RANKED
    assert (await answer_of(harness)).choice.slate == first.choice.slate


async def test_what_signals_refuse_of_the_exposure_is_logged_with_the_decision() -> None:
    """An immediate decision is an exposure, recorded elsewhere: consent is asked while the signals are there."""
    counts = site(policy=replace(POLICY, epsilon=0.0), exposure_purposes=frozenset({"measurement"}))
    harness = Harness(counts)
    objected = await harness.logged((await answer_of(harness, gpc="1")).decision_id)
    assert objected.refused_by_signal == {"measurement": "gpc", PROFILE: "gpc"}
    bare = await harness.logged((await answer_of(harness, request_id="r-2")).decision_id)
    assert bare.refused_by_signal == {}
    harness.consent.fails = DEAD
    unread = await harness.logged((await answer_of(harness, request_id="r-3", gpc="1")).decision_id)
    assert unread.refused_by_signal == {"measurement": "unread"}
    assert record_from_pb(record_to_pb(unread), unread.member_id).refused_by_signal == unread.refused_by_signal


@in_virtual_time
async def test_a_new_person_is_served_although_the_key_takes_longer_than_a_decide() -> None:
    """The first Decide leaves without it, and it comes all the same: the next one does not begin again."""
    harness = Harness(CERTAIN)
    read, begun = harness.keys.keys, list[Sequence[str]]()

    async def slow(member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        begun.append(member_ids)
        await asyncio.sleep(2 * 60.0)
        return await read(member_ids, mint=mint)

    harness.keys.keys = slow  # type: ignore[method-assign]
    assert (await answer_of(harness)).choice.fallback_reason is not FallbackReason.UNSPECIFIED
    await asyncio.sleep(2 * 60.0)
    assert (await answer_of(harness, request_id="r-2")).choice.reason is Reason.RANKED
    assert begun == [(MEMBER,)]


async def test_the_holdout_gets_the_default() -> None:
    """The bucket decides, and the answer says so."""
    harness = Harness(CERTAIN)
    harness.identity.person = person(harness, 999)
    answer = await answer_of(harness)
    assert (answer.choice.slate.item_ids, answer.choice.reason, answer.holdout) == (DEFAULT, Reason.HOLDOUT, True)


async def test_a_vector_of_another_width_is_not_used() -> None:
    """A feature set that is being swapped must not shift columns."""
    harness = Harness(CERTAIN)
    harness.features.subject = replace(harness.features.subject, vector=np.zeros(2, np.float32))
    assert (await answer_of(harness)).choice.fallback_reason is FallbackReason.FEATURES_UNAVAILABLE


async def test_an_answer_that_is_not_ready_in_time_is_the_default() -> None:
    """The emit check counts from the invocation; the log is told what was shown instead."""
    harness = Harness(CERTAIN)
    with deadline_scope(0.003):
        answer = await answer_of(harness)
    assert answer.choice.slate.item_ids == DEFAULT
    assert not answer.learnable
    assert answer.choice.fallback_reason is FallbackReason.DEADLINE_EXCEEDED
    assert not answer.exposure_token


@pytest.mark.parametrize("part", ["identity", "consent", "features", "keys", "log"])
@pytest.mark.parametrize("budget_ms", [1, 2, 5, 8, 12])
@in_virtual_time
async def test_a_budget_that_is_too_short_is_told_as_one(budget_ms: int, part: str) -> None:
    """Operators must not look for a broken service, or log, where a caller gave it no time; a longer one names it."""
    clock = asyncio.get_running_loop().time
    for allowed_s, is_short in ((budget_ms / 1000, True), (1.0, False)):
        harness = Harness(CERTAIN)
        getattr(harness, part).hangs = True
        with deadline_scope(allowed_s, clock):
            answer = await answer_of(harness)
        assert (answer.choice.fallback_reason is FallbackReason.DEADLINE_EXCEEDED) is is_short
        if part != "keys":  # what others wait for too goes on, and here for ever
            getattr(harness, part).hangs = False
            await asyncio.gather(*harness.corrections._pending)
            assert (await harness.logged(answer.decision_id)).choice == answer.choice


@in_virtual_time
async def test_a_late_commit_is_corrected_in_the_log() -> None:
    """The slate goes into the log after the default was answered: the log's last word is the default."""
    harness = Harness(CERTAIN)
    harness.log.hangs = True
    answer = await answer_of(harness)
    harness.log.hangs = False
    await harness.log.add(*harness.log.held_back[0])
    await harness.corrections.drain()
    record = await harness.logged(answer.decision_id)
    assert record.choice.slate.item_ids == DEFAULT
    assert record.choice.fallback_reason is FallbackReason.LOG_UNAVAILABLE
    assert (record.inputs.log, record.choice.learnable) == (StageOutcome.LATE, False)


async def test_a_retry_gives_the_same_decision() -> None:
    """The same request again: the same slate, token, layer and all; the log makes it final, once."""
    harness = Harness()
    first, again = await answer_of(harness), await answer_of(harness)
    assert await answer_of(harness) == again == first
    assert len(await harness.log.store.read_stream(first.decision_id)) == 2
    assert (await harness.logged(first.decision_id)).final


async def test_a_first_attempt_costs_one_append() -> None:
    """What nobody else asks for is not confirmed, and not read again."""
    harness = Harness()
    await answer_of(harness)
    assert harness.log.calls == 1


async def test_a_retry_reads_consent_again() -> None:
    """Revoked between the two calls: the stored slate is not shown any more, and not proven either."""
    harness = Harness()
    await answer_of(harness)
    harness.consent.allowed = frozenset()
    again = await answer_of(harness)
    assert (again.choice.slate.item_ids, again.choice.fallback_reason) == (DEFAULT, FallbackReason.NO_CONSENT)
    assert (again.learnable, again.exposure_token) == (False, b"")


async def test_a_retry_of_a_fallback_keeps_it() -> None:
    """A default that was answered stays the answer, also when consent came since."""
    harness = Harness(CERTAIN)
    harness.consent.allowed = frozenset()
    first = await answer_of(harness)
    harness.consent.allowed = frozenset(CERTAIN.plans[PLACEMENT.id].purposes)
    assert await answer_of(harness) == first


async def test_a_request_id_used_for_another_request_is_refused() -> None:
    """Two requests must not share decisions."""
    harness = Harness()
    await answer_of(harness)
    with pytest.raises(ServiceError) as caught:
        await answer_of(harness, digest=b"e" * 32)
    assert (caught.value.kind, caught.value.reason) == (Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def two_placements() -> Serving:
    side = replace(PLACEMENT, id="side")
    declared = Site("shop", "site-1", 0.1, (PLACEMENT, side), (replace(POLICY, epsilon=0.0),), FEATURE_SET.version)
    return Harness(compile_site(declared, FEATURE_SET)).serving


async def test_no_item_is_shown_twice_on_a_page() -> None:
    """What an earlier placement shows is excluded from the later ones, and the exclusion says so."""
    harness = Harness()
    harness.serving = two_placements()
    answers = (await harness.decide(request(Ask("home_hero"), Ask("side")))).decisions
    shown = [item for answer in answers for item in answer.choice.slate.item_ids]
    assert len(set(shown)) == len(ITEMS)
    second = await harness.logged(answers[1].decision_id)
    assert (second.inputs.candidates.exclusions == Exclusion.SHOWN_ELSEWHERE).sum() == 3
    assert [answer.placement_id for answer in answers] == ["home_hero", "side"]


async def test_candidates_and_slate_size_are_the_callers() -> None:
    """Only what was asked for is considered, unknown items are named as such."""
    harness = Harness(CERTAIN)
    ask = Ask(PLACEMENT.id, ["item-1", "nothing", "item-4"], 1, frozenset({"item-1"}))
    answer = (await harness.decide(request(ask))).decisions[0]
    assert answer.choice.slate.item_ids == ["item-4"]
    record = await harness.logged(answer.decision_id)
    assert record.inputs.candidates.exclusions.tolist() == [
        Exclusion.EXCLUDED_BY_CALLER,
        Exclusion.UNKNOWN_ITEM,
        Exclusion.NONE,
    ]


@pytest.mark.parametrize(
    ("asks", "field", "said"),
    [
        ([Ask("nowhere")], "placements[0].placement_id", "home_hero"),
        ([Ask(PLACEMENT.id), Ask(PLACEMENT.id)], "placements[1].placement_id", "twice"),
        ([Ask(PLACEMENT.id, ["a", "a"])], "placements[0].candidate_ids", "twice"),
    ],
)
async def test_a_request_that_cannot_be_answered_names_the_field(asks: list[Ask], field: str, said: str) -> None:
    """Typed errors say what is wrong and how to mend it."""
    with pytest.raises(ServiceError) as caught:
        await Harness().decide(request(*asks))
    assert caught.value.kind is Kind.INVALID
    assert caught.value.problems[0].field == field
    assert said in caught.value.problems[0].problem


async def test_identities_that_identity_refuses_are_the_callers_to_mend() -> None:
    """Two different user ids are no outage."""
    harness = Harness()
    harness.identity.fails = ServiceError(Kind.INVALID, "IDENTITIES_REFUSED", "identities: two user ids")
    with pytest.raises(ServiceError, match="two user ids"):
        await harness.decide(request())


@pytest.mark.parametrize("reason", sorted(NOBODY))
async def test_identities_that_are_nobodys_get_the_default(reason: str) -> None:
    """What a visitor brings raises nothing: they are nobody, who has agreed to nothing, and the record is nobody's."""
    harness = Harness(CERTAIN)
    harness.identity.fails = ServiceError(Kind.INVALID, reason, "identities: name nobody")
    answer = await answer_of(harness)
    assert (answer.choice.reason, answer.choice.fallback_reason) == (Reason.DEFAULT, FallbackReason.NO_CONSENT)
    record = await harness.logged(answer.decision_id)
    assert (record.subject_id, record.member_id) == ("", "")


async def test_before_a_site_was_applied_decide_says_so() -> None:
    """No site, no defaults: the caller's own default has to answer."""
    harness = Harness()
    harness.serving = Serving()
    with pytest.raises(ServiceError) as caught:
        await harness.decide(request())
    assert caught.value.reason == "SITE_NOT_APPLIED"


async def test_without_identity_the_record_is_nobodys() -> None:
    """Nothing personal is in it, so nothing is sealed; it replays like any other."""
    harness = Harness(CERTAIN)
    harness.identity.fails = DEAD
    answer = await answer_of(harness)
    record = await harness.logged(answer.decision_id)
    assert (record.subject_id, record.member_id) == ("", "")
    assert harness.keys.calls == 0


async def test_a_cancelled_decide_leaves_nothing_running() -> None:
    """A caller that hangs up takes its questions with it."""
    harness = Harness(CERTAIN)
    harness.consent.hangs = harness.features.hangs = True
    task = asyncio.create_task(harness.decide(request()))
    await harness.consent.asked.wait()
    await harness.features.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_whoever_may_not_be_recognized_is_nobody() -> None:
    """A person whom a fingerprint recognized is ranked with its purpose, and is nobody without: also in the log."""
    harness = Harness(CERTAIN)
    recognition = frozenset({"device_recognition"})
    harness.identity.person = replace(harness.identity.person, required_purposes=recognition)
    refused = await answer_of(harness)
    assert (refused.choice.reason, refused.choice.fallback_reason) == (Reason.DEFAULT, FallbackReason.NO_CONSENT)
    record = await harness.logged(refused.decision_id)
    assert (record.member_id, record.subject_id, record.allowed_purposes) == ("", "", ())
    assert record.inputs.consent is StageOutcome.REFUSED
    harness.consent.allowed |= recognition
    allowed = await answer_of(harness, request_id="r-2")
    assert allowed.choice.reason is Reason.RANKED
    assert (await harness.logged(allowed.decision_id)).member_id == MEMBER


@pytest.mark.parametrize("away", ["consent", "gpc"])
async def test_nobody_is_recognized_without_an_answer(away: str) -> None:
    """Consent that does not answer, or is not asked, recognizes nobody either."""
    harness = Harness(CERTAIN)
    harness.identity.person = replace(harness.identity.person, required_purposes=frozenset({"device_recognition"}))
    harness.consent.fails = DEAD if away == "consent" else None
    answer = await answer_of(harness, gpc=away == "gpc")
    assert answer.choice.reason is Reason.DEFAULT
    assert (await harness.logged(answer.decision_id)).member_id == ""


async def test_the_template_that_asked_is_kept_and_told() -> None:
    """And by which rules the code decided, which nobody tells it."""
    harness = Harness(CERTAIN)
    answers = await harness.decide(replace(request(), template_version="home@7"))
    answer = answers.decisions[0]
    assert (answer.versions.template, answer.versions.semantics) == ("home@7", SEMANTICS)
    assert (await harness.logged(answer.decision_id)).versions == answer.versions


@pytest.mark.parametrize("consent", [frozenset({PROFILE}), frozenset[str]()], ids=["ranked", "refused"])
async def test_a_preview_shows_what_decide_would_and_records_nothing(consent: frozenset[str]) -> None:
    """No decision, no token that makes it an exposure, nothing to learn from, and no data key for whoever has none."""
    harness = Harness()
    harness.consent.allowed = consent
    (preview,) = (await harness.decide.preview(request())).decisions
    assert (preview.decision_id, preview.exposure_token, preview.learnable) == ("", b"", False)
    assert await harness.log.store.head() == ORIGIN
    assert harness.keys.calls == 0
    answer = await answer_of(harness)
    assert (preview.choice, preview.layer, preview.versions) == (answer.choice, answer.layer, answer.versions)
