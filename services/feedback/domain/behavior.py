"""Behavior as it is sent, and whether it can be taken in; consent is asked elsewhere."""

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum

from services.chassis.errors import FieldProblem
from services.chassis.events import LogPosition
from services.feedback.domain.schemas import EXPOSURE, EventProperty, EventSchema, PropertyKind, SchemaBook

AHEAD_MAX = timedelta(minutes=5)
"""How far a sender's clock may be ahead of ours."""

NAMED_TYPES_MAX = 20
"""How many declared types a refusal of an unknown one names."""

PropertyValue = str | float | bool


class Status(StrEnum):
    """How an event was answered."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    REFUSED = "REFUSED"
    DROPPED_NO_CONSENT = "DROPPED_NO_CONSENT"
    ANONYMIZED = "ANONYMIZED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one event; *problem* is set where it was refused, *reason* where programs have a word for it."""

    event_id: str
    status: Status
    problem: FieldProblem | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """An identifier in a namespace; passed to identity, never kept."""

    namespace: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Person:
    """Whom an event is about: identities, or the pseudonym alone."""

    identities: tuple[Identity, ...] = ()
    subject_id: str = ""


@dataclass(frozen=True, slots=True)
class Signals:
    """What the person's browser or consent platform says with an event; passed on to consent and kept nowhere.

    Args:
        jurisdiction: where the person is; empty: the event does not say.
        do_not_personalize: the person objects to personalization.
    """

    gpc: str = field(default="", repr=False)
    tc_string: str = field(default="", repr=False)
    gpp: str = field(default="", repr=False)
    usp: str = field(default="", repr=False)
    jurisdiction: str = ""
    do_not_personalize: bool = False


@dataclass(frozen=True, slots=True)
class TrackedEvent:
    """An event as the caller sent it; *occurred_at* and *signals* are None where none came."""

    event_id: str
    type: str
    person: Person
    occurred_at: datetime | None = None
    item_ids: tuple[str, ...] = ()
    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    decision_id: str = ""
    exposure_token: bytes = b""
    signals: Signals | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One of a person's pseudonyms, and when it was merged in (None: it began with it)."""

    member_id: str
    merged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """The person that identity knows: the canonical pseudonym, the member to record under, all members.

    Args:
        required_purposes: must be allowed before anything is recorded: the person was recognized by an identity that
            needs them.
    """

    subject_id: str
    member_id: str
    members: tuple[Member, ...]
    required_purposes: frozenset[str] = frozenset()

    def has(self, member_id: str) -> bool:
        """Whether the pseudonym is one of this person's."""
        return member_id == self.subject_id or any(member.member_id == member_id for member in self.members)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a valid exposure token says was decided, when, and for whom; no member where identity could not say."""

    decision_id: str
    placement_id: str
    member_id: str
    decided_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Behavior:
    """A fact about to be recorded: what BehaviorRecorded holds.

    Args:
        digest: see digest_of; empty where the sender did not write it, where the person is left out, and in facts that
            a release before recorded.
    """

    type: str
    subject_id: str
    item_ids: tuple[str, ...] = ()
    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    decision_id: str = ""
    placement_id: str = ""
    decision_proven: bool = False
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class NewBehavior:
    """A behavior to record, under whom, when, and in which stream (it can be there once).

    Args:
        member_id: empty: it is nobody's, and is not sealed.
        twin_stream_ids: where the same behavior would lie that was recorded with the person (without, if this is with),
            or under another of the person's members: what is there already is not recorded a second time when the
            person changes their mind, or presents other identities, between two tries.
    """

    stream_id: str
    member_id: str
    occurred_at: datetime
    behavior: Behavior
    twin_stream_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """A behavior that is in the log, and where; None: it cannot be opened any more."""

    position: LogPosition
    behavior: Behavior | None


class NotRecorded(Enum):
    """Why a behavior was not recorded now."""

    DUPLICATE = "its stream, or a twin, holds something already"
    ERASED = "the person was erased: nothing about them is stored again"


@dataclass(frozen=True, slots=True)
class ConsentQuestion:
    """Which of these purposes the person with these members allows, by the ledger and by what came with the event."""

    members: tuple[Member, ...]
    purposes: tuple[str, ...]
    signals: Signals | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a purpose is not allowed, in consent's own words, of which there are few.

    Args:
        state: NEVER_ASKED, DENIED, REVOKED, EXPIRED or OBJECTED.
        signal: that decided it; empty where the ledger did.
    """

    state: str = "NEVER_ASKED"
    signal: str = ""


