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
    Refusal,
    Signals,
    Status,
    Subject,
    TrackedEvent,
    Verdict,
    behavior_of,
    claim_problem,
    exposure_stream_of,
    is_for_another,
    is_same,
    occurred_at,
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
from services.feedback.metrics import EVENTS_PUT_RIGHT

REUSED = FieldProblem("event_id", "was used for another event of this person; give every event an id of its own")
# Whose identities are all placeholders.
NOBODY = Subject("", "", ())
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

    @property
    def event_key(self) -> str:
        """The sender's id; empty where it does not count: that a whole slate was seen is one fact, whoever tells it."""
        return "" if self.event.type == EXPOSURE and not self.event.item_ids else self.event.event_id

    @property
    def id_space(self) -> str:
        """Within what the event's id is unique: the person; of nobody, who may be many, what the event says."""
        return self.person.subject_id or self.fact.digest.hex()

    @property
    def key(self) -> tuple[str, str]:
        """What the event is once among all of the person's; what comes under it again is not stored again."""
        return (self.id_space, self.event_key) if self.event_key else ("", self.fact.decision_id)

    def streams(self) -> tuple[str, ...]:
        """Where the event is stored, and where else it would lie that came with another of the person's identities."""
        if not self.event_key:
            return (exposure_stream_of(self.fact.decision_id),)
        member_ids = dict.fromkeys(
            [self.person.member_id or self.id_space, *(one.member_id for one in self.person.members)]
        )
        return tuple(stream_of(member_id, self.event_key) for member_id in member_ids)


