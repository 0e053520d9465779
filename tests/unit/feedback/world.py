"""A feedback service in memory: the ports as honest fakes, with switches for what a test is about."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from services.chassis.clock import FakeClock
from services.chassis.errors import FieldProblem, Kind, ServiceError, invalid
from services.chassis.events import ORIGIN, LogPosition
from services.feedback.domain.attribution import Answer, Arrival, Decided, Outcome, Waiting, outcome_stream_of
from services.feedback.domain.behavior import (
    Claim,
    ConsentQuestion,
    Identity,
    Member,
    NewBehavior,
    NotRecorded,
    Permission,
    Person,
    Refusal,
    Stored,
    Subject,
    TrackedEvent,
)
from services.feedback.domain.schemas import EXPOSURE, EventProperty, EventSchema, PropertyKind, SchemaBook
from services.feedback.handlers.join import JoinOutcomes
from services.feedback.handlers.track import TrackBehavior

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WINDOW = timedelta(days=7)


def schema(name: str, **changes: object) -> EventSchema:
    """A declared type that asks for `measurement`."""
    plain = EventSchema(
        type=name,
        description="as in the test",
        purposes=("measurement",),
        owner="team",
        reason="a test",
        retention_days=30,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


BOOK: dict[str, EventSchema] = {
    "click": schema("click", item_required=True, reward=1.0),
    "page_viewed": schema("page_viewed", purposes=()),
    "purchase": schema(
        "purchase", properties=(EventProperty("amount", PropertyKind.NUMBER),), reward=5.0, reward_property="amount"
    ),
    "search": schema(
        "search",
        properties=(
            EventProperty("query", PropertyKind.STRING, required=True),
            EventProperty("results", PropertyKind.NUMBER),
            EventProperty("spelled", PropertyKind.BOOLEAN),
        ),
    ),
    EXPOSURE: schema(EXPOSURE),
}


def member(name: str) -> str:
    """A pseudonym that a test can read: the name, padded to 26 characters."""
    return name.ljust(26, "a")


def person(name: str) -> Person:
    """A person as a backend presents them."""
    return Person(identities=(Identity("user_id", name),))


def event(event_id: str, kind: str = "click", *, who: str = "ann", **changes: object) -> TrackedEvent:
    """An event as it is sent; a click on item 1 unless it says otherwise."""
    items: tuple[str, ...] = ("1",) if kind == "click" else ()
    plain = TrackedEvent(event_id=event_id, type=kind, person=person(who), item_ids=items)
    return replace(plain, **changes)  # type: ignore[arg-type]


BLINDING_KEY = b"blinding"


class FakeSubjects:
    """People by user id; `merged` joins two of them."""

    def __init__(self) -> None:
        self.members: dict[str, tuple[str, ...]] = {}
        self.required: dict[str, frozenset[str]] = {}
        self.calls: list[int] = []
        self.down = False

    def merge(self, first: str, second: str) -> None:
        """From now on both are one person, with the first as canonical."""
        both = (member(first), member(second))
        for name in both:
            self.members[name] = both

    async def resolve(self, people: Sequence[Person]) -> list[Subject | FieldProblem | None]:
        """See handlers.ports.Subjects."""
        if self.down:
            raise ServiceError(Kind.UNAVAILABLE, "IDENTITY_UNAVAILABLE", "down")
        self.calls.append(len(people))
        return [self._one(entry) for entry in people]

    def _one(self, entry: Person) -> Subject | FieldProblem | None:
        if entry.identities and entry.identities[0].value in ("", "undefined"):
            return None
        if any(identity.namespace not in ("user_id", "anonymous_id") for identity in entry.identities):
            return FieldProblem("subject", "the namespace is not known")
        name = entry.subject_id or member(entry.identities[0].value)
        members = self.members.get(name, (name,))
        required = self.required.get(name, frozenset())
        return Subject(members[0], name, tuple(Member(one) for one in members), required)


class FakeConsents:
    """Everybody allows everything, but for what is in `refused`: (member, purpose)."""

    def __init__(self) -> None:
        self.refused: set[tuple[str, str]] = set()
        self.calls: list[int] = []
        self.down = False

    async def allowed(self, questions: Sequence[ConsentQuestion]) -> list[Permission]:
        """See handlers.ports.Consents."""
        if self.down:
            raise ServiceError(Kind.UNAVAILABLE, "CONSENT_UNAVAILABLE", "down")
        self.calls.append(len(questions))
        return [self._answer(question) for question in questions]

    def _answer(self, question: ConsentQuestion) -> Permission:
        if question.signals is not None and question.signals.gpc == "1":
            return Permission(frozenset(), dict.fromkeys(question.purposes, Refusal("OBJECTED", "gpc")))
        refused = {
            purpose
            for purpose in question.purposes
            if any((one.member_id, purpose) in self.refused for one in question.members)
        }
        return Permission(frozenset(question.purposes) - refused, dict.fromkeys(refused, Refusal("DENIED")))


class FakeTokens:
    """Tokens that a test wrote down."""

    def __init__(self) -> None:
        self.claims: dict[bytes, Claim] = {}

    def claim(self, token: bytes, now: datetime) -> Claim:
        """See handlers.ports.Tokens."""
        if token not in self.claims:
            raise invalid("exposure_token", "is not one of ours")
        return self.claims[token]


class FakeSchemas:
    """A book that a test may change."""

    def __init__(self, book: SchemaBook) -> None:
        self.declared = dict(book)
        self.races = 0

    async def book(self) -> SchemaBook:
        """See handlers.ports.Schemas."""
        return self.declared

    async def publish(self, schemas: Sequence[EventSchema], *, version: str, before: SchemaBook) -> bool:
        """See handlers.ports.Schemas."""
        if self.races:
            self.races -= 1
            return False
        self.declared = {**before, **{entry.type: entry for entry in schemas}}
        return True


@dataclass
class FakeLog:
    """The log of behavior and outcomes, in lists."""

    streams: dict[str, LogPosition] = field(default_factory=dict)
    behaviors: list[tuple[str, NewBehavior]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    erased: set[str] = field(default_factory=set)
    calls: int = 0

    def _next(self) -> LogPosition:
        return LogPosition(1, len(self.streams) + 1, len(self.streams) + 1)

    async def record(self, behaviors: Sequence[NewBehavior]) -> list[LogPosition | NotRecorded]:
        """See handlers.ports.BehaviorLog."""
        self.calls += 1
        answers: list[LogPosition | NotRecorded] = []
        for entry in behaviors:
            if entry.member_id in self.erased:
                answers.append(NotRecorded.ERASED)
            elif any(stream_id in self.streams for stream_id in (entry.stream_id, *entry.twin_stream_ids)):
                answers.append(NotRecorded.DUPLICATE)
            else:
                position = self._next()
                self.streams[entry.stream_id] = position
                self.behaviors.append((f"b{len(self.behaviors)}", entry))
                answers.append(position)
        return answers

    async def record_outcomes(self, outcomes: Sequence[tuple[Outcome, ...]]) -> None:
        """See handlers.ports.BehaviorLog."""
        for group in outcomes:
            stream = outcome_stream_of(group[0].behavior_id)
            if stream not in self.streams:
                self.streams[stream] = self._next()
                self.outcomes.extend(group)

    async def stored(self, stream_ids: Sequence[str]) -> dict[str, Stored]:
        """See handlers.ports.BehaviorLog."""
        facts = {entry.stream_id: entry.behavior for _, entry in self.behaviors}
        return {one: Stored(self.streams[one], facts[one]) for one in stream_ids if one in facts}

    async def newest(self) -> LogPosition:
        """See handlers.ports.BehaviorLog."""
        return max(self.streams.values(), default=ORIGIN)

    async def answers(self, after: LogPosition, *, limit: int) -> tuple[list[Answer], LogPosition]:
        """See handlers.ports.BehaviorLog."""
        later = [(name, entry) for name, entry in self.behaviors if self.streams[entry.stream_id] > after][:limit]
        end = max([self.streams[entry.stream_id] for _, entry in later], default=after)
        return [_answer(name, entry) for name, entry in later if entry.behavior.decision_id], end

    async def answers_by_id(self, behavior_ids: Sequence[str]) -> list[Answer]:
        """See handlers.ports.BehaviorLog."""
        return [_answer(name, entry) for name, entry in self.behaviors if name in behavior_ids]


def _answer(name: str, entry: NewBehavior) -> Answer:
    return Answer(
        behavior_id=name,
        type=entry.behavior.type,
        member_id=entry.member_id,
        subject_id=entry.behavior.subject_id,
        decision_id=entry.behavior.decision_id,
        decision_proven=entry.behavior.decision_proven,
        item_ids=entry.behavior.item_ids,
        occurred_at=entry.occurred_at,
        properties=entry.behavior.properties,
    )


class FakeDecisions:
    """The copy of the decision log, in a dict."""

    def __init__(self) -> None:
        self.facts: dict[str, tuple[Decided, LogPosition]] = {}
        self.unreadable: set[str] = set()

    def arrive(self, decided: Decided) -> None:
        """The decision comes in, or again."""
        place = max((position.position for _, position in self.facts.values()), default=0) + 1
        self.facts[decided.decision_id] = (decided, LogPosition(1, place, place))

    async def decided(self, decision_ids: Sequence[str]) -> dict[str, Decided]:
        """See handlers.ports.Decisions."""
        return {one: self.facts[one][0] for one in decision_ids if one in self.facts and one not in self.unreadable}

    async def arrivals(self, after: LogPosition, *, limit: int) -> list[Arrival]:
        """See handlers.ports.Decisions."""
        facts = [Arrival(one, d.member_id, p) for one, (d, p) in self.facts.items() if p > after]
        return sorted(facts, key=lambda arrival: arrival.position)[:limit]

    async def newest_arrival(self) -> LogPosition:
        """See handlers.ports.Decisions."""
        return max((position for _, position in self.facts.values()), default=ORIGIN)


class FakeUnread:
    """What was put aside, in a list."""

    def __init__(self) -> None:
        self.items: list[tuple[Arrival | Answer, Exception]] = []

    async def put_aside(self, item: Arrival | Answer, error: Exception) -> None:
        """See handlers.ports.Unread."""
        self.items.append((item, error))


@dataclass
class FakeProgress:
    """Positions and pending answers, in dicts."""

    positions: dict[str, LogPosition] = field(default_factory=dict)
    pending: dict[str, Waiting] = field(default_factory=dict)

    async def forget_impossible(self) -> None:
        """See handlers.ports.Progress."""

    async def position(self, name: str) -> LogPosition:
        """See handlers.ports.Progress."""
        return self.positions.get(name, ORIGIN)

    async def advance(self, name: str, position: LogPosition) -> None:
        """See handlers.ports.Progress."""
        self.positions[name] = position

    async def wait(self, waiting: Sequence[Waiting]) -> None:
        """See handlers.ports.Progress."""
        for entry in waiting:
            self.pending.setdefault(entry.behavior_id, entry)

    async def waiting_for(self, decision_ids: Sequence[str]) -> list[Waiting]:
        """See handlers.ports.Progress."""
        return [entry for entry in self.pending.values() if entry.decision_id in decision_ids]

    async def settle(self, behavior_ids: Sequence[str]) -> None:
        """See handlers.ports.Progress."""
        for behavior_id in behavior_ids:
            self.pending.pop(behavior_id, None)

    async def expire(self, before: datetime) -> int:
        """See handlers.ports.Progress."""
        late = [one for one, entry in self.pending.items() if entry.since < before]
        await self.settle(late)
        return len(late)


class World:
    """Everything together."""

    def __init__(self, book: SchemaBook = BOOK) -> None:
        self.clock = FakeClock(NOW)
        self.subjects = FakeSubjects()
        self.consents = FakeConsents()
        self.tokens = FakeTokens()
        self.schemas = FakeSchemas(book)
        self.log = FakeLog()
        self.decisions = FakeDecisions()
        self.progress = FakeProgress()
        self.unread = FakeUnread()
        self.track = TrackBehavior(
            subjects=self.subjects,
            consents=self.consents,
            tokens=self.tokens,
            schemas=self.schemas,
            log=self.log,
            decisions=self.decisions,
            clock=self.clock,
            blinding_key=BLINDING_KEY,
            decision_wait_s=0.0,
        )
        self.join = JoinOutcomes(
            log=self.log,
            decisions=self.decisions,
            progress=self.progress,
            schemas=self.schemas,
            subjects=self.subjects,
            consents=self.consents,
            unread=self.unread,
            clock=self.clock,
            blinding_key=BLINDING_KEY,
            reward_window=WINDOW,
        )

    async def settle(self) -> None:
        """Join until there is nothing left to join."""
        while await self.join.step():
            pass


def decided(decision_id: str = "d1", *, who: str = "ann", **changes: object) -> Decided:
    """A decision that showed items 1, 2 and 3."""
    plain = Decided(
        decision_id=decision_id,
        placement_id="home",
        member_id=member(who),
        subject_id=member(who),
        decided_at=NOW - timedelta(seconds=5),
        item_ids=("1", "2", "3"),
        immediate=False,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
