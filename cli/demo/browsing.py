"""What the shop's backend does while visitors browse: asks for consent, decides, tracks what came of it."""

import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from comity_client import ComityClient, Decision, Happening

from cli.connections import Services
from cli.demo.simulator import PURCHASE_RATE, Consent, Shop, Visitor
from cli.stack.servers import together
from services.chassis.rpc_client import call_again

# The home page asks for both at once; what the hero shows, the row does not show again.
PLACEMENTS = ("home_hero", "you_may_like")
# Event types with a reward: what the log joins to decisions.
ANSWERS = ("click", "purchase")
CALL_TIMEOUT_S = 10.0
# Longer than the budget of a Decide in a stack.
DECIDE_DEADLINE_S = 0.5
TRACK_DEADLINE_S = 5.0
# Enough to let the services gather, few enough that on 2 cores answers still come inside their budget.
VISITORS_AT_ONCE = 4


def can_be_answered(decision: Decision) -> bool:
    """Whether clicks on it join it: the log holds it, and knows whose it was."""
    return bool(decision.exposure_token) and decision.fallback_reason != "IDENTITY_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Shown:
    """One decision as the backend got it.

    Args:
        phase: 1 before the model, 2 with it.
        consent: what the visitor had said when it was asked for.
        latency_s: of the call that it came with.
    """

    visitor: Visitor
    phase: int
    consent: Consent
    decision: Decision
    latency_s: float


@dataclass(slots=True)
class Journal:
    """What happened while visitors browsed.

    Args:
        tracked: verdict → number of events.
        answers: events that the log must join to decisions.
    """

    shown: list[Shown] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    tracked: dict[str, int] = field(default_factory=dict)
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """One page visit of everybody.

    Args:
        session: number of the visit within the phase, from 0.
    """

    phase: int
    session: int


