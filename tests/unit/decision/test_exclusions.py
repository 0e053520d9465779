"""Every rung of the ladder keeps to every exclusion, and the record says what was left out and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from services.decision.domain.explain import explain
from services.decision.domain.plan import compile_site
from services.decision.domain.record import DecisionRecord
from services.decision.domain.replay import Pinned, decide_again
from services.decision.domain.request import Answer, Ask
from services.decision.domain.serving import Ranker, Serving, serving_of
from services.decision.domain.site import DefaultEntry, Site
from services.decision.domain.vocabulary import Exclusion, FallbackReason, Reason
from tests.replay.reading import histories, load, newest_of
from tests.unit.decision.fakes import DEAD, Harness, person, request
from tests.unit.decision.world import FEATURE_SET, ITEMS, PLACEMENT, POLICY, SEED_KEY, catalog, columns, model

BAD = "item-0"
DEFAULT = (DefaultEntry(BAD), DefaultEntry("item-1", "large"), DefaultEntry("gift-card"))


@dataclass(frozen=True)
class Case:
    """How BAD comes to be excluded.

    Args:
        left_out: entries of the default that are excluded with it.
    """

    rule: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    shown_before: bool = False
    left_out: tuple[str, ...] = (BAD,)


EXCLUSIONS: dict[Exclusion, Case] = {
    Exclusion.EXCLUDED_BY_CALLER: Case(excluded=frozenset({BAD})),
    Exclusion.SHOWN_ELSEWHERE: Case(shown_before=True),
    Exclusion.RETIRED: Case(changes={"retired": True}),
    Exclusion.NO_VARIANT: Case(changes={"variants": ("tiny",)}),
    Exclusion.INELIGIBLE: Case(rule="item.attributes.price > 0.5"),
    # Nothing that the catalog has can be judged; what it does not have is not judged by what it is.
    Exclusion.RULE_ERROR: Case(rule="item.attributes.price < context.absent", left_out=(BAD, "item-1")),
}


@dataclass(frozen=True)
class Rung:
    """How a Decide comes to a rung."""

    reason: Reason
    arrange: Callable[[Harness], object] = lambda harness: None
    policy: dict[str, Any] = field(default_factory=dict)
    placement: dict[str, Any] = field(default_factory=dict)
    with_model: bool = True


def refuse(harness: Harness) -> None:
    harness.consent.allowed = frozenset()


def fail(port: str) -> Callable[[Harness], None]:
    return lambda harness: setattr(getattr(harness, port), "fails", DEAD)


def hold_out(harness: Harness) -> None:
    harness.identity.person = person(harness, 0)


POPULAR_ALWAYS = {"popular_without_consent": True}
RUNGS = {
    "ranked": Rung(Reason.RANKED, policy={"epsilon": 0.0}),
    "explored": Rung(Reason.EXPLORED, policy={"epsilon": 1.0}),
    "cold": Rung(Reason.POPULAR, policy={"epsilon": 0.0}, with_model=False),
    "popular": Rung(Reason.POPULAR, fail("features")),
    "popular without consent": Rung(Reason.POPULAR, refuse, placement=POPULAR_ALWAYS),
    "popular for nobody": Rung(Reason.POPULAR, fail("identity"), placement=POPULAR_ALWAYS),
    "default": Rung(Reason.DEFAULT, refuse),
    "default for nobody": Rung(Reason.DEFAULT, fail("identity")),
    "default without a log": Rung(Reason.DEFAULT, fail("log")),
    "holdout": Rung(Reason.HOLDOUT, hold_out),
    "disabled": Rung(Reason.DISABLED, placement={"disabled": True}),
    "audience missed": Rung(Reason.DEFAULT, policy={"audience": "false"}),
    "audience error": Rung(Reason.ERROR, policy={"audience": "context.absent == 1.0"}),
}
BY_DEFAULT = (Reason.DEFAULT, Reason.HOLDOUT, Reason.DISABLED, Reason.ERROR)


class Shop:
    """A harness whose placement is on this rung, and whose item BAD is excluded this way.

    A second placement, which comes first where the case says so, always shows BAD.
    """

    def __init__(self, rung: Rung, case: Case) -> None:
        own = replace(
            PLACEMENT, default_slate=DEFAULT, variants=("small", "large"), slate_size=len(ITEMS), **rung.placement
        )
        first = replace(PLACEMENT, id="first", default_slate=DEFAULT[:1], policy_id="first", disabled=True)
        policy = replace(POLICY, eligibility=case.rule, **rung.policy)
        declared = Site("shop", "site-1", 0.1, (first, own), (policy, replace(POLICY, id="first")), "features-1")
        self.case = case
        self.items = [replace(item, **case.changes) if item.id == BAD else item for item in ITEMS]
        self.compiled = compile_site(declared, FEATURE_SET)
        self.harness = Harness(self.compiled)
        rankers: dict[str, Ranker] = {"ranker": self.harness.ranker} if rung.with_model else {}
        known = catalog(self.items), columns(self.items)
        self.harness.serving = serving_of(Serving(), self.compiled, *known, rankers, offered_max=100)
        rung.arrange(self.harness)

    async def decide(self, candidates: Sequence[str] = ()) -> Answer:
        """The answer for the placement on the rung."""
        own = Ask(PLACEMENT.id, candidates, excluded_item_ids=self.case.excluded)
        asks = (Ask("first"), own) if self.case.shown_before else (own,)
        return (await self.harness.decide(request(*asks))).decisions[-1]

    async def record(self, answer: Answer) -> DecisionRecord:
        """What the log holds of it; it decides again to the same."""
        self.harness.log.fails = None
        record = await self.harness.logged(answer.decision_id)
        by_id = {item.id: item for item in self.items}
        items = [by_id.get(item_id) for item_id in record.inputs.candidates.item_ids]
        pinned = Pinned(self.compiled, items, model, SEED_KEY, record.seed_key_id)
        assert decide_again(record, pinned).differences == ()
        return record


def test_the_sweep_knows_every_exclusion_and_every_rung() -> None:
    """A new one is tried with all of the others; of an item that is unknown see below."""
    assert {*EXCLUSIONS, Exclusion.UNKNOWN_ITEM, Exclusion.NONE} == set(Exclusion)
    # UNKNOWN is of slates that another system chose.
    assert {rung.reason for rung in RUNGS.values()} == set(Reason) - {Reason.UNSPECIFIED, Reason.UNKNOWN}


@pytest.mark.parametrize("exclusion", EXCLUSIONS, ids=lambda one: one.name)
@pytest.mark.parametrize("name", RUNGS)
async def test_no_rung_shows_what_is_excluded(name: str, exclusion: Exclusion) -> None:
    """Whatever it is that excludes it; the record names what the default left out, and decides again to the same."""
    rung, case = RUNGS[name], EXCLUSIONS[exclusion]
    shop = Shop(rung, case)
    answer = await shop.decide()
    assert BAD not in answer.choice.slate.item_ids
    is_default = rung.reason in BY_DEFAULT or exclusion is Exclusion.RULE_ERROR
    if is_default:
        left = [entry.item_id for entry in DEFAULT if entry.item_id not in case.left_out]
        assert list(answer.choice.slate.item_ids) == left
    assert answer.choice.reason is (rung.reason if rung.reason in BY_DEFAULT or not is_default else Reason.DEFAULT)
    if name != "default without a log":
        record = await shop.record(answer)
        assert record.inputs.default_left_out == dict.fromkeys(case.left_out, exclusion)
        steps = {step.stage: step.finding for step in explain(record, shop.compiled.plans[PLACEMENT.id]).steps}
        assert ("default" in steps) is is_default
        assert not is_default or f"{BAD} ({exclusion.name})" in steps["default"]


@pytest.mark.parametrize("name", RUNGS)
async def test_an_unknown_candidate_is_on_no_rung_and_a_declared_default_needs_no_catalog(name: str) -> None:
    """A caller's name for nothing is never shown; what the site itself declares is, before its catalog came too."""
    rung = RUNGS[name]
    shop = Shop(rung, Case())
    answer = await shop.decide(["gift-card", "item-2"])
    if rung.reason in BY_DEFAULT or name == "popular for nobody":  # of nobody's candidates nothing is chosen
        assert list(answer.choice.slate.item_ids) == [entry.item_id for entry in DEFAULT]
    else:
        assert list(answer.choice.slate.item_ids) == ["item-2"]


