"""Decide: a slate or the declared fallback for each placement; never nothing, never late, never against consent."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from prometheus_client import Counter

from services.chassis import exposure_token, tracing
from services.chassis.clock import Clock
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.events import LogPosition
from services.chassis.gather import Load
from services.chassis.ids import uuid7
from services.decision.domain.admission import Admission, Allowance
from services.decision.domain.attempts import Logged, is_answerable, made_final
from services.decision.domain.ladder import Choice, choose, rung_of
from services.decision.domain.layers import still_covers
from services.decision.domain.plan import CompiledSite, Plan
from services.decision.domain.record import DecisionRecord
from services.decision.domain.request import Answer, Answers, Ask, DecideRequest, Signals
from services.decision.domain.serving import Serving
from services.decision.domain.vocabulary import FallbackReason, Level, Reason, StageOutcome
from services.decision.handlers.corrections import Corrections
from services.decision.handlers.draft import Call, Draft, Drafting, Keys, choose_overloaded, versions_of
from services.decision.handlers.falling_back import FallingBack
from services.decision.handlers.people import People
from services.decision.handlers.ports import DecisionLog
from services.decision.handlers.stages import RECORDED_BY, USUAL_S, Budget, Ended, within
from services.decision.metrics import DECISIONS

# Of a request, within a budget: the decisions as drafted, and their answers.
Work = Callable[[DecideRequest, Budget], Awaitable[tuple[list[Draft], list[Answer]]]]

_ENDED_WELL: Ended[Any] = Ended(StageOutcome.OK)


class Decide:
    """The use case.

    Args:
        serving: gives what to decide with; asked once a call, so that a call sees one state throughout.
        budget_s_max: the server's own ceiling.
    """

    def __init__(
        self,
        *,
        serving: Callable[[], Serving],
        people: People,
        drafting: Drafting,
        log: DecisionLog,
        corrections: Corrections,
        keys: Keys,
        load: Load,
        clock: Clock,
        budget_s_max: float,
    ) -> None:
        self._serving = serving
        self._people = people
        self._drafting = drafting
        self._log = log
        self._corrections = corrections
        self._keys = keys
        self._load = load
        self._clock = clock
        self._budget_s_max = budget_s_max
        self._falling_back = FallingBack()
        self._admission = Admission()
        self._allowance = Allowance()

    async def __call__(self, request: DecideRequest, caller: str = "") -> Answers:
        """The answers, within the budget.

        Args:
            caller: whom the call is for, of those that what can be done at once is shared among.

        Raises:
            ServiceError: INVALID for what only the caller can mend; ALREADY_EXISTS (REQUEST_ID_REUSED);
                FAILED_PRECONDITION (SITE_NOT_APPLIED); EXHAUSTED (OVERLOADED) where there is too much to do even for
                answers that are.
        """
        answers = await self._admit(request, caller, self._decide)
        _tell(answers.decisions, self._falling_back)
        return answers

    async def preview(self, request: DecideRequest, caller: str = "") -> Answers:
        """What would be answered now; nothing is recorded, counted or minted, and the answers prove nothing.

        Raises:
            ServiceError: as of a call, but REQUEST_ID_REUSED.
        """
        return await self._admit(request, caller, self._show)

    async def _admit(self, request: DecideRequest, caller: str, work: Work) -> Answers:
        """What *work* answers, or the cheapest answer where it would not be ready in time."""
        budget = Budget.begin(self._budget_s_max)
        seat = self._admission.admit(caller, budget.seconds)
        if seat is None:
            return self._overloaded(request, budget)
        took_s = None
        try:
            with self._load.active():
                drafts, answers = await work(request, budget)
            took_s = _took_s(drafts, budget)
        finally:
            self._admission.leave(seat, took_s)
        return _answers(answers, budget)

    async def _decide(self, request: DecideRequest, budget: Budget) -> tuple[list[Draft], list[Answer]]:
        call, drafts = await self._draft(request, budget, recorded=True)
        if len(drafts) == 1:
            answers = [await self._conclude(drafts[0], call)]
        else:
            answers = list(await asyncio.gather(*(self._conclude(draft, call) for draft in drafts)))
        return drafts, answers

    async def _show(self, request: DecideRequest, budget: Budget) -> tuple[list[Draft], list[Answer]]:
        _, drafts = await self._draft(request, budget, recorded=False)
        shown = [(draft.record, self._answer(draft.record, draft.record.choice, in_log=False)) for draft in drafts]
        return drafts, [replace(answer, decision_id="", layer=record.layer) for record, answer in shown]

    def _overloaded(self, request: DecideRequest, budget: Budget) -> Answers:
        """The answers where there is too much to do: they are not logged, which would be more to do.

        So they have no decision_id: the log will never know one.
        """
        wait_s = self._allowance.wait_s(budget.began_s)
        if wait_s:
            message = "decision has more to do than it can, and answered others; show your default, and ask less often"
            raise ServiceError(Kind.EXHAUSTED, "OVERLOADED", message, retry_after_s=wait_s)
        try:
            serving = self._serving()
            site, plans = admit(serving, request)
            answers: list[Answer] = []
            shown: set[str] = set()
            for ask, plan in zip(request.asks, plans, strict=True):
                choice = choose_overloaded(serving, request, ask, plan, shown)
                shown.update(choice.slate.item_ids)
                answers.append(
                    Answer(
                        placement_id=ask.placement_id,
                        decision_id="",
                        choice=choice,
                        versions=versions_of(serving, site, plan, None, "", request.template_version),
                        holdout=False,
                        holdout_bucket=0,
                        exposure_token=b"",
                        learnable=False,
                    )
                )
        finally:
            self._allowance.spend(budget.spent_s())
        return _answers(answers, budget)

    async def _draft(self, request: DecideRequest, budget: Budget, *, recorded: bool) -> tuple[Call, list[Draft]]:
        """The decisions as they are before they are recorded, if they will be."""
        serving = self._serving()
        site, plans = admit(serving, request)
        now = self._clock.now()
        known = await self._people.know(
            request.identities,
            budget,
            purposes=_purposes(site, plans, request.signals),
            signals=request.signals,
            feature_set_version=site.layout.feature_set.version,
            as_of=now,
            recorded=recorded,
        )
        call = Call(request, serving, site, budget, now, known)
        return call, await self._draft_all(call, plans)

    async def _draft_all(self, call: Call, plans: Sequence[Plan]) -> list[Draft]:
        """Placement by placement: what an earlier one shows is excluded from the later ones."""
        drafts: list[Draft] = []
        shown: set[str] = set()
        for ask, plan in zip(call.request.asks, plans, strict=True):
            if drafts:
                # A page of many placements makes nobody wait for all of it.
                await asyncio.sleep(0)
            with tracing.span("decision.choose") as span:
                draft = await self._drafting.draft(call, ask, plan, shown)
                if span.is_recording():
                    eligible_count = len(draft.record.inputs.candidates.eligible)
                    span.set_attribute(tracing.COMITY_PLACEMENT_ID, plan.placement.id)
                    span.set_attribute(tracing.COMITY_ELIGIBLE_COUNT, eligible_count)
            shown.update(draft.record.choice.slate.item_ids)
            drafts.append(draft)
        return drafts

    async def _conclude(self, draft: Draft, call: Call) -> Answer:
        """The answer of one placement, in a span that tells which decision it is and why it came out so."""
        with tracing.span("decision.answer") as span:
            answer = await self._record_and_answer(draft, call)
            if span.is_recording():
                span.set_attributes(_described(answer))
        return answer

    async def _record_and_answer(self, draft: Draft, call: Call) -> Answer:
        """Record the decision, check that it may still be emitted, answer.

        The log comes before the answer: an answer that was given and then lost could not be explained or learned from.
        """
        record, attempt_id = draft.record, uuid7(self._clock.now())
        added = await within("record", self._log.add(record, attempt_id), call.budget.at(RECORDED_BY))
        if _conflicts(added):
            return await self._answer_again(draft, call, attempt_id)
        if added.error is not None and added.error.reason == "SUBJECT_ERASED":
            return self._answer(record, _default(draft, FallbackReason.NO_CONSENT), in_log=False)
        if added.outcome is not StageOutcome.OK:
            # The append may still happen: then the log must not hold a slate that was not shown.
            return self._replaced(draft, attempt_id, added)
        if call.budget.is_over():
            return self._replaced(draft, attempt_id, late=True)
        return self._answer(record, record.choice, in_log=True)

    def _replaced(self, draft: Draft, attempt_id: str, log: Ended[Any] = _ENDED_WELL, *, late: bool = False) -> Answer:
        """The default instead of what was chosen, or of what another attempt chose; *log*: how asking the log ended."""
        before = draft.record.inputs
        inputs = replace(before, late=late, log=log.outcome, budget_too_short=before.budget_too_short or log.too_short)
        if log.outcome is not StageOutcome.OK and not self._can_seal(draft.record):
            # The log was not even asked: identity, which keeps the keys, is at fault.
            inputs = replace(inputs, identity=log.outcome, log=StageOutcome.OK)
        choice = choose(draft.plan, draft.facts, inputs, b"")
        return self._answer_default(replace(draft.record, inputs=inputs, choice=choice), attempt_id)

    def _can_seal(self, record: DecisionRecord) -> bool:
        return not record.member_id or self._log.holds_key(record.member_id)

    def _answer_default(self, record: DecisionRecord, attempt_id: str) -> Answer:
        """An answer that proves nothing; the log is told of it behind the answer's back."""
        self._corrections.add(record, attempt_id)
        return self._answer(record, record.choice, in_log=False)

    async def _answer_again(self, draft: Draft, call: Call, attempt_id: str) -> Answer:
        """The answer where another attempt was faster: the decision that it made, if consent still allows it.

        Raises:
            ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED) when the id was used for another request.
        """
        found = await within("find", self._log.find(draft.record.decision_id), call.budget.at(RECORDED_BY))
        if found.error is not None and found.error.kind is Kind.NOT_FOUND:
            # The person was erased between the two calls: nothing of the decision is left.
            return self._answer(draft.record, _default(draft, FallbackReason.NO_CONSENT), in_log=False)
        logged = found.value
        if logged is None:
            is_gone = found.outcome is StageOutcome.OK
            return self._replaced(draft, attempt_id, Ended(StageOutcome.UNAVAILABLE) if is_gone else found)
        stored = logged.record
        if not stored.is_of_request(draft.record):
            raise ServiceError(
                Kind.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                "request_id: was used for another request; give every Decide an id of its own",
            )
        now_refused = _refused_now(draft, stored)
        if now_refused is not None and stored.inputs.matrix is not None:
            return self._answer_default(replace(draft.record, choice=_default(draft, now_refused)), attempt_id)
        return await self._repeat(logged, draft, call, attempt_id)

    async def _repeat(self, logged: Logged, draft: Draft, call: Call, attempt_id: str) -> Answer:
        """What the log holds, once nobody withdraws it any more."""
        stored = logged.record
        if not is_answerable(logged, attempt_id):
            confirming = self._log.amend(logged, made_final(stored))
            confirmed = await within("confirm", confirming, call.budget.at(RECORDED_BY))
            if _conflicts(confirmed):
                return await self._answer_again(draft, call, attempt_id)
            if confirmed.outcome is not StageOutcome.OK:
                return self._replaced(draft, attempt_id, confirmed)
        if call.budget.is_over():
            return self._replaced(draft, attempt_id, late=True)
        return self._answer(stored, stored.choice, in_log=True)

    def _answer(self, record: DecisionRecord, choice: Choice, *, in_log: bool) -> Answer:
        token = b""
        if in_log:
            claim = exposure_token.ExposureClaim(
                record.decision_id, record.member_id, record.placement_id, record.decided_at + exposure_token.TOKEN_TTL
            )
            token = exposure_token.sign(self._keys.token, claim)
        return Answer(
            placement_id=record.placement_id,
            decision_id=record.decision_id,
            choice=choice,
            versions=record.versions,
            holdout=record.holdout,
            holdout_bucket=record.holdout_bucket,
            exposure_token=token,
            learnable=choice.learnable and in_log,
            # What is answered instead of what the log holds used nothing of the person.
            layer=record.layer if in_log else Level.UNSPECIFIED,
        )


