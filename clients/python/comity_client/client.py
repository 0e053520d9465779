"""The client: decide and track, each within its own deadline."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

import grpc
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc

from comity_client import wire
from comity_client.errors import FieldProblem, InvalidRequestError, MissingDefaultError
from comity_client.results import ConsentSignals, Decision, Entry, Happening, Page, Tracked
from comity_client.transport import Transport
from comity_client.wire import Fact

DEADLINE_S = 0.1
TRACK_DEADLINE_S = 1.0
RETRIES_MAX = 2
NOT_A_REQUEST = "ids and values of identities must be text, values of context text, numbers or booleans"


class ComityClient:
    """Asks what to show and says what came of it. Use it as `async with`, one for the life of the process.

    Args:
        address: host:port of the decision service.
        feedback_address: host:port of the feedback service, where it is another.
        defaults: placement id → what to show when nothing else answers; never empty.
        deadline_s: for decide, unless the call says otherwise.
        track_deadline_s: for track, unless the call says otherwise.
        retries_max: further tries while the server is unavailable and time is left.
        raise_on_invalid: whether a request that the server refuses as wrong raises; otherwise it gives the default.
        credentials: for TLS; None: plain text.
    """

    def __init__(
        self,
        address: str,
        *,
        feedback_address: str | None = None,
        defaults: Mapping[str, Sequence[Entry]] | None = None,
        deadline_s: float = DEADLINE_S,
        track_deadline_s: float = TRACK_DEADLINE_S,
        retries_max: int = RETRIES_MAX,
        raise_on_invalid: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._address = address
        self._feedback_address = feedback_address or address
        self._defaults = dict(defaults or {})
        self._deadline_s = deadline_s
        self._track_deadline_s = track_deadline_s
        self._raise_on_invalid = raise_on_invalid
        self._transport = Transport(retries_max=retries_max, raise_on_invalid=raise_on_invalid, credentials=credentials)

    async def __aenter__(self) -> "ComityClient":
        for address in {self._address, self._feedback_address}:  # connect now, so that the first call need not
            self._transport.connect(address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight, and those after it, give the default."""
        await self._transport.close()

    async def decide(
        self,
        *,
        identities: Mapping[str, str],
        placements: Sequence[str],
        context: Mapping[str, Fact] | None = None,
        candidate_ids: Sequence[str] = (),
        excluded_item_ids: Sequence[str] = (),
        gpc: str = "",
        consent_signals: ConsentSignals | None = None,
        deferred: bool = False,
        template_version: str = "",
        request_id: str | None = None,
        traceparent: str = "",
        deadline_s: float | None = None,
        defaults: Mapping[str, Sequence[Entry]] | None = None,
    ) -> Page:
        """A decision for every placement, within the deadline; the caller's default where nothing better came.

        Args:
            identities: namespace → value, e.g. {"user_id": "42"}.
            placements: ids; what one shows is not shown again by those after it.
            context: facts of the request that rules and features may read.
            candidate_ids: items to choose from; empty: the whole catalog.
            excluded_item_ids: items that must not be chosen.
            gpc: the Sec-GPC header as it came, where it is the only signal.
            consent_signals: all that came; its own gpc holds where both are given.
            deferred: the slates count as seen only when an exposure is tracked.
            template_version: of the page or template that asks; kept with the decision.
            request_id: the same id gives the same decisions; one is drawn when not given.
            traceparent: W3C trace context of the caller; the server's spans belong under it.
            defaults: for this call, before the client's own.

        Raises:
            MissingDefaultError: a placement has no default.
            InvalidRequestError: the request is wrong, here or to the server (unless raise_on_invalid is off).
        """
        deadline_at = _after(self._deadline_s if deadline_s is None else deadline_s)
        own = {placement: self._default_of(placement, defaults or {}) for placement in placements}
        try:
            request = wire.decide_request(
                request_id or uuid.uuid4().hex,
                identities,
                placements,
                context=context or {},
                candidate_ids=candidate_ids,
                excluded_item_ids=excluded_item_ids,
                consent_signals=consent_signals or (ConsentSignals(gpc=gpc) if gpc else None),
                deferred=deferred,
                template_version=template_version,
            )
        except (TypeError, ValueError, AttributeError) as error:  # no type checker looked; often a number as user id
            if self._raise_on_invalid:
                raise InvalidRequestError(NOT_A_REQUEST, reason="NOT_A_REQUEST") from error
            return _page(None, placements, own, "CLIENT_REFUSED")
        answer, why = await self._transport.ask(
            self._address,
            lambda channel: decision_grpc.DecisionServiceStub(channel).Decide,
            request,
            deadline_at,
            traceparent=traceparent,
        )
        return _page(answer, placements, own, why)

    async def track(
        self,
        event_type: str,
        *,
        identities: Mapping[str, str],
        item_ids: Sequence[str] = (),
        properties: Mapping[str, Fact] | None = None,
        decision: Decision | None = None,
        occurred_at: datetime | None = None,
        event_id: str | None = None,
        consent_signals: ConsentSignals | None = None,
        deadline_s: float | None = None,
    ) -> Tracked:
        """Say that something happened; what became of it.

        Args:
            decision: what the event answers, as decide gave it.
            occurred_at: aware; now when not given.
            event_id: the same id counts once; one is drawn when not given.
            consent_signals: that came with it.

        Raises:
            InvalidRequestError: the server refused the event as wrong (unless raise_on_invalid is off).
        """
        happened = Happening(
            event_type,
            identities,
            tuple(item_ids),
            properties or {},
            decision,
            occurred_at,
            event_id or uuid.uuid4().hex,
            consent_signals,
        )
        (tracked,) = await self.track_many([happened], deadline_s=deadline_s)
        if tracked.status == "REFUSED" and self._raise_on_invalid:
            problem = FieldProblem(tracked.field, tracked.problem)
            raise InvalidRequestError(f"{problem.field}: {problem.problem}", problems=(problem,))
        return tracked

    async def track_many(self, happenings: Sequence[Happening], *, deadline_s: float | None = None) -> list[Tracked]:
        """Say that things happened, in one call; what became of each, in that order.

        A refused event is among the results: one bad event never costs the others.

        Raises:
            InvalidRequestError: the server refused the request as a whole (unless raise_on_invalid is off).
        """
        if not happenings:
            return []
        deadline_at = _after(self._track_deadline_s if deadline_s is None else deadline_s)
        answer, why = await self._transport.ask(
            self._feedback_address,
            lambda channel: feedback_grpc.FeedbackServiceStub(channel).Track,
            feedback_pb.TrackRequest(events=[wire.tracked_event(happening) for happening in happenings]),
            deadline_at,
        )
        return _tracked(answer, happenings, why)

    def _default_of(self, placement_id: str, of_call: Mapping[str, Sequence[Entry]]) -> tuple[Entry, ...]:
        entries = tuple(of_call.get(placement_id) or self._defaults.get(placement_id) or ())
        if not entries:
            raise MissingDefaultError(placement_id)
        return entries