class _Batch:
    """The events of one call: those with a verdict, and those still open, by their place in the call."""

    def __init__(self, sent: Sequence[TrackedEvent | Verdict]) -> None:
        self.ids = [entry.event_id for entry in sent]
        self.verdicts: list[Verdict | None] = [entry if isinstance(entry, Verdict) else None for entry in sent]
        self.open = {place: _Candidate(e) for place, e in enumerate(sent) if isinstance(e, TrackedEvent)}

    def close(self, place: int, status: Status, problem: FieldProblem | None = None, reason: str = "") -> None:
        """Answer one event and set it aside."""
        self.verdicts[place] = Verdict(self.ids[place], status, problem, reason)
        del self.open[place]

    def close_repeated(self, place: int, stored: Behavior | None) -> None:
        """Answer an event whose id the person has used, for what is *stored* (None: it cannot be told any more)."""
        if stored is None or not self.open[place].event_key or is_same(stored, self.open[place].fact):
            self.close(place, Status.DUPLICATE)
        else:
            self.close(place, Status.REFUSED, REUSED, "EVENT_ID_REUSED")

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

    async def __call__(self, sent: Sequence[TrackedEvent | Verdict], sent_at: datetime | None = None) -> Tracked:
        """Take the events in; an entry that was refused already (its limits) comes as its verdict.

        Args:
            sent_at: the sender's clock when it sent them; None: its clock is taken for right.

        Raises:
            ServiceError: UNAVAILABLE when identity, consent or the log does not answer: nothing of the call
                may be taken as stored, and sending it again is safe.
        """
        now = self._clock.now()
        book = await self._schemas.book()
        batch = _Batch([_by_our_clock(entry, sent_at, now) for entry in sent] if sent_at else sent)
        self._judge(batch, book, now)
        await self._name_people(batch, book)
        await self._ask_consent(batch, book)
        await self._name_shown_items(batch)
        position = await self._record(batch, book, now)
        return Tracked(batch.answered(), position)

    def _judge(self, batch: _Batch, book: SchemaBook, now: datetime) -> None:
        for place, candidate in list(batch.open.items()):
            event, reason = candidate.event, ""
            problem = problem_of(event, book, now)
            if problem is None and event.exposure_token:
                try:
                    candidate.claim = self._tokens.claim(event.exposure_token, now)
                    problem = claim_problem(event, candidate.claim)
                except ServiceError as refusal:
                    problem, reason = refusal.problems[0], refusal.reason
            if problem is not None:
                batch.close(place, Status.REFUSED, problem, reason)

    async def _name_people(self, batch: _Batch, book: SchemaBook) -> None:
        people = list({candidate.event.person: None for candidate in batch.open.values()})
        if not people:
            return
        found: dict[Person, Subject | FieldProblem | None] = dict(
            zip(people, await self._subjects.resolve(people), strict=True)
        )
        problems: dict[int, FieldProblem] = {}
        for place, candidate in list(batch.open.items()):
            subject = found[candidate.event.person]
            if isinstance(subject, FieldProblem):
                problems[place] = subject
            elif subject is not None:
                candidate.subject = subject
            elif book[candidate.event.type].anonymize_without_consent:
                # Who is nobody has agreed to nothing.
                candidate.subject, candidate.is_anonymous = NOBODY, True
                count_refused(Refusal(), is_anonymized=True)
            else:
                EVENTS_DROPPED.labels(reason="nobody").inc()
                batch.close(place, Status.DROPPED_NO_CONSENT)
        batch.refuse(problems)
        await self._name_senders(batch)
        for candidate in batch.open.values():
            candidate.behavior = behavior_of(candidate.event, candidate.person, candidate.claim)

    async def _name_senders(self, batch: _Batch) -> None:
        """Put an event under that one of its identities that its proof is for, where not all of them are one person.

        Somebody saw a slate, logged in, and may not be linked: the event answers the slate of whoever saw it and says
        nothing of the login. A proof for none of the identities is left out, and never costs the event.
        """
        apart = {
            place: [Person((identity,)) for identity in candidate.event.person.identities]
            for place, candidate in batch.open.items()
            if is_for_another(candidate.claim, candidate.person)
        }
        alone = list({person: None for people in apart.values() for person in people})
        found = dict(zip(alone, await self._subjects.resolve(alone), strict=True)) if alone else {}
        for place, people in apart.items():
            candidate = batch.open[place]
            for subject in map(found.__getitem__, people):
                if isinstance(subject, Subject) and not is_for_another(candidate.claim, subject):
                    candidate.subject = subject
            EVENTS_PUT_RIGHT.labels(what="proof_of_another").inc()

    async def _ask_consent(self, batch: _Batch, book: SchemaBook) -> None:
        """Drop, or store without the person, what they do not agree to.

        The authority read is sent after the call began: what was revoked before the call is never stored.
        """
        wanted: dict[tuple[Subject, Signals | None], set[str]] = {}
        needed: dict[int, frozenset[str]] = {}
        for place, candidate in batch.open.items():
            if candidate.is_anonymous:
                continue
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
            if not needed.get(place):
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
        named = {candidate.fact.decision_id for candidate in bare.values() if candidate.fact.decision_id}
        decided = await self._await_decided(named)
        problems: dict[int, FieldProblem] = {}
        for place, candidate in bare.items():
            decision = decided.get(candidate.fact.decision_id)
            if not candidate.fact.decision_id:
                problems[place] = FieldProblem(
                    "exposure_token", "was given out for another subject; send the one that came with the slate"
                )
            elif decision is None:
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
        first: dict[tuple[str, str], Behavior] = {}
        for place, candidate in list(batch.open.items()):
            if first.setdefault(candidate.key, candidate.fact) is not candidate.fact:
                batch.close_repeated(place, first[candidate.key])
        places = list(batch.open)
        behaviors = [self._new(batch.open[place], book, now) for place in places]
        answers = await self._log.record(behaviors) if behaviors else []
        position = ORIGIN
        repeated: dict[int, NewBehavior] = {}
        for place, new, answer in zip(places, behaviors, answers, strict=True):
            if isinstance(answer, LogPosition):
                position = max(position, answer)
                batch.close(place, Status.ANONYMIZED if batch.open[place].is_anonymous else Status.ACCEPTED)
            elif answer is NotRecorded.DUPLICATE:
                repeated[place] = new
            else:
                EVENTS_DROPPED.labels(reason="erased").inc()
                batch.close(place, Status.REFUSED, FieldProblem("subject", "was erased; nothing is stored about it"))
        return max(position, await self._answer_repeated(batch, repeated)) if repeated else position

    async def _answer_repeated(self, batch: _Batch, repeated: dict[int, NewBehavior]) -> LogPosition:
        """Answer events whose ids were used; the position of what was stored under them.

        A caller that repeats a call whose answer was lost waits for what the first one stored.
        """
        stored = await self._log.stored(
            [stream_id for new in repeated.values() for stream_id in (new.stream_id, *new.twin_stream_ids)]
        )
        position = ORIGIN
        for place, new in repeated.items():
            there = [stored[one] for one in (new.stream_id, *new.twin_stream_ids) if one in stored]
            position = max([position, *(entry.position for entry in there)])
            batch.close_repeated(place, there[0].behavior if there else None)
        return position

    def _new(self, candidate: _Candidate, book: SchemaBook, now: datetime) -> NewBehavior:
        event, claim = candidate.event, None if candidate.fact.decision_id == "" else candidate.claim
        happened_at = occurred_at(event.occurred_at, claim, now)
        if event.occurred_at is not None and happened_at != event.occurred_at:
            EVENTS_PUT_RIGHT.labels(what="before_its_decision").inc()
        stream_id, *twins = candidate.streams()
        plain = NewBehavior(stream_id, candidate.person.member_id, happened_at, candidate.fact, tuple(twins))
        return two_ways(plain, book[event.type], self._blinding_key, is_anonymous=candidate.is_anonymous)


def _by_our_clock(entry: TrackedEvent | Verdict, sent_at: datetime, now: datetime) -> TrackedEvent | Verdict:
    """The event with its time put right by how far its sender's clock is off."""
    if isinstance(entry, Verdict) or entry.occurred_at is None:
        return entry
    try:
        return replace(entry, occurred_at=entry.occurred_at + (now - sent_at))
    except OverflowError:  # beyond what a datetime holds: judged as it came
        return entry
