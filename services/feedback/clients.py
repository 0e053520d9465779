"""The ports over other services: identity says who, consent says what is allowed; tokens are read here."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import grpc
from comity.consent.v1.consent_service_pb2 import EvaluateRequest, EvaluateResponse
from comity.consent.v1.consent_service_pb2_grpc import ConsentServiceStub
from comity.identity.v1.identity_service_pb2 import ResolveQuery, ResolveRequest, ResolveResponse
from comity.identity.v1.identity_service_pb2_grpc import IdentityServiceStub

from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.exposure_token import TOKEN_TTL, verify
from services.chassis.rpc_client import call
from services.feedback.domain.behavior import Claim, ConsentQuestion, Permission, Person, Subject
from services.feedback.wire import consent_query_to_pb, permission_from_pb, query_to_pb, subject_from_pb

# What both services take in one call, and how many such calls one batch of events has under way.
QUERIES_MAX = 256
IN_FLIGHT_MAX = 4
RETRY_AFTER_S = 0.5

_NO_ANSWER = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED, Kind.INTERNAL})

Q = TypeVar("Q")
R = TypeVar("R")


class IdentitySubjects:
    """handlers.ports.Subjects over identity."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = IdentityServiceStub(channel)
        self._timeout_s = timeout_s

    async def resolve(self, people: Sequence[Person]) -> list[Subject | FieldProblem | None]:
        """See handlers.ports.Subjects."""
        queries = [query_to_pb(person) for person in people]
        asked = [query for query in queries if query.identities or query.subject_id]
        answers = iter(await _in_chunks(asked, self._resolve, _unresolved) if asked else ())
        return [next(answers) if query.identities or query.subject_id else None for query in queries]

    async def _resolve(self, queries: Sequence[ResolveQuery]) -> list[Subject | FieldProblem | None]:
        request = ResolveRequest(queries=queries)
        try:
            response: ResolveResponse = await call(self._stub.Resolve, request, self._timeout_s)
        except ServiceError as error:
            raise _outage(error, "IDENTITY_UNAVAILABLE", "Identity does not answer; nothing was stored.") from error
        return [subject_from_pb(subject) for subject in response.subjects]


class ConsentAnswers:
    """handlers.ports.Consents over consent: the authority read, sent when it is asked for."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = ConsentServiceStub(channel)
        self._timeout_s = timeout_s

    async def allowed(self, questions: Sequence[ConsentQuestion]) -> list[Permission]:
        """See handlers.ports.Consents."""
        return await _in_chunks(questions, self._allowed, lambda _: Permission(frozenset()))

    async def _allowed(self, questions: Sequence[ConsentQuestion]) -> list[Permission]:
        request = EvaluateRequest(queries=[consent_query_to_pb(question) for question in questions])
        try:
            response: EvaluateResponse = await call(self._stub.Evaluate, request, self._timeout_s)
        except ServiceError as error:
            raise _outage(error, "CONSENT_UNAVAILABLE", "Consent does not answer; nothing was stored.") from error
        return [permission_from_pb(evaluation) for evaluation in response.evaluations]


class ExposureTokens:
    """handlers.ports.Tokens with the key that decision signs with."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def claim(self, token: bytes, now: datetime) -> Claim:
        """See handlers.ports.Tokens."""
        proven = verify(self._key, token, now)
        return Claim(
            proven.decision_id, proven.placement_id, proven.member_id, decided_at=proven.expires_at - TOKEN_TTL
        )


async def _in_chunks(
    items: Sequence[Q], ask: Callable[[Sequence[Q]], Awaitable[list[R]]], refused: Callable[[ServiceError], R]
) -> list[R]:
    """One answer an item, in order; asked for in as few calls as the other side takes.

    Args:
        refused: the answer to an item that the other side refuses; it costs the others nothing.
    """
    under_way = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def halved(chunk: Sequence[Q]) -> list[R]:
        try:
            return await ask(chunk)
        except ServiceError as error:
            if error.kind is not Kind.INVALID:
                raise
            if len(chunk) == 1:
                return [refused(error)]
        middle = len(chunk) // 2
        return [*await halved(chunk[:middle]), *await halved(chunk[middle:])]

    async def bounded(chunk: Sequence[Q]) -> list[R]:
        async with under_way:
            answers = await halved(chunk)
        if len(answers) != len(chunk):
            raise ServiceError(Kind.INTERNAL, "ANSWERS_MISMATCHED", "Another service did not answer every query.")
        return answers

    chunks = [items[start : start + QUERIES_MAX] for start in range(0, len(items), QUERIES_MAX)]
    if len(chunks) == 1:
        return await bounded(chunks[0])
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(bounded(chunk)) for chunk in chunks]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [answer for task in tasks for answer in task.result()]


def _unresolved(error: ServiceError) -> Subject | FieldProblem | None:
    """Why identity takes somebody for nobody."""
    return FieldProblem("subject", error.problems[0].problem if error.problems else error.message)


def _outage(error: ServiceError, reason: str, message: str) -> ServiceError:
    """The outage as our caller is told it; a refusal of our question stays what it is: a bug of ours."""
    if error.kind not in _NO_ANSWER:
        return error
    return ServiceError(Kind.UNAVAILABLE, reason, f"{message} Send it again.", retry_after_s=RETRY_AFTER_S)
