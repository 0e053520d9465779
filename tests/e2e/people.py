"""People whom no other test knows, what they ask, and how answers are read."""

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.bundle import Bundle, load_bundle
from cli.connections import Services
from tests.waiting import eventually

SHOP = Path(__file__).parents[2] / "examples" / "shop"
PURPOSES = ("profile_personalization", "measurement", "model_training")
CALL_S = 10.0
# A service that was killed runs again, and every other has found it again; on a busy machine.
RECOVERY_S = 60.0
# What a caller sees while services that were killed look for each other.
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
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

    async def resolved(self) -> identity_pb.ResolvedSubject:
        """Who identity says that they are."""
        request = identity_pb.ResolveRequest(queries=[identity_pb.ResolveQuery(identities=self.messages)])
        response: identity_pb.ResolveResponse = await self.services.identity.Resolve(request, timeout=CALL_S)
        return response.subjects[0]

    async def click(self, item_id: str, *, times: int = 3) -> list[feedback_pb.TrackedEvent]:
        """The clicks, the first of them within a decision for home_hero; returns once features has folded them."""
        (hero,) = (await self.decide()).decisions
        events = [
            feedback_pb.TrackedEvent(
                event_id=uuid.uuid4().hex,
                type="click",
                subject=self.subject,
                item_ids=[item_id],
                exposure_token=b"" if number else hero.exposure_token,
            )
            for number in range(times)
        ]
        response = await self.services.feedback.Track(feedback_pb.TrackRequest(events=events), timeout=CALL_S)
        assert {result.status for result in response.results} == {feedback_pb.TRACK_STATUS_ACCEPTED}
        folded = features_pb.AwaitPositionRequest(source="feedback", position=response.position)
        await self.services.features.AwaitPosition(folded, timeout=CALL_S)
        return events


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


async def until_well(services: Services) -> None:
    """Returns once somebody new can agree, be ranked and click: every service answers, and finds all it calls."""

    async def well() -> bool:
        somebody = Person(services)
        try:
            await somebody.grant()
            ranked = reason((await somebody.decide()).decisions[0]) == "RANKED"
            await somebody.click("tote", times=1)
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                raise
            return False
        return ranked

    await eventually(well, within_s=RECOVERY_S)