class Backend:
    """The shop's backend, with the platform behind it.

    Args:
        run_id: makes this run's visitors other people than those of any run before.
        purposes: what people are asked to agree to.
    """

    def __init__(
        self, client: ComityClient, services: Services, shop: Shop, *, run_id: str, seed: int, purposes: Sequence[str]
    ) -> None:
        self._client = client
        self._services = services
        self._shop = shop
        self._run_id = run_id
        self._seed = seed
        self._purposes = purposes
        self._known: set[int] = set()
        self._revoked: set[int] = set()
        self.journal = Journal()

    async def browse(self, visitors: Iterable[Visitor], of: Round, advance: Callable[[], None]) -> None:
        """Let every visitor come by once, some of them at the same time; *advance* is called after each."""
        waiting = iter(visitors)

        async def worker() -> None:
            for visitor in waiting:
                rng = np.random.default_rng((self._seed, visitor.number, of.phase, of.session))
                await self._session(visitor, of.phase, rng)
                advance()

        await self._at_once(worker)

    async def ask_consent(self, visitors: Iterable[Visitor]) -> None:
        """Show everybody the banner; each answers as they are."""
        await self._each(visitors, self._ask_consent)

    async def log_in(self, visitors: Iterable[Visitor]) -> None:
        """From now on these are known by a user id, and linked to what they were before if they agreed to that."""
        await self._each(visitors, self._log_in)

    async def take_back(self, visitors: Iterable[Visitor]) -> None:
        """These revoke everything."""
        await self._each(visitors, self.revoke)

    async def _session(self, visitor: Visitor, phase: int, rng: np.random.Generator) -> None:
        """Look around, see the home page, click what appeals."""
        identities = self.identities(visitor)
        views = [Happening("page_viewed", identities, (item,)) for item in self._shop.views(visitor, rng)]
        page = await self.decide(visitor, phase, {"hour": float(rng.integers(7, 24))})
        answers = [event for decision in page for event in self._answers(visitor, identities, decision, rng)]
        await self._track([*views, *answers])

    async def decide(
        self, visitor: Visitor, phase: int, context: Mapping[str, float], *, traceparent: str = ""
    ) -> list[Decision]:
        """The home page for the visitor, entered into the journal."""
        consent = self.consent_of(visitor)
        started_s = time.perf_counter()
        page = await self._client.decide(
            identities=self.identities(visitor),
            placements=PLACEMENTS,
            context=context,
            deferred=True,
            traceparent=traceparent,
        )
        latency_s = time.perf_counter() - started_s
        self.journal.latencies_s.append(latency_s)
        decisions = [page[placement] for placement in PLACEMENTS]
        self.journal.shown += [Shown(visitor, phase, consent, decision, latency_s) for decision in decisions]
        return decisions

    def consent_of(self, visitor: Visitor) -> Consent:
        """What holds for the visitor now: who will revoke has not done so yet."""
        if visitor.consent is Consent.REVOKED and visitor.number not in self._revoked:
            return Consent.GIVEN
        return visitor.consent

    def identities(self, visitor: Visitor) -> dict[str, str]:
        """How the backend knows the visitor now."""
        found = {"anonymous_id": f"{self._run_id}-{visitor.number}"}
        if visitor.number in self._known:
            found["user_id"] = f"{self._run_id}-user-{visitor.number}"
        return found

    async def revoke(self, visitor: Visitor) -> None:
        """Take everything back; no decision after this may use the profile."""
        request = consent_pb.RevokeRequest(request_id=uuid.uuid4().hex, subject=self._subject(visitor))
        await call_again(self._services.consent.Revoke, request, CALL_TIMEOUT_S)
        self._revoked.add(visitor.number)

    async def mark(self, visitor: Visitor) -> feedback_pb.TrackResponse:
        """Track one event more: its position is after everything that was tracked before."""
        event = feedback_pb.TrackedEvent(
            event_id=uuid.uuid4().hex, type="returning_visit", subject=self._subject(visitor)
        )
        answer: feedback_pb.TrackResponse = await call_again(
            self._services.feedback.Track, feedback_pb.TrackRequest(events=[event]), CALL_TIMEOUT_S
        )
        return answer

    async def _ask_consent(self, visitor: Visitor) -> None:
        refused = visitor.consent is Consent.REFUSED
        state = consent_pb.CONSENT_STATE_DENIED if refused else consent_pb.CONSENT_STATE_GRANTED
        request = consent_pb.RecordRequest(
            request_id=uuid.uuid4().hex,
            subject=self._subject(visitor),
            answers=[consent_pb.PurposeAnswer(purpose=purpose, state=state) for purpose in self._purposes],
            notice_version="2026-10",
            notice_language="en",
            mechanism="banner",
        )
        await call_again(self._services.consent.Record, request, CALL_TIMEOUT_S)

    async def _log_in(self, visitor: Visitor) -> None:
        self._known.add(visitor.number)
        if self.consent_of(visitor) is not Consent.GIVEN:
            # Known by a user id from now on, and not recognized as the visitor that they were.
            return
        request = identity_pb.LinkRequest(request_id=uuid.uuid4().hex, identities=self._messages(visitor))
        await call_again(self._services.identity.Link, request, CALL_TIMEOUT_S)

    def _answers(
        self, visitor: Visitor, identities: Mapping[str, str], decision: Decision, rng: np.random.Generator
    ) -> list[Happening]:
        """That the slate was seen, what was clicked, and the odd purchase."""
        items = [entry.item_id for entry in decision.entries]
        seen = Happening("exposure", identities, tuple(items), decision=decision)
        clicked = [items[slot] for slot in self._shop.clicks(visitor, items, rng)]
        clicks = [Happening("click", identities, (item,), decision=decision) for item in clicked]
        bought = [item for item in clicked if rng.random() < PURCHASE_RATE]
        purchases = [
            Happening("purchase", identities, (item,), {"amount": self._shop.items[item].price}, decision)
            for item in bought
        ]
        return [seen, *clicks, *purchases]

    async def _each(self, visitors: Iterable[Visitor], act: Callable[[Visitor], Awaitable[None]]) -> None:
        waiting = iter(visitors)

        async def worker() -> None:
            for visitor in waiting:
                await act(visitor)

        await self._at_once(worker)

    @staticmethod
    async def _at_once(worker: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await together(*(worker() for _ in range(VISITORS_AT_ONCE)))

    async def _track(self, events: Sequence[Happening]) -> None:
        tracked = await self._client.track_many(events)
        for event, result in zip(events, tracked, strict=True):
            self.journal.tracked[result.status] = self.journal.tracked.get(result.status, 0) + 1
            if result.status == "ACCEPTED" and event.type in ANSWERS and event.decision is not None:
                self.journal.answers += can_be_answered(event.decision)

    def _subject(self, visitor: Visitor) -> types_pb.SubjectRef:
        return types_pb.SubjectRef(identities=self._messages(visitor))

    def _messages(self, visitor: Visitor) -> list[Any]:
        return [types_pb.Identity(namespace=n, value=v) for n, v in self.identities(visitor).items()]
