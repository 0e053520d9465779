"""One Decide is one trace through four services, down to SQL and Redis, and it says what decided."""

import asyncio
import json
from typing import Any

from cli.connections import Services
from cli.stack import Stack
from cli.trace import settled_tree
from cli.trace_spans import Node
from tests.e2e.people import ranked_person


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
        "comity.decision.id": hero.decision_id,
        "comity.feature_set.version": hero.versions.feature_set,
        "comity.consent_policy.version": hero.versions.consent_policy,
        "comity.decision_policy.version": hero.versions.decision_policy,
        "comity.decision.reason": "RANKED",
    }.items():
        assert value in attributes.get(name, []), (name, attributes)


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