@pytest.mark.parametrize("name", [name for name, rung in RUNGS.items() if rung.reason in BY_DEFAULT])
async def test_a_default_that_exclusions_emptied_is_empty_and_says_so(name: str) -> None:
    """The caller's own default is the last rung then."""
    rung = RUNGS[name]
    shop = Shop(rung, Case(excluded=frozenset(entry.item_id for entry in DEFAULT)))
    answer = await shop.decide()
    assert list(answer.choice.slate.item_ids) == []
    assert answer.choice.fallback_reason is FallbackReason.NO_ELIGIBLE_CANDIDATES
    assert answer.choice.reason is rung.reason
    assert not answer.learnable
    if name != "default without a log":
        await shop.record(answer)


async def test_what_is_left_of_a_default_fills_the_slots_asked_for() -> None:
    """Left out first, cut then."""
    shop = Shop(RUNGS["default"], Case(excluded=frozenset({BAD})))
    own = Ask(PLACEMENT.id, slate_size=2, excluded_item_ids=shop.case.excluded)
    (answer,) = (await shop.harness.decide(request(own))).decisions
    assert list(answer.choice.slate.item_ids) == ["item-1", "gift-card"]


def test_a_default_of_before_is_replayed_as_it_was() -> None:
    """By semantics 0 a default was shown whole, whatever was excluded: the recorded histories hold such ones."""
    whole = [
        stream
        for stream in load(histories("decisions")[0])["decisions"]
        if stream["name"] == "no-consent-greedy" and "item-1" in stream["outcome"]["item_ids"]
    ]
    assert newest_of(whole[0]).versions.semantics == 0