def _took_s(drafts: Sequence[Draft], budget: Budget) -> float | None:
    """How long the call took, at least all its time where a stage was given up; None where none could be ready."""
    took_s, stages = budget.spent_s(), drafts[0].record.inputs
    was_late = took_s >= RECORDED_BY * budget.seconds or StageOutcome.LATE in (
        stages.identity,
        stages.consent,
        stages.features,
        *(draft.record.inputs.ranker for draft in drafts),
    )
    if not was_late:
        return took_s
    return max(took_s, budget.seconds) if budget.seconds > USUAL_S else None


def _answers(answers: Sequence[Answer], budget: Budget) -> Answers:
    return Answers(tuple(answers), int(budget.seconds * 1000), int(budget.spent_s() * 1000))


def admit(serving: Serving, request: DecideRequest) -> tuple[CompiledSite, list[Plan]]:
    """The plan of each placement asked for.

    Raises:
        ServiceError: INVALID, naming the field and the remedy; FAILED_PRECONDITION (SITE_NOT_APPLIED).
    """
    site = serving.compiled
    if site is None:
        raise ServiceError(Kind.FAILED_PRECONDITION, "SITE_NOT_APPLIED", "no site was applied yet; apply one first")
    asked = [ask.placement_id for ask in request.asks]
    for k, ask in enumerate(request.asks):
        if ask.placement_id in asked[:k]:
            raise invalid(f"placements[{k}].placement_id", "appears twice; ask for a placement once a call")
        check_candidates(f"placements[{k}].candidate_ids", ask)
    return site, [plan_of(site, f"placements[{k}].placement_id", id_) for k, id_ in enumerate(asked)]


