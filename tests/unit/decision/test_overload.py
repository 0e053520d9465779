"""Where there is too much to do, Decide answers at once what needs nothing about the person, and says so."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis.deadline import deadline_scope
from services.chassis.errors import Kind, ServiceError
from services.decision.domain.admission import Admission, Seat
from services.decision.domain.plan import compile_site
from services.decision.domain.request import Answer, Ask
from services.decision.domain.site import Placement
from services.decision.domain.vocabulary import FallbackReason, Level, Reason
from services.decision.wire.calls import answers_to_pb
from tests.unit.decision.fakes import Harness, request
from tests.unit.decision.world import FEATURE_SET, PLACEMENT, POLICY, site
from tests.virtual_time import in_virtual_time

DEFAULT = ["spring-sale", "gift-card"]
POPULAR = replace(PLACEMENT, popular_without_consent=True)
SHED = (FallbackReason.OVERLOADED, False, b"", "", Level.UNSPECIFIED)


class Full(Admission):
    """Lets nobody in."""

    def admit(self, caller: str, left_s: float) -> Seat | None:
        return None


def full(placement: Placement = PLACEMENT) -> Harness:
    """A decision that has too much to do."""
    harness = Harness(site(placement=placement))
    harness.decide._admission = Full()
    return harness


def told(answer: Answer) -> tuple[FallbackReason, bool, bytes, str, Level]:
    return (
        answer.choice.fallback_reason,
        answer.learnable,
        answer.exposure_token,
        answer.decision_id,
        answer.layer,
    )


def asked(harness: Harness) -> list[int]:
    """How often each service was asked."""
    return [port.calls for port in (harness.identity, harness.consent, harness.features, harness.keys, harness.log)]


def counted(reason: str) -> float:
    labels = {"reason": reason, "fallback_reason": "OVERLOADED"}
    return REGISTRY.get_sample_value("comity_decisions_total", labels) or 0.0


@pytest.mark.parametrize("preview", [False, True])
async def test_overloaded_decide_answers_the_default_and_asks_nobody(preview: bool) -> None:
    """No consent is read, so no profile is; nothing proves it, the log does not know it. A Decide is counted."""
    harness, before = full(), counted("DEFAULT")
    answers = await (harness.decide.preview if preview else harness.decide)(request())
    (answer,) = answers.decisions
    assert (answer.choice.reason, list(answer.choice.slate.item_ids)) == (Reason.DEFAULT, DEFAULT)
    assert told(answer) == SHED
    assert asked(harness) == [0, 0, 0, 0, 0]
    assert counted("DEFAULT") == before + (not preview)
    message = answers_to_pb(answers).decisions[0]
    assert [entry.item_id for entry in message.fallback.entries] == DEFAULT
    assert not message.HasField("slate")


@pytest.mark.parametrize("candidates", [(), ("item-1", "item-4", "item-5", "unknown")])
async def test_overloaded_decide_answers_what_is_popular_where_that_needs_no_consent(
    candidates: tuple[str, ...],
) -> None:
    """Of what the caller offers, less what it excludes."""
    harness = full(POPULAR)
    excluded = frozenset({"item-5"})
    (answer,) = (await harness.decide(request(Ask(PLACEMENT.id, candidates, 2, excluded)))).decisions
    assert (answer.choice.reason, told(answer)) == (Reason.POPULAR, SHED)
    # item_columns of the small world: the lower the number, the more popular.
    expected = ["item-1", "item-4"] if candidates else ["item-0", "item-1"]
    assert list(answer.choice.slate.item_ids) == expected
    assert asked(harness) == [0, 0, 0, 0, 0]


async def test_overloaded_decide_keeps_to_every_exclusion() -> None:
    """The caller's, and what another placement of the page shows; a default that is emptied so says that."""
    placement = replace(PLACEMENT, id="second")
    compiled = site()
    two = replace(compiled.site, placements=(PLACEMENT, placement))
    harness = Harness(compile_site(two, FEATURE_SET))
    harness.decide._admission = Full()
    excluded = frozenset({"gift-card"})
    asks = Ask(PLACEMENT.id, excluded_item_ids=excluded), Ask("second", excluded_item_ids=excluded)
    first, second = (await harness.decide(request(*asks))).decisions
    assert list(first.choice.slate.item_ids) == ["spring-sale"]
    assert (list(second.choice.slate.item_ids), second.choice.fallback_reason) == (
        [],
        FallbackReason.NO_ELIGIBLE_CANDIDATES,
    )


