"""What the demo takes from the shop's bundle. Pure."""

from collections.abc import Sequence

from comity.decision.v1 import site_pb2 as site_pb

from cli.bundle import Bundle
from cli.demo.simulator import ShopItem


def exploring(bundle: Bundle) -> Bundle:
    """The site in its first days: where a model will rank, every slate is drawn at random.

    Without a model there is nothing better to do, and only what was drawn at random can be learned from without bias.
    """
    policies = {}
    for policy in bundle.policies:
        if policy.message.ranker.model:
            first = site_pb.Policy()
            first.CopyFrom(policy.message)
            first.ranker.column = policy.message.popular_by
            first.epsilon = 1.0
            policies[first.id] = first
    return bundle.with_policies(policies)


def eligible_items(bundle: Bundle) -> list[ShopItem]:
    """The items that the policies' eligibility lets through: those in stock."""
    items = (item.message for item in bundle.items)
    return [
        ShopItem(
            item_id=item.id,
            category=item.categories["category"].values[0],
            brand=item.categories["brand"].values[0],
            price=item.numbers["price"],
        )
        for item in items
        if not item.retired and item.numbers["stock"] > 0
    ]


def default_slates(bundle: Bundle) -> dict[str, Sequence[site_pb.DefaultEntry]]:
    """Placement → its declared default."""
    return {placement.message.id: placement.message.default_slate for placement in bundle.placements}


def consent_purposes(bundle: Bundle) -> list[str]:
    """The purposes that people are asked for."""
    return [p.message.id for p in bundle.purposes if p.message.legal_basis == "consent"]