def plan_of(site: CompiledSite, field: str, placement_id: str) -> Plan:
    """The plan of a placement.

    Raises:
        ServiceError: INVALID (PLACEMENT_UNKNOWN), naming those that there are.
    """
    plan = site.plans.get(placement_id)
    if plan is None:
        known = ", ".join(sorted(site.plans))
        raise invalid(field, f"the site has no such placement; it has: {known}", reason="PLACEMENT_UNKNOWN")
    return plan


def check_candidates(field: str, ask: Ask) -> None:
    """Returns when no candidate appears twice: its propensity would be two numbers."""
    if len(set(ask.candidate_ids)) != len(ask.candidate_ids):
        raise invalid(field, "holds an item twice; send each candidate once", reason="CANDIDATE_REPEATED")


def _purposes(site: CompiledSite, plans: Sequence[Plan], signals: Signals | None) -> tuple[str, ...]:
    """What consent is asked for: every purpose of placements and columns; nothing where nobody would read it.

    With signals also what their exposures need: feedback, which records those, has the ledger alone.
    """
    if all(plan.placement.disabled for plan in plans):
        return ()
    purposes = site.layout.purposes.union(*(plan.purposes for plan in plans))
    return tuple(sorted(purposes if signals is None else purposes | site.site.exposure_purposes))


