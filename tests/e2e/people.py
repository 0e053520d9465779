"""People whom no other test knows, what they ask, and how answers are read."""

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2 as site_pb

from cli.bundle import Bundle, load_bundle
from cli.connections import Services

SHOP = Path(__file__).parents[2] / "examples" / "shop"
PURPOSES = ("profile_personalization", "measurement", "model_training")
CALL_S = 10.0
# As examples/shop/notices.yaml declares it.
NOTICE_VERSION = "2026-10"


def ranking_shop() -> Bundle:
    """The shop with a hero that a column ranks, so that it ranks without a model; the row below waits for one."""
    bundle = load_bundle(SHOP)
    hero = site_pb.Policy()
    hero.CopyFrom(next(policy.message for policy in bundle.policies if policy.message.id == "hero"))
    hero.ranker.column = "rating"
    hero.epsilon = 0.0
    return bundle.with_policies({"hero": hero})


DEFAULTS = {
    placement.message.id: [entry.item_id for entry in placement.message.default_slate]
    for placement in load_bundle(SHOP).placements
}


@dataclass
class Person:
    """Somebody whom no other test knows."""

    services: Services
    identities: dict[str, str] = field(default_factory=lambda: {"user_id": uuid.uuid4().hex})

    @property
    def messages(self) -> list[types_pb.Identity]:
        """The identities as requests hold them."""
        return [types_pb.Identity(namespace=n, value=v) for n, v in self.identities.items()]

    @property
    def subject(self) -> types_pb.SubjectRef:
        """The person as requests name them."""
        return types_pb.SubjectRef(identities=self.messages)

    async def grant(self, *purposes: str) -> consent_pb.RecordResponse:
        """Agree to the purposes, or to all that the tests need."""
        answers = [
            consent_pb.PurposeAnswer(purpose=purpose, state=consent_pb.CONSENT_STATE_GRANTED)
            for purpose in purposes or PURPOSES
        ]
        request = consent_pb.RecordRequest(
            request_id=uuid.uuid4().hex,
            subject=self.subject,
            answers=answers,
            notice_version=NOTICE_VERSION,
            notice_language="en",
        )
        response: consent_pb.RecordResponse = await self.services.consent.Record(request, timeout=CALL_S)
        return response

    async def revoke(self, *purposes: str) -> consent_pb.RevokeResponse:
        """Take back the purposes, or everything."""
        request = consent_pb.RevokeRequest(request_id=uuid.uuid4().hex, subject=self.subject, purposes=purposes)
        response: consent_pb.RevokeResponse = await self.services.consent.Revoke(request, timeout=CALL_S)
        return response

    def request(self, *placements: str, request_id: str = "", **more: Any) -> decision_pb.DecideRequest:
        """A Decide for the placements, home_hero if none is named."""
        return decision_pb.DecideRequest(
            request_id=request_id or uuid.uuid4().hex,
            identities=self.messages,
            placements=[decision_pb.PlacementRequest(placement_id=p) for p in placements or ("home_hero",)],
            **more,
        )

    async def decide(self, *placements: str, timeout_s: float = CALL_S, **more: Any) -> decision_pb.DecideResponse:
        """The answer to it."""
        request = self.request(*placements, **more)
        response: decision_pb.DecideResponse = await self.services.decision.Decide(request, timeout=timeout_s)
        return response


def reason(decision: decision_pb.PlacementDecision) -> str:
    """RANKED, or DEFAULT/NO_CONSENT: why the answer is what it is."""
    word = events_pb.Reason.Name(decision.reason).removeprefix("REASON_")
    if not decision.fallback_reason:
        return word
    return f"{word}/{events_pb.FallbackReason.Name(decision.fallback_reason).removeprefix('FALLBACK_REASON_')}"


def item_ids(decision: decision_pb.PlacementDecision) -> list[str]:
    """What is shown, in order."""
    slate = decision.slate if decision.WhichOneof("answer") == "slate" else decision.fallback
    return [entry.item_id for entry in slate.entries]


async def ranked_person(services: Services) -> Person:
    """Somebody who agreed and is not in the holdout."""
    for _ in range(20):
        somebody = Person(services)
        await somebody.grant()
        if reason((await somebody.decide()).decisions[0]) == "RANKED":
            return somebody
    raise AssertionError("twenty people in a row were not ranked")
