"""The other services, asked over gRPC; questions that wait leave together (chassis.gather)."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import grpc
from comity.consent.v1 import consent_service_pb2, consent_service_pb2_grpc
from comity.features.v1 import features_service_pb2, features_service_pb2_grpc
from comity.identity.v1 import identity_service_pb2, identity_service_pb2_grpc

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.gather import Gatherer, Load
from services.chassis.rpc_client import call, stream
from services.decision.domain.catalog import ItemColumns
from services.decision.domain.request import NOBODY, Consent, Identity, Member, Person, Profile, Signals
from services.decision.wire.calls import (
    consent_from_pb,
    evaluate_query,
    person_from_pb,
    profile_from_pb,
    resolve_query,
)
from services.decision.wire.record import to_timestamp
from services.decision.wire.site import item_columns_from_pb

# A batch serves many calls, each with its own time: this only keeps one that nobody waits for from lingering.
BATCH_TIMEOUT_S = 1.0
COLUMNS_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 10.0
# How soon a consent that waits for too short is noticed where nobody asks it about people.
WAIT_LOOK_EVERY_S = 5.0


class IdentityClient:
    """handlers.ports.IdentityReader over identity."""

    def __init__(self, channel: grpc.aio.Channel, load: Load) -> None:
        self._stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
        self._resolve = Gatherer[identity_service_pb2.ResolveQuery, Person](self._send, load, name="identity.Resolve")

    async def resolve(self, identities: tuple[Identity, ...]) -> Person:
        """See handlers.ports.IdentityReader."""
        if not identities:
            raise invalid("identities", "none of them can be somebody's", reason="NOBODY_NAMED")
        return await self._resolve(resolve_query(identities))

    async def describe(self, subject_id: str) -> Person:
        """See handlers.ports.IdentityReader."""
        return await self._resolve(identity_service_pb2.ResolveQuery(subject_id=subject_id))

    async def _send(self, batch: list[identity_service_pb2.ResolveQuery]) -> Sequence[Person | Exception]:
        request = identity_service_pb2.ResolveRequest(queries=batch)
        response = await call(self._stub.Resolve, request, BATCH_TIMEOUT_S)
        return [_refused(subject) if subject.error else person_from_pb(subject) for subject in response.subjects]


class ConsentClient:
    """handlers.ports.ConsentReader over consent.

    A question joins only a batch that has not been sent, so every answer was read after its Decide began: the
    guarantee of a revocation rests on this. Never cache an answer, never share one.

    The guarantee rests also on Revoke waiting for as long as a Decide may take: an answer of a consent that waits for
    less is refused.

    Args:
        budget_ms: longest Decide of this process.
    """

    def __init__(self, channel: grpc.aio.Channel, load: Load, *, budget_ms: int) -> None:
        self._budget_ms = budget_ms
        self._stub = consent_service_pb2_grpc.ConsentServiceStub(channel)
        self._evaluate = Gatherer[consent_service_pb2.EvaluateQuery, Consent](self._send, load, name="consent.Evaluate")

    async def evaluate(
        self, members: tuple[Member, ...], purposes: tuple[str, ...], signals: Signals | None = None
    ) -> Consent:
        """See handlers.ports.ConsentReader."""
        return await self._evaluate(evaluate_query(members, purposes, signals))

    async def _send(self, batch: list[consent_service_pb2.EvaluateQuery]) -> Sequence[Consent]:
        request = consent_service_pb2.EvaluateRequest(queries=batch)
        response = await call(self._stub.Evaluate, request, BATCH_TIMEOUT_S)
        if response.HasField("decide_budget_ms"):
            self._check_wait(response.decide_budget_ms)
        return [consent_from_pb(evaluation, response.policy_version) for evaluation in response.evaluations]

    async def check_wait(self) -> None:
        """Raise the alarm, or clear it, where nobody may be deciding; outages are for those who ask about people."""
        with suppress(ServiceError):
            request = consent_service_pb2.DescribeConsentRequest()
            described = await call(self._stub.DescribeConsent, request, BATCH_TIMEOUT_S)
            self._check_wait(described.decide_budget_ms)

    async def watch_wait(self) -> None:
        """Do so for ever."""
        while True:
            await self.check_wait()
            await asyncio.sleep(WAIT_LOOK_EVERY_S)

    def _check_wait(self, waits_ms: int) -> None:
        """Returns where Revoke waits for every Decide of this process.

        Raises:
            ServiceError: UNAVAILABLE (REVOKE_WAITS_TOO_SHORT).
        """
        set_alarm(Alarm.REVOKE_WAITS_TOO_SHORT, waits_ms < self._budget_ms)
        if waits_ms < self._budget_ms:
            raise ServiceError(
                Kind.UNAVAILABLE,
                "REVOKE_WAITS_TOO_SHORT",
                f"a Decide may take {self._budget_ms} ms and Revoke waits {waits_ms} ms: "
                "set COMITY_CONSENT_DECIDE_BUDGET_MS_MAX to COMITY_DECISION_BUDGET_MS_MAX or more",
            )


Question = tuple[str, Person, datetime]


class FeaturesClient:
    """handlers.ports.FeatureReader, ColumnsReader and FeatureSetReader over features."""

    def __init__(self, channel: grpc.aio.Channel, load: Load) -> None:
        self._stub = features_service_pb2_grpc.FeatureServiceStub(channel)
        self._read = Gatherer[Question, Profile](self._send, load, name="features.GetFeatures")

    async def read(self, feature_set_version: str, person: Person, as_of: datetime) -> Profile:
        """See handlers.ports.FeatureReader."""
        return await self._read((feature_set_version, person, as_of))

    async def newest(self, feature_set_version: str, item_width: int, held: ItemColumns | None) -> ItemColumns | None:
        """See handlers.ports.ColumnsReader."""
        request = features_service_pb2.GetItemColumnsRequest(
            feature_set_version=feature_set_version,
            held_version="" if held is None else held.version,
            accepts_partial=held is not None,
        )
        chunks = await self._chunks(request)
        try:
            return item_columns_from_pb(feature_set_version, item_width, chunks, held) if chunks else None
        except ValueError as error:
            if held is None:
                raise ServiceError(Kind.INTERNAL, "COLUMNS_MISFIT", "the item columns do not fit the layout") from error
        # What changed does not fit what is held: begin again with all of it.
        return await self.newest(feature_set_version, item_width, None)

    async def published(self, version: str) -> bytes | None:
        """See handlers.ports.FeatureSetReader."""
        request = features_service_pb2.DescribeFeatureSetRequest(version=version)
        try:
            described = await call(self._stub.DescribeFeatureSet, request, DESCRIBE_TIMEOUT_S)
        except ServiceError as error:
            if error.reason == "FEATURE_SET_UNKNOWN":
                return None
            raise
        return described.feature_set.SerializeToString(deterministic=True)

    async def _chunks(
        self, request: features_service_pb2.GetItemColumnsRequest
    ) -> list[features_service_pb2.GetItemColumnsResponse]:
        chunks = [chunk async for chunk in stream(self._stub.GetItemColumns, request, COLUMNS_TIMEOUT_S)]
        if chunks and not chunks[-1].last:
            raise ServiceError(Kind.UNAVAILABLE, "COLUMNS_CUT_OFF", "the item columns ended before their last chunk")
        return chunks

    async def _send(self, batch: list[Question]) -> Sequence[Profile | Exception]:
        """One call for each feature set asked for: a swap of sites is the only moment when there are two."""
        results: dict[int, Profile | Exception] = {}
        for version in {question[0] for question in batch}:
            asked = [k for k, question in enumerate(batch) if question[0] == version]
            results.update(zip(asked, await self._ask(version, [batch[k] for k in asked]), strict=True))
        return [results[k] for k in range(len(batch))]

    async def _ask(self, version: str, questions: list[Question]) -> list[Profile | Exception]:
        request = features_service_pb2.GetFeaturesRequest(
            feature_set_version=version,
            queries=[
                features_service_pb2.FeatureQuery(
                    subject_id=person.subject_id,
                    member_ids=[member.member_id for member in person.members],
                    as_of=to_timestamp(as_of),
                )
                for _, person, as_of in questions
            ],
        )
        response = await call(self._stub.GetFeatures, request, BATCH_TIMEOUT_S)
        # The answer says whose it is: one person's profile must never decide for another.
        return [
            profile_from_pb(features) if features.subject_id == person.subject_id else _mixed_up()
            for features, (_, person, _) in zip(response.subjects, questions, strict=True)
        ]


def _refused(subject: identity_service_pb2.ResolvedSubject) -> ServiceError:
    if subject.error_reason == "SUBJECT_ERASED":
        return ServiceError(Kind.FAILED_PRECONDITION, subject.error_reason, subject.error)
    reason = subject.error_reason if subject.error_reason in NOBODY else "IDENTITIES_REFUSED"
    return invalid("identities", subject.error, reason=reason)


def _mixed_up() -> ServiceError:
    return ServiceError(Kind.INTERNAL, "SUBJECTS_MIXED_UP", "features answered with another subject's vector")
