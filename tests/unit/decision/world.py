"""A small site to decide on: six items, one placement, a model column of each kind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from services.chassis.events import LogPosition
from services.decision.domain.candidates import offer_of, screen
from services.decision.domain.catalog import NO_ITEMS, Catalog, ItemColumns, PlacementView, item_rows_of, view_of
from services.decision.domain.exploration import seed_of
from services.decision.domain.ladder import (
    Candidates,
    Facts,
    Inputs,
    Kind,
    audience_of,
    choose,
    is_holdout,
    rung_of,
    score_by_column,
)
from services.decision.domain.layers import layer_of
from services.decision.domain.layout import (
    Column,
    ContextColumn,
    DotColumn,
    FeatureSet,
    Floats,
    ItemColumn,
    Subject,
    SubjectColumn,
)
from services.decision.domain.plan import CompiledSite, compile_site
from services.decision.domain.record import DecisionRecord, Evidence, Said, Versions, digest_of
from services.decision.domain.rules import Verdict
from services.decision.domain.site import Context, DefaultEntry, Item, Placement, Policy, Site
from services.decision.domain.vocabulary import Activation, Level, Origin, StageOutcome

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
SEED_KEY = b"s" * 32
SEED_KEY_ID = "seed-1"
PROFILE = "profile_personalization"
MEMBER = "a" * 24 + "by"

FEATURE_SET = FeatureSet(
    version="features-1",
    subject_width=3,
    item_width=4,
    columns=(
        Column("price", "price", (), ItemColumn(0)),
        Column("clicks", "clicks", (), ItemColumn(1)),
        Column("visits", "visits", (PROFILE,), SubjectColumn(0)),
        Column("affinity", "affinity", (PROFILE,), DotColumn(1, 2, 2)),
        Column("hour", "hour", (), ContextColumn("hour", 12.0)),
    ),
)

ITEMS = tuple(
    Item(
        id=f"item-{k}",
        categories={"tags": ("red" if k % 2 else "blue",)},
        numbers={"price": float(k)},
        variants=("small", "large"),
    )
    for k in range(6)
)

POLICY = Policy(
    id="home",
    version="policy-1",
    eligibility="",
    audience="",
    model="ranker",
    column="",
    epsilon=0.2,
    popular_by="clicks",
)

PLACEMENT = Placement(
    id="home_hero",
    slate_size=3,
    default_slate=(DefaultEntry("spring-sale", "large"), DefaultEntry("gift-card")),
    purposes=(PROFILE,),
    policy_id="home",
)


def site(
    *,
    placement: Placement = PLACEMENT,
    policy: Policy = POLICY,
    holdout_share: float = 0.1,
    exposure_purposes: frozenset[str] = frozenset(),
) -> CompiledSite:
    """The site with one placement and one policy."""
    versions = FEATURE_SET.version, "consent-1"
    return compile_site(
        Site("shop", "site-1", holdout_share, (placement,), (policy,), *versions, exposure_purposes), FEATURE_SET
    )


def catalog(items: Sequence[Item] = ITEMS) -> Catalog:
    """The items, at version 1."""
    return NO_ITEMS.with_items(1, items)


def view(compiled: CompiledSite, items: Sequence[Item] = ITEMS) -> PlacementView:
    """What the site's placement may show of the items."""
    plan = compiled.plans[PLACEMENT.id]
    return view_of(catalog(items), plan.placement, plan.eligibility)


def columns(items: Sequence[Item] = ITEMS) -> ItemColumns:
    """Rows that differ between items in every value."""
    rows: Floats = np.arange(len(items) * 4, dtype=np.float32).reshape(-1, 4) / np.float32(7)
    rows[:, 1] = rows[::-1, 1]
    ids = tuple(item.id for item in items)
    return ItemColumns("columns-1", FEATURE_SET.version, ids, rows, LogPosition(1, 5, 9), LogPosition(1, 4, 3))


def with_digest(record: DecisionRecord) -> DecisionRecord:
    """The record as the log gives it back."""
    return replace(record, digest=digest_of(record))