async def test_rule_that_asks_for_each_candidate_is_not_evaluated_to_be_popular() -> None:
    """It would cost more than there is: the default, whose few entries it is asked for, answers."""
    rule = replace(POLICY, eligibility="item.attributes.price < context.limit")
    harness = Harness(site(placement=POPULAR, policy=rule))
    harness.decide._admission = Full()
    (answer,) = (await harness.decide(request(context={"limit": 100.0}))).decisions
    assert answer.choice.reason is Reason.DEFAULT


async def test_switched_off_placement_says_so_however_much_there_is_to_do() -> None:
    """The cause is the site's."""
    (answer,) = (await full(replace(POPULAR, disabled=True)).decide(request())).decisions
    assert (answer.choice.reason, answer.choice.fallback_reason) == (Reason.DISABLED, FallbackReason.POLICY_DISABLED)


async def test_wrong_request_is_refused_however_much_there_is_to_do() -> None:
    """Its mistake is not hidden behind a default."""
    with pytest.raises(ServiceError, match="no such placement"):
        await full().decide(request(Ask("unknown")))


async def test_more_than_answers_can_be_given_to_is_told_when_to_come_again() -> None:
    """Shed answers have a share of the time; what is beyond it is refused, and it is time that lets it in again."""
    harness = full()
    harness.decide._allowance.wait_s(asyncio.get_running_loop().time())
    harness.decide._allowance.spend(1.0)
    with pytest.raises(ServiceError) as caught:
        await harness.decide(request())
    error = caught.value
    assert (error.kind, error.reason) == (Kind.EXHAUSTED, "OVERLOADED")
    assert error.retry_after_s
    assert error.retry_after_s > 0.0


@in_virtual_time
async def test_calls_that_are_all_late_are_followed_by_fewer() -> None:
    """Until they are in time again: then all are let in, and ranked."""
    harness = Harness(site(policy=replace(POLICY, epsilon=0.0)))
    harness.consent.takes_s = 50.0

    numbers = itertools.count()

    async def reasons(count: int) -> list[str]:
        requests = [request(request_id=f"r-{next(numbers)}") for _ in range(count)]
        found = await asyncio.gather(*map(harness.decide, requests))
        return [found[n].decisions[0].choice.fallback_reason.name for n in range(count)]

    assert "OVERLOADED" not in await reasons(100)
    burst = await reasons(100)
    assert 0 < burst.count("OVERLOADED") < 100
    assert set(burst) == {"OVERLOADED", "CONSENT_UNAVAILABLE"}
    harness.consent.takes_s = 0.0
    for _ in range(100):
        await reasons(1)
    assert await reasons(100) == ["UNSPECIFIED"] * 100


@in_virtual_time
async def test_cancelled_and_failed_calls_leave_their_seats() -> None:
    """Whoever goes away, or is refused, takes no place from the others and teaches nothing."""
    harness = Harness()
    admission = harness.decide._admission
    known, harness.identity.hangs = admission._each_s, True
    calls = [asyncio.ensure_future(harness.decide(request())) for _ in range(20)]
    await asyncio.sleep(1.0)
    assert admission.under_way_count == 20
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    with pytest.raises(ServiceError):
        await harness.decide(request(Ask("unknown")))
    assert (admission.under_way_count, admission._each_s) == (0, known)


@in_virtual_time
async def test_caller_without_time_teaches_nothing() -> None:
    """Who gives a millisecond would else tell that a Decide takes no longer."""
    harness = Harness()
    known, harness.identity.hangs = harness.decide._admission._each_s, True
    with deadline_scope(0.005, now=asyncio.get_running_loop().time):
        await harness.decide(request())
    assert harness.decide._admission._each_s == known


async def test_page_of_many_placements_gives_others_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two placements, so that nobody waits for all of them."""
    placements = tuple(replace(PLACEMENT, id=f"p{n}") for n in range(8))
    harness = Harness(compile_site(replace(site().site, placements=placements), FEATURE_SET))
    page = asyncio.ensure_future(harness.decide(request(*(Ask(one.id) for one in placements))))
    drafted: list[int] = []
    draft = harness.decide._drafting.draft

    async def counting(*arguments: Any) -> Any:
        drafted.append(len(drafted))
        return await draft(*arguments)

    monkeypatch.setattr(harness.decide._drafting, "draft", counting)
    seen = set()
    while not page.done():
        await asyncio.sleep(0)
        seen.add(len(drafted))
    await page
    assert seen >= set(range(1, 9))
