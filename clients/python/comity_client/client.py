"""The client: decide, track and identify, each within its own deadline; `consent` is the ledger."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

import grpc
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from comity.identity.v1 import identity_service_pb2_grpc as identity_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from comity_client import wire, wire_people
from comity_client.consent import Consent
from comity_client.errors import FieldError, FieldProblem, ForkedError, InvalidRequestError, MissingDefaultError
from comity_client.failures import Failure, Failures
from comity_client.incoming import Fact
from comity_client.results import ConsentSignals, Decision, Entry, Happening, Identified, Page, Placement, Tracked
from comity_client.transport import Outcome, Transport, check_address, unsent

DEADLINE_S = 0.1
TRACK_DEADLINE_S = 1.0
# A revocation waits until every Decide that began before it has ended, a link until consent has answered.
PEOPLE_DEADLINE_S = 5.0
RETRIES_MAX = 2
# Fields of an event that a visitor's browser fills: what is wrong with them is told and not raised.
_FROM_VISITORS = ("subject", "identities", "item_ids", "properties", "consent_signals", "decision_id", "exposure_token")


class ComityClient:
    """Asks what to show and says what came of it. Use it as `async with`, one for the life of the process.

    Each event loop has connections of its own; where a framework runs one a request, SyncComityClient keeps them.

    Args:
        address: host:port of the decision service.
        feedback_address: host:port of the feedback service, where it is another.
        consent_address: of consent, for `consent`, where it is another; in a cluster its public port.
        identity_address: of identity, for `identify`, where it is another; in a cluster its public port.
        defaults: placement id → what to show when nothing else answers; never empty.
        deadline_s: for decide, unless the call says otherwise.
        track_deadline_s: for track, unless the call says otherwise.
        people_deadline_s: for identify and consent, unless the call says otherwise.
        retries_max: further tries while the server is unavailable and time is left.
        raise_on_invalid: whether a request that the server refuses as wrong raises; otherwise it gives the default.
        credentials: for TLS; None: plain text.
        on_failure: called, in the event loop, with each call that came to nothing; it must not block.

    Attributes:
        consent: the ledger: record, revoke, object, history.

    Raises:
        InvalidAddressError: an address can be none.
    """

    def __init__(
        self,
        address: str,
        *,
        feedback_address: str | None = None,
        consent_address: str | None = None,
        identity_address: str | None = None,
        defaults: Mapping[str, Sequence[Entry]] | None = None,
        deadline_s: float = DEADLINE_S,
        track_deadline_s: float = TRACK_DEADLINE_S,
        people_deadline_s: float = PEOPLE_DEADLINE_S,
        retries_max: int = RETRIES_MAX,
        raise_on_invalid: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
        on_failure: Callable[[Failure], None] | None = None,
    ) -> None:
        given = {
            "address": address,
            "feedback_address": feedback_address or address,
            "consent_address": consent_address or address,
            "identity_address": identity_address or address,
        }
        for field, one in given.items():
            check_address(field, one)
        self._address = address
        self._feedback_address = feedback_address or address
        self._identity_address = identity_address or address
        self._defaults = dict(defaults or {})
        self._deadline_s = deadline_s
        self._track_deadline_s = track_deadline_s
        self._raise_on_invalid = raise_on_invalid
        self._people_deadline_s = people_deadline_s
        self._transport = Transport(
            retries_max=retries_max,
            raise_on_invalid=raise_on_invalid,
            credentials=credentials,
        )
        self._failures = Failures(on_failure)
        self.consent = Consent(
            self._transport,
            consent_address or address,
            deadline_s=people_deadline_s,
            failures=self._failures,
        )

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """How many calls ended how, since the client was made: (method, FallbackReason) → count; "" where answered."""
        return dict(self._failures.counts)

    async def __aenter__(self) -> "ComityClient":
        # Connect now, so that the first call of a page need not; a login or an answer can wait for its connection.
        # After a fork, where mistakes do not raise, each call tells of it.
        with suppress(*(() if self._raise_on_invalid else (ForkedError,))):
            for address in {self._address, self._feedback_address}:
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
        identities: Mapping[str, str | None],
        placements: Sequence[str | Placement],
        context: Mapping[str, Fact | None] | None = None,
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
            identities: namespace → value, e.g. {"user_id": "42"}; of what a visitor brings (a cookie, None where there
                is none) that which can be nobody's is left out.
            placements: ids, or Placements; what one shows is not shown again by those after it.
            context: facts of the request that rules and features may read; of a text the first 1,024 characters.
            candidate_ids: items to choose from; empty: the whole catalog.
            excluded_item_ids: items that must not be chosen.
            gpc: the Sec-GPC header as it came, where it is the only signal.
            consent_signals: all that came; its own gpc holds where both are given.
            deferred: the slates count as seen only when an exposure is tracked.
            template_version: of the page or template that asks; kept with the decision.
            request_id: the same id gives the same decisions; one is drawn when not given.
            traceparent: W3C trace context of the caller; the server's spans belong under it. That of the current
                OpenTelemetry span when not given.
            defaults: for this call, before the client's own.

        Raises:
            MissingDefaultError: a placement has no default.
            InvalidRequestError: the request is wrong, here or to the server (unless raise_on_invalid is off).
            ForkedError: a client was connected before this process was forked (unless raise_on_invalid is off).
        """
        deadline_at = _after(self._deadline_s if deadline_s is None else deadline_s)
        asked = [one if isinstance(one, Placement) else Placement(one) for one in placements]
        own = {one.placement_id: self._default_of(one, defaults or {}) for one in asked}
        try:
            request = wire.decide_request(
                request_id or uuid.uuid4().hex,
                identities,
                asked,
                context=context or {},
                candidate_ids=candidate_ids,
                excluded_item_ids=excluded_item_ids,
                consent_signals=consent_signals or (ConsentSignals(gpc=gpc) if gpc else None),
                deferred=deferred,
                template_version=template_version,
            )
        except FieldError as error:
            outcome = self._transport.refuse(error)
        else:
            outcome = await self._transport.ask(
                self._address,
                lambda channel: decision_grpc.DecisionServiceStub(channel).Decide,
                request,
                deadline_at,
                traceparent=traceparent,
            )
        page = _page(outcome, asked, own)
        self._failures.ended("Decide", outcome, is_sound=_is_sound(page))
        return page

    async def identify(
        self,
        *,
        identities: Mapping[str, str | None],
        consent_signals: ConsentSignals | None = None,
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> Identified:
        """Say that these identities are one person's, at login or registration: what they had before is theirs then.

        Args:
            identities: namespace → value, all that are known of the person, e.g. the user id and the visitor's cookie.
            consent_signals: that came with the login.
            request_id: the same id links once; one is drawn when not given.

        Raises:
            InvalidRequestError: the request is wrong, here or to the server (unless raise_on_invalid is off).
        """
        deadline_at = _after(self._people_deadline_s if deadline_s is None else deadline_s)
        request_id = request_id or uuid.uuid4().hex
        try:
            request = wire_people.link_request(request_id, identities, consent_signals)
        except FieldError as error:
            outcome = self._transport.refuse(error)
        else:
            outcome = await self._transport.ask(
                self._identity_address,
                lambda channel: identity_grpc.IdentityServiceStub(channel).Link,
                request,
                deadline_at,
            )
        identified = wire_people.identified_of(outcome, request_id=request_id)
        self._failures.ended("Link", outcome, is_sound=identified.status != "NOT_DELIVERED")
        return identified

    async def track(
        self,
        event_type: str,
        *,
        identities: Mapping[str, str | None],
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
            InvalidRequestError: the event is wrong, here or to the server (unless raise_on_invalid is off). What a
                visitor may have sent (identities, items, properties, signals) is REFUSED and not raised, but for values
                of a type that cannot be sent, such as a number as user id.
        """
        happened = Happening(
            event_type,
            identities,
            item_ids,
            properties or {},
            decision,
            occurred_at,
            event_id or uuid.uuid4().hex,
            consent_signals,
        )
        event = _written(happened)
        if isinstance(event, FieldError):
            self._transport.refuse(event)
        (tracked,) = await self._deliver([happened], [event], deadline_s)
        is_ours = not tracked.field.startswith(_FROM_VISITORS)
        if tracked.status == "REFUSED" and is_ours and self._raise_on_invalid:
            problem = FieldProblem(tracked.field, tracked.problem)
            raise InvalidRequestError(f"{problem.field}: {problem.problem}", problems=(problem,))
        return tracked

    async def track_many(
        self, happenings: Sequence[Happening], *, sent_at: datetime | None = None, deadline_s: float | None = None
    ) -> list[Tracked]:
        """Say that things happened, in one call; what became of each, in that order.

        A refused event is among the results: one bad event never costs the others.

        Args:
            sent_at: aware; the clock that gave occurred_at, as it stood when the events were sent, e.g. an app's. With
                it their times are put right by how far that clock is off.

        Raises:
            InvalidRequestError: sent_at is wrong, or the server refused the request as a whole (unless
                raise_on_invalid is off).
        """
        events = [_written(happening) for happening in happenings]
        try:
            stamp = None if sent_at is None else wire.moment_of("sent_at", sent_at)
        except FieldError as error:
            self._failures.ended("Track", self._transport.refuse(error))
            return [_refused(happening, error) for happening in happenings]
        return await self._deliver(happenings, events, deadline_s, stamp)

    async def _deliver(
        self,
        happenings: Sequence[Happening],
        events: Sequence[feedback_pb.TrackedEvent | FieldError],
        deadline_s: float | None,
        sent_at: Timestamp | None = None,
    ) -> list[Tracked]:
        """Send the events that could be written; what became of each happening, in order."""
        deadline_at = _after(self._track_deadline_s if deadline_s is None else deadline_s)
        sent = [event for event in events if isinstance(event, feedback_pb.TrackedEvent)]
        unfit = [event for event in events if isinstance(event, FieldError)]
        results: list[feedback_pb.TrackResult] = []
        # Of events none of which can be sent a mistake in the program is told before what a visitor's browser sent.
        outcome = unsent(min(unfit, key=lambda error: error.from_visitor)) if unfit else Outcome()
        if sent:
            outcome = await self._transport.ask(
                self._feedback_address,
                lambda channel: feedback_grpc.FeedbackServiceStub(channel).Track,
                feedback_pb.TrackRequest(events=sent, sent_at=sent_at),
                deadline_at,
            )
            results = [] if outcome.answer is None else list(outcome.answer.results)
        answered = iter([*results, *[None] * len(sent)])
        tracked = [
            _refused(happening, event)
            if isinstance(event, FieldError)
            else _tracked(next(answered), happening, event.event_id, outcome)
            for happening, event in zip(happenings, events, strict=True)
        ]
        if events:
            self._failures.ended("Track", outcome, is_sound=all(one.status != "NOT_DELIVERED" for one in tracked))
        return tracked

    def _default_of(self, asked: Placement, of_call: Mapping[str, Sequence[Entry]]) -> tuple[Entry, ...]:
        entries = tuple(of_call.get(asked.placement_id) or self._defaults.get(asked.placement_id) or ())
        if not entries:
            raise MissingDefaultError(asked.placement_id)
        size = asked.slate_size
        return entries[:size] if isinstance(size, int) and size > 0 else entries


def _after(seconds: float) -> float:
    """That many seconds from now, on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


def _page(outcome: Outcome, asked: Sequence[Placement], own: Mapping[str, tuple[Entry, ...]]) -> Page:
    """The server's decision for each placement, or the caller's own where there is no sound one."""
    given = list(outcome.answer.decisions) if outcome.answer is not None else []
    page = {}
    for index, placement in enumerate(one.placement_id for one in asked):
        entries = own[placement]
        try:
            page[placement] = wire.decision_of(given[index], placement_id=placement)
        except wire.EmptyError as empty:
            page[placement] = _own_decision(placement, entries, str(empty), "")
        except (IndexError, wire.GarbageError):
            why = outcome.why or "CLIENT_INVALID_ANSWER"
            page[placement] = _own_decision(placement, entries, why, outcome.cause)
    return page


def _is_sound(page: Page) -> bool:
    return all(decision.fallback_reason != "CLIENT_INVALID_ANSWER" for decision in page.values())


def _own_decision(placement_id: str, entries: tuple[Entry, ...], why: str, cause: str) -> Decision:
    return Decision(
        placement_id=placement_id,
        entries=entries,
        source="client_default",
        reason="CLIENT_DEFAULT",
        fallback_reason=why,
        cause=cause,
    )


def _written(happening: Happening) -> feedback_pb.TrackedEvent | FieldError:
    """The event, or why it cannot be sent: whatever is wrong with one costs no other."""
    try:
        return wire.tracked_event(happening)
    except FieldError as error:
        return error
    except (TypeError, ValueError, AttributeError) as error:  # no type checker looked
        return FieldError("event", f"cannot be sent ({type(error).__name__}): give a Happening as it is declared")


def _refused(happening: Happening, error: FieldError) -> Tracked:
    event_id = str(getattr(happening, "event_id", ""))
    return Tracked(event_id=event_id, status="REFUSED", field=error.field, problem=error.problem)


def _tracked(result: feedback_pb.TrackResult | None, happening: Happening, sent_id: str, outcome: Outcome) -> Tracked:
    if result is not None:
        try:
            return replace(wire.tracked_of(result, event_id=sent_id), event_id=happening.event_id)
        except wire.GarbageError:
            pass
    problem = outcome.why or "CLIENT_INVALID_ANSWER"
    return Tracked(event_id=happening.event_id, status="NOT_DELIVERED", problem=problem, cause=outcome.cause)