SUBJECT = Subject(np.array([2.0, 0.5, -1.5], dtype=np.float32), b"\1\1\1")


def model(matrix: Floats) -> Floats:
    """A model: a fixed mix of the columns; missing ones count as zero."""
    weights = np.array([0.3, 0.1, 0.2, 1.0, 0.01], dtype=np.float32)
    scores: Floats = np.sum(np.nan_to_num(matrix) * weights, axis=1, dtype=np.float32)
    return scores


def facts(**changes: Any) -> Facts:
    """A known person who agreed and is not held out."""
    known = Facts(
        do_not_personalize=False,
        level=Level.KNOWN,
        allowed=frozenset({PROFILE}),
        holdout=False,
        audience=Verdict.YES,
    )
    return replace(known, **changes)


def decide(
    compiled: CompiledSite,
    *,
    decision_id: str = "ab" * 16,
    items: Sequence[Item] = ITEMS,
    asked: Sequence[str] | None = None,
    context: Context | None = None,
    allowed: frozenset[str] = frozenset({PROFILE}),
    level: Level = Level.KNOWN,
    bucket: int = 9_999,
    excluded: frozenset[str] = frozenset(),
    scorer: Callable[[Floats], Floats] = model,
    origin: Origin = Origin.SERVED,
    **outcomes: Any,
) -> DecisionRecord:
    """A decision as the handler makes it, with the outcomes given; stages not named end well."""
    plan, context = compiled.plans[PLACEMENT.id], context or {}
    seen = view(compiled, items)
    offer = offer_of(seen, [item.id for item in items] if asked is None else asked)
    exclusions = screen(plan, seen, offer, context, excluded=excluded, shown=())
    stages = dict.fromkeys(("identity", "consent", "features"), StageOutcome.OK)
    candidates = Candidates(offer.item_ids, offer.variant_ids, exclusions)
    inputs = Inputs(candidates, plan.placement.slate_size, **(stages | outcomes))
    known = facts(
        allowed=allowed,
        level=level,
        holdout=is_holdout(bucket, compiled.site.holdout_share),
        audience=audience_of(plan, context, level),
        do_not_personalize=outcomes.pop("do_not_personalize", False),
    )
    rows = item_rows_of(columns(items), seen.catalog).of(offer.rows[candidates.eligible])
    rung, evidence, version, used = rung_of(plan, known, inputs), Evidence(), "", Level.UNSPECIFIED
    if rung.kind is Kind.RANKED:
        layer = layer_of(plan, level, allowed)
        assert layer is not None
        used = layer.level
        subject = compiled.layout.permitted(SUBJECT, layer.purposes)
        matrix = compiled.layout.assemble(rows, subject, context, layer.purposes)
        scores = scorer(matrix) if plan.column is None else score_by_column(plan, matrix)
        inputs = replace(inputs, matrix=matrix, scores=scores, ranker=StageOutcome.OK)
        evidence, version = Evidence(subject), "ranker@1" if plan.column is None else ""
    if rung.kind is Kind.POPULAR:
        inputs = replace(inputs, popularity=rows[:, plan.popular_offset])
    choice = choose(plan, known, inputs, seed_of(SEED_KEY, decision_id))
    return with_digest(
        DecisionRecord(
            decision_id=decision_id,
            placement_id=PLACEMENT.id,
            subject_id=MEMBER,
            member_id=MEMBER,
            level=level,
            decided_at=NOW,
            versions=Versions(model=version, decision_policy=plan.policy.version, site=compiled.site.version),
            holdout=known.holdout,
            holdout_bucket=bucket,
            allowed_purposes=tuple(sorted(allowed)),
            consent_version=3,
            do_not_personalize=known.do_not_personalize,
            context={key: context[key] for key in plan.context_keys if key in context},
            inputs=inputs,
            evidence=evidence,
            choice=choice,
            activation=Activation.IMMEDIATE,
            origin=origin,
            seed_key_id=SEED_KEY_ID,
            budget_ms=50,
            request_digest=b"d" * 32,
            said=Said("tc_string", "CONSENTED"),
            layer=used,
        )
    )