@dataclass(frozen=True, slots=True)
class Permission:
    """What a person allows of what was asked, and why not the rest."""

    allowed: frozenset[str]
    refusals: Mapping[str, Refusal] = field(default_factory=dict)

    def refusal_of(self, purposes: frozenset[str]) -> Refusal | None:
        """Why these purposes are not all allowed; None when they are."""
        missing = sorted(purposes - self.allowed)
        return self.refusals.get(missing[0], Refusal()) if missing else None


def problem_of(event: TrackedEvent, book: SchemaBook, now: datetime) -> FieldProblem | None:
    """The first thing that keeps an event from being taken in, whoever it is about; None when nothing does."""
    schema = book.get(event.type)
    if schema is None:
        return FieldProblem("type", unknown_type(book))
    return _frame_problem(event, now) or _item_problem(event, schema) or _property_problem(event.properties, schema)


def _frame_problem(event: TrackedEvent, now: datetime) -> FieldProblem | None:
    if bool(event.person.identities) == bool(event.person.subject_id):
        return FieldProblem("subject", "give either identities or subject_id")
    if event.occurred_at is not None and event.occurred_at - now > AHEAD_MAX:
        return FieldProblem("occurred_at", "is more than 5 minutes ahead of the server's clock; set the sender's clock")
    return None


def _item_problem(event: TrackedEvent, schema: EventSchema) -> FieldProblem | None:
    if schema.type == EXPOSURE:
        if not (event.item_ids or event.decision_id or event.exposure_token):
            return FieldProblem("item_ids", "an exposure names what was shown, or the decision that chose it")
    elif schema.item_required and not event.item_ids:
        return FieldProblem("item_ids", f"an event of type {schema.type} needs at least one item")
    if "" in event.item_ids:
        return FieldProblem("item_ids", "an item id is empty; leave it out")
    return None


def unknown_type(book: SchemaBook) -> str:
    """What to tell a caller whose type is not declared."""
    if not book:
        return "is not declared: no type is yet; publish the site's event schemas first"
    names = sorted(book)
    more = "" if len(names) <= NAMED_TYPES_MAX else f" and {len(names) - NAMED_TYPES_MAX} more"
    return f"is not declared; declared types are {', '.join(names[:NAMED_TYPES_MAX])}{more}"


def _property_problem(values: Mapping[str, PropertyValue], schema: EventSchema) -> FieldProblem | None:
    declared = {entry.name: entry for entry in schema.properties}
    for name, value in values.items():
        entry = declared.get(name)
        if entry is None:
            # The name is the sender's and may hold anything: it is not repeated.
            return FieldProblem(
                "properties", f"holds one that {schema.type} does not declare; {_declared_names(schema)}"
            )
        problem = value_problem(entry, value)
        if problem is not None:
            return problem
    for entry in schema.properties:
        if entry.required and entry.name not in values:
            return FieldProblem(f"properties.{entry.name}", f"is required for an event of type {schema.type}")
    return None


def _declared_names(schema: EventSchema) -> str:
    if not schema.properties:
        return "it declares none"
    return "it declares " + ", ".join(entry.name for entry in schema.properties)


def value_problem(entry: EventProperty, value: PropertyValue) -> FieldProblem | None:
    """Why the value is none of this property; None when it is one."""
    field_name = f"properties.{entry.name}"
    if entry.kind not in (_kind_of(value), PropertyKind.UNKNOWN):
        return FieldProblem(field_name, f"must be a {entry.kind.value}")
    if isinstance(value, float) and not math.isfinite(value):
        return FieldProblem(field_name, "must be a finite number")
    return None


def _kind_of(value: PropertyValue) -> PropertyKind:
    if isinstance(value, bool):
        return PropertyKind.BOOLEAN
    return PropertyKind.STRING if isinstance(value, str) else PropertyKind.NUMBER


