"""A site made ready to decide: its rules compiled, its names resolved against the feature set, its mistakes listed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.decision.domain.layout import FeatureSet, Layout, misplaced
from services.decision.domain.rules import Rule, RuleError, compile_audience, compile_eligibility
from services.decision.domain.site import Layer, Placement, Policy, Site
from services.decision.domain.vocabulary import Level


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement and its policy, compiled.

    Args:
        column: index of the model column that ranks; None where a model does.
        popular_offset: where "popular" is in an item's row.
        purposes: all of them must be allowed before the profile is used; with layers, those of every layer.
        layers: strongest first; empty: one for every level, see domain.layers.
        context_keys: what rules and columns read of the context; nothing else of it is kept.
    """

    placement: Placement
    policy: Policy
    eligibility: Rule | None
    audience: Rule | None
    column: int | None
    popular_offset: int
    purposes: frozenset[str]
    context_keys: frozenset[str]
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class CompiledSite:
    """A site, its layout and a plan for each of its placements."""

    site: Site
    layout: Layout
    plans: Mapping[str, Plan]

    @property
    def has_stopped_rules(self) -> bool:
        """Whether a rule is not evaluated, because it takes too much."""
        rules = (rule for plan in self.plans.values() for rule in (plan.eligibility, plan.audience))
        return any(rule is not None and rule.stopped for rule in rules)


def compile_site(site: Site, feature_set: FeatureSet) -> CompiledSite:
    """The site ready to decide.

    Raises:
        ServiceError: INVALID (SITE_INVALID) with a problem for each mistake, each naming the field and the remedy.
    """
    # Before a layout is made of it: that costs what the widths say.
    refuse(list(misplaced(feature_set)))
    layout = Layout(feature_set)
    refuse(list(_problems(site, layout)))
    policies = {policy.id: policy for policy in site.policies}
    plans = {p.id: _plan(p, policies[p.policy_id], layout) for p in site.placements}
    return CompiledSite(site, layout, plans)


def refuse(problems: Sequence[FieldProblem]) -> None:
    """Raises ServiceError INVALID (SITE_INVALID) with every problem, where there is one."""
    if problems:
        text = "; ".join(f"{problem.field}: {problem.problem}" for problem in problems[:3])
        raise ServiceError(Kind.INVALID, "SITE_INVALID", f"the site is not valid: {text}", problems=tuple(problems))


def _plan(placement: Placement, policy: Policy, layout: Layout) -> Plan:
    eligibility = compile_eligibility(policy.eligibility) if policy.eligibility else None
    audience = compile_audience(policy.audience) if policy.audience else None
    offset = layout.item_offset(policy.popular_by)
    assert offset is not None, "checked by _problems"
    read = [rule.context_keys for rule in (eligibility, audience) if rule is not None]
    return Plan(
        placement=placement,
        policy=policy,
        eligibility=eligibility,
        audience=audience,
        column=layout.column(policy.column) if policy.column else None,
        popular_offset=offset,
        purposes=frozenset().union(*(one.purposes for one in placement.layers)) or frozenset(placement.purposes),
        context_keys=layout.context_keys.union(*read),
        layers=placement.layers[::-1],
    )


def _problems(site: Site, layout: Layout) -> Iterable[FieldProblem]:
    """Every mistake of the site."""
    if site.feature_set_version and site.feature_set_version != layout.feature_set.version:
        yield FieldProblem(
            "site.feature_set_version", "is not the version of the feature_set sent along; send that one"
        )
    # Of a stored site nobody else asks; NaN is in no range.
    if not 0 <= site.holdout_share <= 1:
        yield FieldProblem("site.holdout_share", "is no share; it is between 0 and 1")
    yield from _duplicates("site.placements", [placement.id for placement in site.placements])
    yield from _duplicates("site.policies", [policy.id for policy in site.policies])
    policy_ids = {policy.id for policy in site.policies}
    for k, placement in enumerate(site.placements):
        yield from _placement_problems(f"site.placements[{k}]", placement, policy_ids)
    for k, policy in enumerate(site.policies):
        yield from _policy_problems(f"site.policies[{k}]", policy, layout)


def _placement_problems(field: str, placement: Placement, policy_ids: set[str]) -> Iterable[FieldProblem]:
    if placement.policy_id not in policy_ids:
        known = ", ".join(sorted(policy_ids)) or "none"
        yield FieldProblem(f"{field}.policy_id", f"no policy has this id; the site has: {known}")
    if placement.slate_size < 1:
        yield FieldProblem(f"{field}.slate_size", "is below 1; a slate has at least one entry")
    if len(placement.default_slate) > placement.slate_size:
        yield FieldProblem(f"{field}.default_slate", "has more entries than slate_size; shorten it or raise slate_size")
    yield from _duplicates(f"{field}.default_slate", [entry.item_id for entry in placement.default_slate])
    yield from _layer_problems(field, placement)


def _layer_problems(field: str, placement: Placement) -> Iterable[FieldProblem]:
    below = Level.UNSPECIFIED
    for k, layer in enumerate(placement.layers):
        if layer.level <= below:
            yield FieldProblem(
                f"{field}.layers[{k}].level",
                "levels rise strictly from ANONYMOUS on; put the weakest first, and each level once",
            )
        below = max(below, layer.level)
        unnamed = ", ".join(sorted(layer.purposes.difference(placement.purposes)))
        if unnamed:
            yield FieldProblem(
                f"{field}.layers[{k}].purposes", f"names {unnamed}, which the placement does not; add it there too"
            )


def _policy_problems(field: str, policy: Policy, layout: Layout) -> Iterable[FieldProblem]:
    for name, source, compiled in (
        ("eligibility", policy.eligibility, compile_eligibility),
        ("audience", policy.audience, compile_audience),
    ):
        try:
            if source:
                compiled(source)
        except RuleError as error:
            yield FieldProblem(f"{field}.{name}", str(error))
    if not 0 <= policy.epsilon <= 1:
        yield FieldProblem(f"{field}.epsilon", "is no probability; it is between 0 and 1")
    if bool(policy.model) == bool(policy.column):
        yield FieldProblem(f"{field}.ranker", "name either a model or a column")
    if policy.column and layout.column(policy.column) is None:
        yield FieldProblem(
            f"{field}.ranker.column", "is no column of the feature set; use one that features.yaml makes"
        )
    if layout.item_offset(policy.popular_by) is None:
        yield FieldProblem(
            f"{field}.popular_by", "is no item column of the feature set; use a feature of the item alone"
        )


def _duplicates(field: str, ids: list[str]) -> Iterable[FieldProblem]:
    seen: set[str] = set()
    for k, id_ in enumerate(ids):
        if id_ in seen:
            yield FieldProblem(f"{field}[{k}]", "appears twice; keep one")
        seen.add(id_)