def _after(seconds: float) -> float:
    """That many seconds from now, on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


def _page(
    answer: decision_pb.DecideResponse | None,
    placements: Sequence[str],
    own: Mapping[str, tuple[Entry, ...]],
    why: str,
) -> Page:
    """The server's decision for each placement, or the caller's own where there is no sound one."""
    given = list(answer.decisions) if answer is not None else []
    page = {}
    for index, placement in enumerate(placements):
        try:
            page[placement] = wire.decision_of(given[index], placement_id=placement)
        except (IndexError, wire.GarbageError):
            page[placement] = _own_decision(placement, own[placement], why or "CLIENT_INVALID_ANSWER")
    return page


def _own_decision(placement_id: str, entries: tuple[Entry, ...], why: str) -> Decision:
    return Decision(
        placement_id=placement_id,
        entries=entries,
        source="client_default",
        reason="CLIENT_DEFAULT",
        fallback_reason=why,
    )


def _tracked(answer: feedback_pb.TrackResponse | None, happenings: Sequence[Happening], why: str) -> list[Tracked]:
    results = list(answer.results) if answer is not None else []
    tracked = []
    for index, happening in enumerate(happenings):
        try:
            tracked.append(wire.tracked_of(results[index], event_id=happening.event_id))
        except (IndexError, wire.GarbageError):
            problem = why or "CLIENT_INVALID_ANSWER"
            tracked.append(Tracked(event_id=happening.event_id, status="NOT_DELIVERED", problem=problem))
    return tracked