def claim_problem(event: TrackedEvent, claim: Claim) -> FieldProblem | None:
    """Why a token, valid in itself, proves nothing for this event, whoever sent it; None when it does."""
    if event.decision_id and event.decision_id != claim.decision_id:
        return FieldProblem("exposure_token", "was given out for another decision; send the one that came with it")
    return None


def is_for_another(claim: Claim | None, subject: Subject) -> bool:
    """Whether a token was given out for somebody else: to join the two would be to link them."""
    return claim is not None and claim.member_id != "" and not subject.has(claim.member_id)


def behavior_of(event: TrackedEvent, subject: Subject, claim: Claim | None) -> Behavior:
    """The fact that an event becomes."""
    decision_id = claim.decision_id if claim is not None else event.decision_id
    sent = Behavior(
        type=event.type,
        subject_id=subject.subject_id,
        item_ids=event.item_ids,
        properties=event.properties,
        decision_id=decision_id,
        placement_id=claim.placement_id if claim is not None else "",
        decision_proven=claim is not None and claim.member_id != "",
        digest=digest_of(event.type, event.item_ids, event.properties, decision_id),
    )
    if is_for_another(claim, subject):
        return replace(sent, decision_id="", placement_id="", decision_proven=False)
    return sent


def digest_of(
    event_type: str, item_ids: Sequence[str], properties: Mapping[str, PropertyValue], decision_id: str
) -> bytes:
    """16 bytes of what a sender says with an event; not the person, times and signals, which its retries change."""
    said = [event_type, list(item_ids), sorted(properties.items()), decision_id]
    return hashlib.sha256(json.dumps(said).encode()).digest()[:16]


def is_same(stored: Behavior, sent: Behavior) -> bool:
    """Whether what is stored is what is sent again; of what is nobody's only type and items can be compared."""
    if not (stored.subject_id and sent.subject_id):
        return (stored.type, stored.item_ids) == (sent.type, sent.item_ids)
    digest = stored.digest or digest_of(stored.type, stored.item_ids, stored.properties, stored.decision_id)
    return digest == sent.digest


def occurred_at(sent_at: datetime | None, claim: Claim | None, now: datetime) -> datetime:
    """When an event happened: when its sender says, now where it does not, and not before the decision it proves."""
    moment = sent_at or now
    decided_at = claim.decided_at if claim is not None else None
    return moment if decided_at is None else max(moment, decided_at)


def anonymous(behavior: Behavior) -> Behavior:
    """What is left of a behavior without the person: its type and its items.

    A decision is made for somebody: its id would lead back to the person, as any property might.
    """
    return Behavior(type=behavior.type, subject_id="", item_ids=behavior.item_ids)


def stream_of(member_id: str, event_id: str) -> str:
    """The stream that can hold this event of this member once: sending it again finds it taken.

    The sender's id is hashed together with the member, so that two members may use the same one and so that
    nothing the sender put into it is kept.
    """
    return "behavior-" + hashlib.sha256(f"{member_id}\0{event_id}".encode()).hexdigest()[:32]


def exposure_stream_of(decision_id: str) -> str:
    """The stream of the exposure of a decision's whole slate."""
    return "behavior-" + hashlib.sha256(f"exposure\0{decision_id}".encode()).hexdigest()[:32]


def blinded(stream_id: str, key: bytes) -> str:
    """The stream of the same behavior without the person.

    Whoever sends it again finds it taken, and nobody without the key can tell whose it is by trying members and ids.
    """
    return "behavior-" + hmac.digest(key, stream_id.encode(), "sha256").hex()[:32]


def two_ways(plain: NewBehavior, schema: EventSchema, key: bytes, *, is_anonymous: bool) -> NewBehavior:
    """The behavior as it is to be recorded: with the person, or without; of a type that can be both, never both."""
    if not schema.anonymize_without_consent:
        return plain
    twins = plain.twin_stream_ids
    without = [blinded(stream_id, key) for stream_id in (plain.stream_id, *twins)]
    if is_anonymous:
        there = (plain.stream_id, *twins, *without[1:])
        return NewBehavior(without[0], "", plain.occurred_at, anonymous(plain.behavior), there)
    return replace(plain, twin_stream_ids=(*twins, *without))
