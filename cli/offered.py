"""How many of the eligible items a request without candidates chooses from: no cut is silent."""

from collections.abc import Iterable, Mapping
from typing import Any

from comity.decision.v1 import decision_service_pb2 as pb

from cli.connections import Services
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call
from services.decision.domain.catalog import OFFERED_MAX

# A look that delays nobody: what is not told in time is not shown.
LOOK_TIMEOUT_S = 2.0


def as_json(offers: Iterable[pb.PlacementOffer]) -> list[dict[str, Any]]:
    """The offers as JSON holds them."""
    return [
        {
            "placement_id": offer.placement_id,
            "considered": offer.considered_count,
            "eligible": offer.eligible_count,
            "cut_by": offer.cut_by,
        }
        for offer in offers
    ]


def cuts(offers: Iterable[pb.PlacementOffer]) -> list[str]:
    """A sentence for each placement where not all eligible items are considered."""
    return [
        f"{offer.placement_id} considers {offer.considered_count:,} of {offer.eligible_count:,} eligible items where a "
        f"request names no candidates, the first by {offer.cut_by or 'their entry into the catalog'}; {OFFERED_MAX} "
        "bounds them"
        for offer in offers
        if offer.considered_count < offer.eligible_count
    ]


async def offers_of(where: Mapping[str, str]) -> list[pb.PlacementOffer]:
    """What the decision service at these addresses offers; empty where it does not say."""
    async with Services(where) as services:
        try:
            described = await call(services.catalog.DescribeSite, pb.DescribeSiteRequest(), LOOK_TIMEOUT_S)
        except ServiceError:
            return []
    return list(described.offers)
