"""Contradictions between the files of a bundle: names that nothing declares, sizes that do not agree, broken rules."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf.message import Message

from cli.bundle.bundle import Bundle, Declared
from cli.bundle.checks.kinds import attributes_of, kind_of
from cli.bundle.problem import Problem
from services.decision.domain.rules import RuleError, compile_audience, compile_eligibility
from services.decision.domain.rules import attributes_of as attributes_read
from services.decision.rule_trial import refusals
from services.features.domain.catalog import ITEM_ID
from services.feedback.domain.schemas import EXPOSURE

M = TypeVar("M", bound=Message)

# Kinds of features that "popular" can order by: one value an item, the same for everybody.
ITEM_KINDS = ("item_attribute", "item_count", "item_rate", "category_rate")


def contradictions(bundle: Bundle) -> Iterator[Problem]:
    """Every contradiction between the parts of the bundle."""
    checks: tuple[Callable[[Bundle], Iterable[Problem]], ...] = (
        _doubled_ids,
        _unknown_purposes,
        _feature_events,
        _rewards,
        _item_attributes,
        _placements,
        _policies,
        _rules,
    )
    for check in checks:
        yield from check(bundle)


def _doubled_ids(bundle: Bundle) -> Iterator[Problem]:
    yield from _doubled(bundle.purposes, "id")
    yield from _doubled(bundle.events, "type")
    yield from _doubled(bundle.features, "name")
    yield from _doubled(bundle.placements, "id")
    yield from _doubled(bundle.policies, "id")
    yield from _doubled(bundle.items, "id")
    for event in bundle.events:
        names: set[str] = set()
        for i, declared in enumerate(event.message.properties):
            if declared.name in names:
                yield event.problem(
                    f".properties[{i}].name", f"{declared.name!r} is declared twice", "keep one of them"
                )
            names.add(declared.name)


def _doubled(things: Sequence[Declared[M]], key: str) -> Iterator[Problem]:
    first: dict[str, Declared[M]] = {}
    for thing in things:
        name = getattr(thing.message, key)
        if name in first:
            where = first[name].problem(f".{key}", "", "")
            yield thing.problem(
                f".{key}", f"{name!r} is declared already in {where.file}:{where.line}", "rename or remove one of them"
            )
        first.setdefault(name, thing)


def _unknown_purposes(bundle: Bundle) -> Iterator[Problem]:
    known = [purpose.message.id for purpose in bundle.purposes]
    things: tuple[Declared[Any], ...] = (*bundle.events, *bundle.features, *bundle.placements)
    for thing in things:
        for i, purpose in enumerate(thing.message.purposes):
            if purpose not in known:
                yield _unknown(thing, f".purposes[{i}]", "purpose", purpose, known, "purposes.yaml")


def _feature_events(bundle: Bundle) -> Iterator[Problem]:
    known = [event.message.type for event in bundle.events]
    for feature in bundle.features:
        kind, body = kind_of(feature.message)
        for field in ("event_type", "numerator", "denominator"):
            value = getattr(body, field, "")
            if value and value not in known:
                yield _unknown(feature, f".{kind}.{field}", "event type", value, known, "events/*.yaml")


def _rewards(bundle: Bundle) -> Iterator[Problem]:
    """Rewards that no decision would ever be learned from."""
    for event in bundle.events:
        message = event.message
        numbers = [one.name for one in message.properties if one.kind == feedback_pb.PROPERTY_KIND_NUMBER]
        if message.reward_property and message.reward_property not in numbers:
            yield _unknown(
                event, ".reward_property", "number among the properties", message.reward_property, numbers, "properties"
            )
        if message.type == EXPOSURE and (message.reward or message.reward_property):
            yield event.problem(".reward", "being shown is no outcome", "remove it, and reward what people do then")


def _item_attributes(bundle: Bundle) -> Iterator[Problem]:
    if not bundle.items_given:
        return
    numbers = sorted({name for item in bundle.items for name in item.message.numbers})
    categories = sorted({name for item in bundle.items for name in item.message.categories})
    for feature in bundle.features:
        # Every item has its own id for a category, whatever the catalog says.
        known = numbers if feature.message.HasField("item_attribute") else [*categories, ITEM_ID]
        for path, name in attributes_of(feature.message):
            if name not in known:
                yield _unknown(feature, path, "attribute of an item", name, known, "the items")


def _placements(bundle: Bundle) -> Iterator[Problem]:
    policies = [policy.message.id for policy in bundle.policies]
    for placement in bundle.placements:
        message = placement.message
        if message.policy_id not in policies:
            yield _unknown(placement, ".policy_id", "policy", message.policy_id, policies, "policies.yaml")
        if len(message.default_slate) != message.slate_size:
            yield placement.problem(
                ".default_slate",
                f"has {len(message.default_slate)} entries, but slate_size is {message.slate_size}",
                "make them agree, so that the fallback fills the placement",
            )
        yield from _default_entries(bundle, placement)
        yield from _layers(placement)


def _layers(placement: Declared[site_pb.Placement]) -> Iterator[Problem]:
    below = types_pb.SUBJECT_LEVEL_UNSPECIFIED
    named = list(placement.message.purposes)
    for i, layer in enumerate(placement.message.layers):
        if layer.level <= below:
            yield placement.problem(
                f".layers[{i}].level",
                "does not rise: levels are SUBJECT_LEVEL_ANONYMOUS, SUBJECT_LEVEL_PSEUDONYMOUS, SUBJECT_LEVEL_KNOWN",
                "put the weakest layer first, and each level once",
            )
        below = max(below, layer.level)
        for k, purpose in enumerate(layer.purposes):
            if purpose not in named:
                remedy = "add it to the placement's purposes, which name all that may be used here"
                yield placement.problem(f".layers[{i}].purposes[{k}]", f"{purpose!r} is no purpose of it", remedy)
    for k, purpose in enumerate(named):
        if placement.message.layers and all(purpose not in layer.purposes for layer in placement.message.layers):
            yield placement.problem(f".purposes[{k}]", f"{purpose!r} is in no layer", "name it in one, or remove it")


def _default_entries(bundle: Bundle, placement: Declared[site_pb.Placement]) -> Iterator[Problem]:
    items = {item.message.id: item.message for item in bundle.items}
    seen: set[str] = set()
    for i, entry in enumerate(placement.message.default_slate):
        path = f".default_slate[{i}].item_id"
        if entry.item_id in seen:
            yield placement.problem(path, f"{entry.item_id!r} stands in the slate twice", "show another item")
        seen.add(entry.item_id)
        if not bundle.items_given:
            continue
        item = items.get(entry.item_id)
        if item is None:
            yield _unknown(placement, path, "item", entry.item_id, sorted(items), "items.yaml or the feed")
        elif item.retired:
            yield placement.problem(path, f"{entry.item_id!r} is retired", "show another item")
        elif entry.variant_id and entry.variant_id not in item.variants:
            path = f".default_slate[{i}].variant_id"
            yield _unknown(placement, path, "variant", entry.variant_id, list(item.variants), f"item {item.id!r}")
    yield from _placement_variants(bundle, placement)


def _placement_variants(bundle: Bundle, placement: Declared[site_pb.Placement]) -> Iterator[Problem]:
    known = sorted({variant for item in bundle.items for variant in item.message.variants})
    for i, variant in enumerate(placement.message.variants):
        if bundle.items_given and variant not in known:
            yield _unknown(placement, f".variants[{i}]", "variant of an item", variant, known, "the items")


def _policies(bundle: Bundle) -> Iterator[Problem]:
    rankable = {feature.message.name: kind_of(feature.message)[0] for feature in bundle.features}
    popular = sorted(name for name, kind in rankable.items() if kind in ITEM_KINDS)
    for policy in bundle.policies:
        message = policy.message
        if message.popular_by not in popular:
            yield _unknown(
                policy, ".popular_by", "feature with one value an item", message.popular_by, popular, "features.yaml"
            )
        kind = message.ranker.WhichOneof("kind")
        if kind is not None and not getattr(message.ranker, kind):
            yield policy.problem(f".ranker.{kind}", "is empty", f"name the {kind}")
        # Some kinds give several columns, named after the feature; which ones, the features service knows.
        column = message.ranker.column
        if column and not any(column == name or column.startswith(f"{name}_") for name in rankable):
            yield _unknown(policy, ".ranker.column", "feature", column, sorted(rankable), "features.yaml")


def _rules(bundle: Bundle) -> Iterator[Problem]:
    compiled: dict[tuple[str, str], list[Declared[site_pb.Policy]]] = {}
    for policy in bundle.policies:
        for rule, compile_rule in (("eligibility", compile_eligibility), ("audience", compile_audience)):
            source = getattr(policy.message, rule)
            try:
                if source:
                    reads = compile_rule(source).context_keys
                    yield from _rule_names(bundle, policy, rule, reads)
                    compiled.setdefault((rule, source), []).append(policy)
            except RuleError as error:
                yield policy.problem(f".{rule}", f"is no valid CEL: {error}", error.remedy)
    for declared, refused in refusals(frozenset(compiled)).items():
        for policy in compiled[declared]:
            yield policy.problem(f".{declared[0]}", str(refused), refused.remedy)


def _rule_names(
    bundle: Bundle, policy: Declared[site_pb.Policy], rule: str, context_keys: frozenset[str]
) -> Iterator[Problem]:
    """Names that no item has, by which a rule would exclude everything, and context keys that look misspelled.

    Only features declare context keys, and rules may read others: a key that is not like a declared one is taken for
    one of those.
    """
    known = {
        "attributes": sorted({name for item in bundle.items for name in item.message.numbers}),
        "categories": sorted({name for item in bundle.items for name in item.message.categories}),
    }
    for group, name in sorted(attributes_read(getattr(policy.message, rule))):
        if bundle.items_given and name not in known[group]:
            yield _unknown(policy, f".{rule}", f"item.{group} of an item", name, known[group], "the items")
    declared = [one.message.context_value.key for one in bundle.features if one.message.HasField("context_value")]
    for key in sorted(context_keys.difference(declared)):
        if close := get_close_matches(key, declared, n=1, cutoff=0.75):
            yield policy.problem(
                f".{rule}", f"{key!r} is no context key that is declared", f"did you mean {close[0]!r}?"
            )


def _unknown(thing: Declared[Any], path: str, what: str, name: str, known: Sequence[str], where: str) -> Problem:
    close = get_close_matches(name, known, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"declare it in {where}"
    return thing.problem(path, f"{name!r} is no {what} that is declared", remedy)
