"""Joins behavior to the decisions it answers, whichever of the two comes first.

One joiner runs at a time, and it does one thing after the other; that is what makes "neither saw the other"
impossible:

- An answer looks for its decision among all that are committed. If it is not there, the answer is put down as
  waiting, and that is committed before anything else is done.
- Decisions are walked in the order they came in, behind the barrier of open transactions; each takes along what
  waits for it. A decision that the answer did not see cannot have been walked past yet, so it will be met later,
  when the answer is already waiting.

Outcomes lie in a stream of their behavior's name, so joining again after a crash, or two joiners for a
moment, record nothing twice. Progress is written after the effect.

A decision or an answer that cannot be read or joined stops nobody: a page that fails other than by an outage is taken
in halves, and what fails alone is put aside.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from services.chassis.clock import Clock
from services.chassis.deadline import remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.feedback.domain.attribution import Answer, Arrival, Decided, Waiting, attribute
from services.feedback.domain.behavior import (
    Behavior,
    ConsentQuestion,
    NewBehavior,
    Permission,
    Person,
    Refusal,
    Subject,
    exposure_stream_of,
    two_ways,
)
from services.feedback.domain.schemas import EXPOSURE, EventSchema, SchemaBook
from services.feedback.handlers.gating import count_refused
from services.feedback.handlers.ports import (
    Arrived,
    BehaviorLog,
    Consents,
    Decisions,
    Progress,
    Schemas,
    Subjects,
    Unread,
)

T = TypeVar("T", Arrival, Answer)

ARRIVALS = "arrivals"
ANSWERS = "answers"
# A page is opened, joined and recorded in one go: large enough that round trips do not count, small in memory.
ARRIVALS_PAGE = 1000
ANSWERS_PAGE = 1000
EXPIRE_EVERY = timedelta(hours=1)
CATCH_UP_POLL_S = 0.02


class JoinOutcomes:
    """The joiner; run by one replica at a time.

    Args:
        blinding_key: see domain.behavior.blinded.
        reward_window: how long after a decision an answer still counts.
    """

    def __init__(
        self,
        *,
        log: BehaviorLog,
        decisions: Decisions,
        progress: Progress,
        schemas: Schemas,
        subjects: Subjects,
        consents: Consents,
        unread: Unread,
        clock: Clock,
        blinding_key: bytes,
        reward_window: timedelta,
    ) -> None:
        self._unread = unread
        self._log = log
        self._decisions = decisions
        self._progress = progress
        self._schemas = schemas
        self._subjects = subjects
        self._consents = consents
        self._clock = clock
        self._blinding_key = blinding_key
        self._reward_window = reward_window
        self._expired_at: datetime | None = None

    async def begin(self) -> None:
        """Make ready to step, once a lead.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        await self._progress.forget_impossible()

    async def step(self) -> bool:
        """Take one page of each side; False when there was nothing to take.

        Raises:
            ServiceError: UNAVAILABLE; the step can be taken again.
        """
        book = await self._schemas.book()
        walked = await self._walk_arrivals(book)
        joined = await self._join_answers(book)
        await self._expire()
        return walked or joined

    async def _walk_arrivals(self, book: SchemaBook) -> bool:
        arrivals = await self._decisions.arrivals(await self._progress.position(ARRIVALS), limit=ARRIVALS_PAGE)
        if not arrivals:
            return False
        await self._apart(arrivals, lambda some: self._arrive(some, book))
        await self._progress.advance(ARRIVALS, arrivals[-1].position)
        return True

    async def _arrive(self, arrivals: Sequence[Arrival], book: SchemaBook) -> None:
        exposure = book.get(EXPOSURE)
        if exposure is not None:
            await self._expose(arrivals, exposure)
        waiting = await self._progress.waiting_for([arrival.decision_id for arrival in arrivals])
        if waiting:
            await self._join_waiting(waiting, book)

    async def _join_waiting(self, waiting: Sequence[Waiting], book: SchemaBook) -> None:
        answers = await self._log.answers_by_id([entry.behavior_id for entry in waiting])
        decided = await self._decisions.decided(sorted({entry.decision_id for entry in waiting}))
        await self._apart(answers, lambda some: self._record(some, decided, book))
        # A decision that cannot be read may be put right, and arrives again then.
        await self._progress.settle([entry.behavior_id for entry in waiting if entry.decision_id in decided])

    async def _join_answers(self, book: SchemaBook) -> bool:
        after = await self._progress.position(ANSWERS)
        read, end = await self._log.answers(after, limit=ANSWERS_PAGE)
        if end == after:
            return False
        answers = [answer for answer in read if _is_rewarded(answer, book)]
        await self._apart(answers, lambda some: self._join_or_wait(some, book))
        await self._progress.advance(ANSWERS, end)
        return True

    async def again(self, behavior_id: str) -> None:
        """Join an answer that was put aside, or have it wait for its decision."""
        book = await self._schemas.book()
        answers = await self._log.answers_by_id([behavior_id])
        await self._join_or_wait([answer for answer in answers if _is_rewarded(answer, book)], book)

    async def _apart(self, items: Sequence[T], work: Callable[[Sequence[T]], Awaitable[None]]) -> None:
        """Do it for all at once; where one of them makes it fail, for the others, and put that one aside.

        Raises:
            ServiceError: an outage, which is everybody's.
        """
        if not items:
            return
        try:
            await work(items)
        except Exception as error:
            if isinstance(error, ServiceError) and error.passes:
                raise
            if len(items) == 1:
                await self._unread.put_aside(items[0], error)
                return
            # What is done twice is recorded once.
            middle = len(items) // 2
            await self._apart(items[:middle], work)
            await self._apart(items[middle:], work)

    async def _join_or_wait(self, answers: Sequence[Answer], book: SchemaBook) -> None:
        decided = await self._decisions.decided(sorted({answer.decision_id for answer in answers}))
        now = self._clock.now()
        # Also for one that is here and cannot be read: it may be put right, and arrives again then.
        await self._progress.wait(
            [Waiting(a.behavior_id, a.decision_id, now) for a in answers if a.decision_id not in decided]
        )
        await self._record(answers, decided, book)

    async def _record(self, answers: Sequence[Answer], decided: dict[str, Decided], book: SchemaBook) -> None:
        outcomes = [
            attribute(
                answer,
                decided[answer.decision_id],
                reward=book[answer.type].reward_of(answer.properties),
                window=self._reward_window,
            )
            for answer in answers
            if answer.decision_id in decided
        ]
        due = [group for group in outcomes if group]
        if due:
            await self._log.record_outcomes(due)

    async def _expose(self, arrivals: Sequence[Arrival], schema: EventSchema) -> None:
        """Record the exposure that an immediate decision is by itself, as far as the person allows it."""
        decided = await self._decisions.decided([arrival.decision_id for arrival in arrivals])
        shown = [entry for entry in decided.values() if entry.immediate and entry.item_ids]
        refusals = await self._refusals(shown, schema) if shown and schema.purposes else {}
        exposures: list[NewBehavior] = []
        for entry in shown:
            refusal = refusals.get(entry.member_id) or _refused_by_signal(entry, schema)
            if refusal is not None:
                count_refused(refusal, is_anonymized=schema.anonymize_without_consent)
            if refusal is None or schema.anonymize_without_consent:
                plain = _exposure_of(entry)
                exposures.append(two_ways(plain, schema, self._blinding_key, is_anonymous=refusal is not None))
        if exposures:
            await self._log.record(exposures)

    async def _refusals(self, shown: Sequence[Decided], schema: EventSchema) -> dict[str, Refusal]:
        """Why members do not agree; who agrees is absent, and who cannot be told any more never agreed."""
        member_ids = list({entry.member_id: None for entry in shown})
        resolved = await self._subjects.resolve([Person(subject_id=member_id) for member_id in member_ids])
        people: dict[str, Subject] = {
            member_id: subject
            for member_id, subject in zip(member_ids, resolved, strict=True)
            if isinstance(subject, Subject)
        }
        questions = [ConsentQuestion(subject.members, schema.purposes) for subject in people.values()]
        answers = await self._consents.allowed(questions) if questions else []
        permissions = dict(zip(people, answers, strict=True))
        refusals = {
            member_id: permissions.get(member_id, Permission(frozenset())).refusal_of(frozenset(schema.purposes))
            for member_id in member_ids
        }
        return {member_id: refusal for member_id, refusal in refusals.items() if refusal is not None}

    async def _expire(self) -> None:
        now = self._clock.now()
        if self._expired_at is None or now - self._expired_at >= EXPIRE_EVERY:
            await self._progress.expire(now - self._reward_window)
            self._expired_at = now


