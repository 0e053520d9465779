"""One Decide is one trace through four services, down to SQL and Redis, and it says what decided."""

import asyncio
import json
from typing import Any

from cli.connections import Services
from cli.stack import Stack
from cli.trace import settled_tree
from cli.trace_spans import Node
from services.chassis import tracing
from tests.e2e.people import Person, ranked_person


async def test_a_decide_is_one_tree_with_its_versions(stack: Stack, services: Services) -> None:
    """Spans of decision, identity, consent and features, SQL and Redis among them, below one root."""
    somebody = await ranked_person(services)
    (hero,) = (await somebody.decide()).decisions
    roots = await asyncio.to_thread(settled_tree, stack.traces_dir, hero.decision_id)
    assert len(roots) == 1
    nodes = list(roots[0].walk())
    assert {node.span.trace_id for node in nodes if not node.linked} == {roots[0].span.trace_id}
    assert {"decision", "identity", "consent", "features"} <= {node.span.service for node in nodes}
    systems = {
        str(value) for node in nodes for name, value in node.span.attributes.items() if name.startswith("db.sys")
    }
    assert any("postgres" in system for system in systems), systems
    assert any("redis" in system for system in systems), systems
    attributes = merged_attributes(nodes)
    for name, value in {
        tracing.COMITY_DECISION_ID: hero.decision_id,
        tracing.COMITY_FEATURE_SET_VERSION: hero.versions.feature_set,
        tracing.COMITY_CONSENT_POLICY_VERSION: hero.versions.consent_policy,
        tracing.COMITY_DECISION_POLICY_VERSION: hero.versions.decision_policy,
        tracing.COMITY_REASON: "RANKED",
    }.items():
        assert value in attributes.get(name, []), (name, attributes)


async def test_a_fallback_says_in_its_trace_why(stack: Stack, services: Services) -> None:
    """The reason and the fallback reason of an answer are on its spans."""
    (hero,) = (await Person(services).decide()).decisions
    roots = await asyncio.to_thread(settled_tree, stack.traces_dir, hero.decision_id)
    attributes = merged_attributes([node for root in roots for node in root.walk()])
    assert "DEFAULT" in attributes[tracing.COMITY_REASON]
    assert "NO_CONSENT" in attributes[tracing.COMITY_FALLBACK_REASON]


async def test_each_decision_of_a_call_is_found_by_its_id(stack: Stack, services: Services) -> None:
    """A call with several placements is one trace, and each id leads to it and to the reasons of its own placement."""
    somebody = await ranked_person(services)
    answer = await somebody.decide("home_hero", "you_may_like")
    for decision in answer.decisions:
        roots = await asyncio.to_thread(settled_tree, stack.traces_dir, decision.decision_id)
        told = [node.span.attributes for root in roots for node in root.walk()]
        (own,) = [each for each in told if each.get(tracing.COMITY_DECISION_ID) == decision.decision_id]
        assert own[tracing.COMITY_PLACEMENT_ID] == decision.placement_id
        assert own[tracing.COMITY_DECISION_POLICY_VERSION] == decision.versions.decision_policy


async def test_a_trace_holds_nothing_that_names_a_person(stack: Stack, services: Services) -> None:
    """Neither the identity nor anything of the request's context is in any span."""
    somebody = await ranked_person(services)
    (hero,) = (await somebody.decide()).decisions
    roots = await asyncio.to_thread(settled_tree, stack.traces_dir, hero.decision_id)
    text = json.dumps([node.span.attributes for root in roots for node in root.walk()])
    assert somebody.identities["user_id"] not in text


def merged_attributes(nodes: list[Node]) -> dict[str, list[Any]]:
    """Attribute → every value that a span of the tree gives it."""
    found: dict[str, list[Any]] = {}
    for node in nodes:
        for name, value in node.span.attributes.items():
            found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return found