def _conflicts(ended: Ended[LogPosition]) -> bool:
    """Whether another attempt was faster."""
    return ended.error is not None and ended.error.kind is Kind.CONFLICT


def _default(draft: Draft, reason: FallbackReason) -> Choice:
    """The declared default, for a reason that came up after the choice."""
    inputs = replace(draft.record.inputs, log=StageOutcome.UNAVAILABLE)
    choice = choose(draft.plan, draft.facts, inputs, b"")
    if not choice.slate.item_ids and inputs.default_left_out:
        reason = FallbackReason.NO_ELIGIBLE_CANDIDATES
    return replace(choice, reason=Reason.DEFAULT, fallback_reason=reason)


def _refused_now(draft: Draft, stored: DecisionRecord) -> FallbackReason | None:
    """Why what the stored decision used of the person may not be used now; None when it may."""
    refusals = (
        FallbackReason.DO_NOT_PERSONALIZE,
        FallbackReason.IDENTITY_UNAVAILABLE,
        FallbackReason.CONSENT_UNAVAILABLE,
        FallbackReason.NO_CONSENT,
        FallbackReason.POLICY_DISABLED,
    )
    reason = rung_of(draft.plan, draft.facts, draft.record.inputs).fallback_reason
    if reason in refusals:
        return reason
    covered = still_covers(draft.plan, stored.layer, draft.facts.level, draft.facts.allowed)
    return None if covered else FallbackReason.NO_CONSENT


@cache
def _counter(reason: Reason, fallback_reason: FallbackReason) -> Counter:
    """The counter of these decisions; looking one up by its labels costs more than counting."""
    return DECISIONS.labels(reason.name, fallback_reason.name)


def _tell(answers: Sequence[Answer], falling_back: FallingBack) -> None:
    """Count the decisions, and have the call's span say what holds of all of them: of one alone, everything."""
    for answer in answers:
        _counter(answer.choice.reason, answer.choice.fallback_reason).inc()
        falling_back.add(answer.choice.fallback_reason)
    if tracing.sampled():
        told = [_described(answer).items() for answer in answers]
        tracing.set_attributes(dict(set(told[0]).intersection(*told)))


def _described(answer: Answer) -> tracing.Attributes:
    """What a span says of a decision; of what there is none it says nothing."""
    choice, versions = answer.choice, answer.versions
    is_fallback = choice.fallback_reason is not FallbackReason.UNSPECIFIED
    told = {
        tracing.COMITY_DECISION_ID: answer.decision_id,
        tracing.COMITY_PLACEMENT_ID: answer.placement_id,
        tracing.COMITY_REASON: choice.reason.name,
        tracing.COMITY_FALLBACK_REASON: choice.fallback_reason.name if is_fallback else "",
        tracing.COMITY_LAYER: "" if answer.layer is Level.UNSPECIFIED else answer.layer.name,
        tracing.COMITY_MODEL_VERSION: versions.model,
        tracing.COMITY_FEATURE_SET_VERSION: versions.feature_set,
        tracing.COMITY_CONSENT_POLICY_VERSION: versions.consent_policy,
        tracing.COMITY_DECISION_POLICY_VERSION: versions.decision_policy,
        tracing.COMITY_CATALOG_VERSION: versions.catalog,
        tracing.COMITY_SITE_VERSION: versions.site,
    }
    return {tracing.COMITY_FALLBACK: is_fallback, **{name: value for name, value in told.items() if value}}
