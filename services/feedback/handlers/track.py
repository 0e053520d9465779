"""Takes behavior in: each event judged on its own, the whole batch in a handful of round trips."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from services.chassis.clock import Clock
from services.chassis.deadline import shave
from services.chassis.errors import FieldProblem, ServiceError
from services.chassis.events import ORIGIN, LogPosition
from services.chassis.metrics import EVENTS_DROPPED
from services.feedback.domain.attribution import Decided
from services.feedback.domain.behavior import (
    Behavior,
    Claim,
    ConsentQuestion,
    NewBehavior,
    NotRecorded,
    Person,
    Signals,
    Status,
    Subject,
    TrackedEvent,
    Verdict,
    behavior_of,
    claim_problem,
    exposure_stream_of,
    first_of_each,
    problem_of,
    stream_of,
    two_ways,
)
from services.feedback.domain.schemas import EXPOSURE, SchemaBook
from services.feedback.handlers.gating import count_refused
from services.feedback.handlers.ports import (
    BehaviorLog,
    Consents,
    Decisions,
    Schemas,
    Subjects,
    Tokens,
)

# Decisions come in over the bus, a few milliseconds after they were served; looking more often gains nothing.
DECISION_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Tracked:
    """One verdict an event, in the order sent, and a position that covers every event that is in the log."""

    verdicts: tuple[Verdict, ...]
    position: LogPosition


@dataclass(slots=True)
class _Candidate:
    """An event that nothing was found against yet."""

    event: TrackedEvent
    claim: Claim | None = None
    subject: Subject | None = None
    behavior: Behavior | None = None
    is_anonymous: bool = False

    @property
    def person(self) -> Subject:
        assert self.subject is not None, "read before it was resolved"
        return self.subject

    @property
    def fact(self) -> Behavior:
        assert self.behavior is not None, "read before it was made"
        return self.behavior


class _Batch:
    """The events of one call: those with a verdict, and those still open, by their place in the call."""

    def __init__(self, sent: Sequence[TrackedEvent | Verdict]) -> None:
        self.ids = [entry.event_id for entry in sent]
        self.verdicts: list[Verdict | None] = [entry if isinstance(entry, Verdict) else None for entry in sent]
        self.open = {place: _Candidate(e) for place, e in enumerate(sent) if isinstance(e, TrackedEvent)}

    def close(self, place: int, status: Status, problem: FieldProblem | None = None) -> None:
        """Answer one event and set it aside."""
        self.verdicts[place] = Verdict(self.ids[place], status, problem)
        del self.open[place]

    def refuse(self, problems: dict[int, FieldProblem]) -> None:
        """Refuse these."""
        for place, problem in problems.items():
            self.close(place, Status.REFUSED, problem)

    def answered(self) -> tuple[Verdict, ...]:
        """The verdicts, once every event has one."""
        assert not self.open, "an event was left without a verdict"
        return tuple(verdict for verdict in self.verdicts if verdict is not None)


class TrackBehavior:
    """The use case.

    Args:
        blinding_key: see domain.behavior.blinded.
        decision_wait_s: how long an exposure without items waits for its decision to come in.
    """

    def __init__(
        self,
        *,
        subjects: Subjects,
        consents: Consents,
        tokens: Tokens,
        schemas: Schemas,
        log: BehaviorLog,
        decisions: Decisions,
        clock: Clock,
        blinding_key: bytes,
        decision_wait_s: float = 1.0,
    ) -> None:
        self._subjects = subjects
        self._consents = consents
        self._tokens = tokens
        self._schemas = schemas
        self._log = log
        self._decisions = decisions
        self._clock = clock
        self._blinding_key = blinding_key
        self._decision_wait_s = decision_wait_s

    async def __call__(self, sent: Sequence[TrackedEvent | Verdict]) -> Tracked:
        """Take the events in; an entry that was refused already (its limits) comes as its verdict.

        Raises:
            ServiceError: UNAVAILABLE when identity, consent or the log does not answer: nothing of the call
                may be taken as stored, and sending it again is safe.
        """
        now = self._clock.now()
        book = await self._schemas.book()
        batch = _Batch(sent)
        self._judge(batch, book, now)
        await self._name_people(batch)
        await self._ask_consent(batch, book)
        await self._name_shown_items(batch)
        position = await self._record(batch, book, now)
        return Tracked(batch.answered(), position)

    def _judge(self, batch: _Batch, book: SchemaBook, now: datetime) -> None:
        problems: dict[int, FieldProblem] = {}
        for place, candidate in batch.open.items():
            event = candidate.event
            problem = problem_of(event, book, now)
            if problem is None and event.exposure_token:
                try:
                    candidate.claim = self._tokens.claim(event.exposure_token, now)
                except ServiceError as refusal:
                    problem = refusal.problems[0]
            if problem is not None:
                problems[place] = problem
        batch.refuse(problems)

    async def _name_people(self, batch: _Batch) -> None:
        people = list({candidate.event.person: None for candidate in batch.open.values()})
        if not people:
            return
        found: dict[Person, Subject | FieldProblem | None] = dict(
            zip(people, await self._subjects.resolve(people), strict=True)
        )
        problems: dict[int, FieldProblem] = {}
        for place, candidate in list(batch.open.items()):
            subject = found[candidate.event.person]
            if subject is None:
                # Who is nobody has agreed to nothing.
                EVENTS_DROPPED.labels(reason="nobody").inc()
                batch.close(place, Status.DROPPED_NO_CONSENT)
                continue
            if isinstance(subject, FieldProblem):
                problems[place] = subject
                continue
            problem = claim_problem(candidate.event, candidate.claim, subject) if candidate.claim else None
            if problem is not None:
                problems[place] = problem
            candidate.subject = subject
            candidate.behavior = behavior_of(candidate.event, subject, candidate.claim)
        batch.refuse(problems)

    async def _ask_consent(self, batch: _Batch, book: SchemaBook) -> None:
        """Drop, or store without the person, what they do not agree to.

        The authority read is sent after the call began: what was revoked before the call is never stored.
        """
        wanted: dict[tuple[Subject, Signals | None], set[str]] = {}
        needed: dict[int, frozenset[str]] = {}
        for place, candidate in batch.open.items():
            # Whoever was recognized by an identity that needs a purpose is nobody without it.
            purposes = candidate.person.required_purposes.union(book[candidate.event.type].purposes)
            needed[place] = purposes
            if purposes:
                wanted.setdefault((candidate.person, candidate.event.signals), set()).update(purposes)
        questions = [
            ConsentQuestion(subject.members, tuple(sorted(purposes)), signals)
            for (subject, signals), purposes in wanted.items()
        ]
        answers = await self._consents.allowed(questions) if questions else []
        permissions = dict(zip(wanted, answers, strict=True))
        for place, candidate in list(batch.open.items()):
            if not needed[place]:
                continue
            refusal = permissions[candidate.person, candidate.event.signals].refusal_of(needed[place])
            if refusal is not None:
                candidate.is_anonymous = book[candidate.event.type].anonymize_without_consent
                count_refused(refusal, is_anonymized=candidate.is_anonymous)
                if not candidate.is_anonymous:
                    batch.close(place, Status.DROPPED_NO_CONSENT)

    async def _name_shown_items(self, batch: _Batch) -> None:
        """An exposure that names its decision and no items was of the whole slate."""
        bare = {
            place: candidate
            for place, candidate in batch.open.items()
            if candidate.event.type == EXPOSURE and not candidate.fact.item_ids
        }
        if not bare:
            return
        decided = await self._await_decided({candidate.fact.decision_id for candidate in bare.values()})
        problems: dict[int, FieldProblem] = {}
        for place, candidate in bare.items():
            decision = decided.get(candidate.fact.decision_id)
            if decision is None:
                problems[place] = FieldProblem(
                    "decision_id", "is not known here (yet); send the event again, or with the items that were shown"
                )
            elif candidate.claim is None and not candidate.person.has(decision.member_id):
                problems[place] = FieldProblem("decision_id", "was made for another subject; send its own")
            else:
                candidate.behavior = replace(
                    candidate.fact, item_ids=decision.item_ids, placement_id=decision.placement_id
                )
        batch.refuse(problems)

    async def _await_decided(self, decision_ids: Collection[str]) -> dict[str, Decided]:
        # Half of what the caller has left: the event must still be recorded.
        wait_s = min(self._decision_wait_s, shave(0.0) / 2)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        decided = await self._decisions.decided(tuple(decision_ids))
        while len(decided) < len(decision_ids) and loop.time() < until:
            await asyncio.sleep(DECISION_POLL_S)
            missing = tuple(decision_id for decision_id in decision_ids if decision_id not in decided)
            decided |= await self._decisions.decided(missing)
        return decided

    async def _record(self, batch: _Batch, book: SchemaBook, now: datetime) -> LogPosition:
        streams = {place: _stream_of(candidate) for place, candidate in batch.open.items()}
        for place, is_first in zip(list(streams), first_of_each(list(streams.values())), strict=True):
            if not is_first:
                batch.close(place, Status.DUPLICATE)
        places = list(batch.open)
        behaviors = [self._new(batch.open[place], streams[place], book, now) for place in places]
        answers = await self._log.record(behaviors) if behaviors else []
        position = ORIGIN
        repeated: list[str] = []
        for place, new, answer in zip(places, behaviors, answers, strict=True):
            if isinstance(answer, LogPosition):
                position = max(position, answer)
                batch.close(place, Status.ANONYMIZED if batch.open[place].is_anonymous else Status.ACCEPTED)
            elif answer is NotRecorded.DUPLICATE:
                repeated += [stream for stream in (new.stream_id, new.twin_stream_id) if stream]
                batch.close(place, Status.DUPLICATE)
            else:
                EVENTS_DROPPED.labels(reason="erased").inc()
                batch.close(place, Status.REFUSED, FieldProblem("subject", "was erased; nothing is stored about it"))
        # A caller that repeats a call whose answer was lost waits for what the first one stored.
        return max(position, await self._log.position_of(repeated)) if repeated else position

    def _new(self, candidate: _Candidate, stream_id: str, book: SchemaBook, now: datetime) -> NewBehavior:
        schema = book[candidate.event.type]
        plain = NewBehavior(stream_id, candidate.person.member_id, candidate.event.occurred_at or now, candidate.fact)
        return two_ways(plain, schema, self._blinding_key, is_anonymous=candidate.is_anonymous)


def _stream_of(candidate: _Candidate) -> str:
    """That a whole slate was seen is one fact, whoever tells it: the caller, again, or the decision itself."""
    if candidate.event.type == EXPOSURE and not candidate.event.item_ids:
        return exposure_stream_of(candidate.fact.decision_id)
    return stream_of(candidate.person.member_id, candidate.event.event_id)
