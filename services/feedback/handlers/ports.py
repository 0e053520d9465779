"""What the use cases need from outside; store and clients give it."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol

from services.chassis.errors import FieldProblem
from services.chassis.events import LogPosition
from services.feedback.domain.attribution import Answer, Arrival, Decided, Outcome, Waiting
from services.feedback.domain.behavior import (
    Claim,
    ConsentQuestion,
    NewBehavior,
    NotRecorded,
    Permission,
    Person,
    Stored,
    Subject,
)
from services.feedback.domain.rectification import Rectification
from services.feedback.domain.replay import Kind, Place, Range, Replayed
from services.feedback.domain.schemas import EventSchema, SchemaBook


class Subjects(Protocol):
    """Who people are (identity)."""

    async def resolve(self, people: Sequence[Person]) -> list[Subject | FieldProblem | None]:
        """One subject a person, in that order, or what is wrong with how they were named; None: as nobody.

        Raises:
            ServiceError: UNAVAILABLE (IDENTITY_UNAVAILABLE).
        """
        ...


class Consents(Protocol):
    """What people agreed to (consent), read from the authority."""

    async def allowed(self, questions: Sequence[ConsentQuestion]) -> list[Permission]:
        """What is allowed, one answer a question, in that order.

        Raises:
            ServiceError: UNAVAILABLE (CONSENT_UNAVAILABLE): nobody may be assumed to have agreed.
        """
        ...


class Tokens(Protocol):
    """Proofs of what was decided."""

    def claim(self, token: bytes, now: datetime) -> Claim:
        """What the token says.

        Raises:
            ServiceError: INVALID, with the field's problem, when it is not ours, was changed or has expired.
        """
        ...


class Schemas(Protocol):
    """The declared types of behavior."""

    async def book(self) -> SchemaBook:
        """What is declared now."""
        ...

    async def publish(self, schemas: Sequence[EventSchema], *, version: str, before: SchemaBook) -> bool:
        """Put the schemas on top of *before* under a version; False when the book is not *before* any more."""
        ...


class BehaviorLog(Protocol):
    """The log of behavior and outcomes; what it holds about people is sealed."""

    async def record(self, behaviors: Sequence[NewBehavior]) -> list[LogPosition | NotRecorded]:
        """Record each, durably, and none whose twin is there; one answer each, in that order."""
        ...

    async def record_outcomes(self, outcomes: Sequence[tuple[Outcome, ...]]) -> None:
        """Record the outcomes of each behavior, all or none of one, and none a second time."""
        ...

    async def stored(self, stream_ids: Sequence[str]) -> dict[str, Stored]:
        """What these streams hold, each one behavior, by stream; an empty one is absent."""
        ...

    async def newest(self) -> LogPosition:
        """The last position of anything committed, also where readers cannot yet go."""
        ...

    async def answers(self, after: LogPosition, *, limit: int) -> tuple[list[Answer], LogPosition]:
        """The behaviors that name a decision among the next *limit* events, and where those end."""
        ...

    async def answers_by_id(self, behavior_ids: Sequence[str]) -> list[Answer]:
        """These behaviors, less those of erased people."""
        ...


class Decisions(Protocol):
    """The copy of the decision log."""

    async def decided(self, decision_ids: Sequence[str]) -> dict[str, Decided]:
        """Those that are here and can be opened, by id."""
        ...

    async def arrivals(self, after: LogPosition, *, limit: int) -> list[Arrival]:
        """Up to *limit* decisions in the order they came in."""
        ...

    async def newest_arrival(self) -> LogPosition:
        """The last one that came in, also where readers cannot yet go."""
        ...


class Unread(Protocol):
    """What cannot be read or joined."""

    async def put_aside(self, item: Arrival | Answer, error: Exception) -> None:
        """Keep for an operator that it was passed over, and why; what is there already stays."""
        ...


class Progress(Protocol):
    """How far the joining is, and what waits for its decision."""

    async def forget_impossible(self) -> None:
        """Begin anew where a position is beyond what there can be, and say so."""
        ...

    async def position(self, name: str) -> LogPosition:
        """How far the reader of this name is."""
        ...

    async def advance(self, name: str, position: LogPosition) -> None:
        """The reader is here now."""
        ...

    async def wait(self, waiting: Sequence[Waiting]) -> None:
        """Keep these until their decision comes in; one that is kept already stays as it is."""
        ...

    async def waiting_for(self, decision_ids: Sequence[str]) -> list[Waiting]:
        """What waits for any of these decisions."""
        ...

    async def settle(self, behavior_ids: Sequence[str]) -> None:
        """These wait no longer."""
        ...

    async def expire(self, before: datetime) -> int:
        """Give up on what has waited since before then; how many."""
        ...


class Archive(Protocol):
    """The retained log, read in pages."""

    def pages(
        self,
        kinds: frozenset[Kind],
        within: Range,
        *,
        placement_id: str,
        member_ids: Sequence[str],
        after: Place,
    ) -> AsyncIterator[tuple[list[Replayed], Place]]:
        """The facts of kinds that share a log, in its order, a bounded page at a time, with where the page ends.

        It ends where the log ended when it began, or earlier where what was being recorded then takes long. What cannot
        be opened (erased people) is left out.

        Args:
            member_ids: only what is recorded under these; empty: everything.
            after: only what comes after this place.
        """
        ...


class RecordedBehavior(Protocol):
    """Behavior as it lies in the log, where it may be put right."""

    async def holds(self, event_id: str, member_ids: Sequence[str], behavior_type: str) -> bool:
        """Whether this behavior of one of these members, of this type, is recorded."""
        ...

    async def put_right(self, asked: Rectification) -> int:
        """Put right what is asked, event by event; how many by this request in all.

        Raises:
            ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED); FAILED_PRECONDITION (SUBJECT_ERASED); UNAVAILABLE.
        """
        ...


class Arrived(Protocol):
    """The intake of another service's log."""

    async def await_position(self, position: LogPosition, timeout_s: float) -> None:
        """Returns once everything up to the position has been taken in.

        Raises:
            ServiceError: DEADLINE.
        """
        ...