def _is_rewarded(answer: Answer, book: SchemaBook) -> bool:
    return answer.type in book and book[answer.type].is_outcome


def _refused_by_signal(decided: Decided, schema: EventSchema) -> Refusal | None:
    """What the signals of its Decide refused of what an exposure needs; they are gone, and only that is known."""
    signals = (decided.refused_by_signal[name] for name in schema.purposes if name in decided.refused_by_signal)
    signal = next(signals, None)
    return None if signal is None else Refusal("DENIED", signal)


def _exposure_of(decided: Decided) -> NewBehavior:
    behavior = Behavior(
        type=EXPOSURE,
        subject_id=decided.subject_id,
        item_ids=decided.item_ids,
        decision_id=decided.decision_id,
        placement_id=decided.placement_id,
        # It comes from the decision itself.
        decision_proven=True,
    )
    return NewBehavior(exposure_stream_of(decided.decision_id), decided.member_id, decided.decided_at, behavior)


class AwaitJoined:
    """Waits until decisions are in and everything that was tracked before the call is joined to them."""

    def __init__(self, *, arrived: Arrived, log: BehaviorLog, decisions: Decisions, progress: Progress) -> None:
        self._arrived = arrived
        self._log = log
        self._decisions = decisions
        self._progress = progress

    async def __call__(self, position: LogPosition, *, timeout_s: float) -> LogPosition:
        """*position*, once the decisions up to it are in, and they and all that was tracked before are joined.

        Raises:
            ServiceError: DEADLINE.
        """
        loop = asyncio.get_running_loop()
        left_s = remaining_s()
        until = loop.time() + (timeout_s if left_s is None else min(timeout_s, left_s))
        await self._arrived.await_position(position, until - loop.time())
        arrivals, answers = await self._decisions.newest_arrival(), await self._log.newest()
        while not await self._stands_at(arrivals, answers):
            if loop.time() >= until:
                raise ServiceError(
                    Kind.DEADLINE, "POSITION_NOT_REACHED", "The outcomes were not joined in time; ask again."
                )
            await asyncio.sleep(CATCH_UP_POLL_S)
        return position

    async def _stands_at(self, arrivals: LogPosition, answers: LogPosition) -> bool:
        return await self._progress.position(ARRIVALS) >= arrivals and await self._progress.position(ANSWERS) >= answers
