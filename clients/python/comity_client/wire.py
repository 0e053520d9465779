"""Protobuf ↔ dataclasses, the only place that knows both; what is not a sound answer is refused here."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as decision_events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_events_pb2 as feedback_events_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from comity_client.errors import FieldError
from comity_client.incoming import (
    UNENCODABLE,
    Fact,
    candidates_of,
    entry,
    facts_of,
    finite,
    id_of,
    identities_of,
    is_writable,
    item_ids_of,
    signals_of,
    text_of,
    texts_of,
)
from comity_client.results import ConsentSignals, Decision, Entry, Happening, Placement, Tracked, TrackedStatus

SLATE_ENTRIES_MAX = 100

_STATUSES: Mapping[int, TrackedStatus] = {
    feedback_pb.TRACK_STATUS_ACCEPTED: "ACCEPTED",
    feedback_pb.TRACK_STATUS_DUPLICATE: "DUPLICATE",
    feedback_pb.TRACK_STATUS_REFUSED: "REFUSED",
    feedback_pb.TRACK_STATUS_DROPPED_NO_CONSENT: "DROPPED_NO_CONSENT",
    feedback_pb.TRACK_STATUS_ANONYMIZED: "ANONYMIZED",
}


class GarbageError(Exception):
    """An answer that no correct server gives."""


class EmptyError(Exception):
    """An answer that leaves it to the caller's own default; its text is the reason."""


def decide_request(
    request_id: str,
    identities: Mapping[str, str | None],
    placements: Sequence[Placement],
    *,
    context: Mapping[str, Fact | None],
    candidate_ids: Sequence[str],
    excluded_item_ids: Sequence[str],
    consent_signals: ConsentSignals | None,
    deferred: bool,
    template_version: str = "",
) -> decision_pb.DecideRequest:
    """The request for these placements.

    Raises:
        FieldError: a value of the program's cannot be sent.
    """
    candidates = candidates_of("candidate_ids", candidate_ids)
    excluded = item_ids_of("excluded_item_ids", excluded_item_ids)
    return decision_pb.DecideRequest(
        request_id=id_of("request_id", request_id),
        identities=identities_of(identities),
        placements=[
            _placement(f"placements[{index}]", one, candidates, excluded) for index, one in enumerate(placements)
        ],
        context={key: _context_fact(value) for key, value in facts_of(context).items()},
        consent_signals=signals_of(consent_signals),
        activation=decision_events_pb.ACTIVATION_DEFERRED if deferred else decision_events_pb.ACTIVATION_IMMEDIATE,
        template_version=text_of("template_version", template_version),
    )


def _placement(field: str, one: Placement, candidates: list[str], excluded: list[str]) -> decision_pb.PlacementRequest:
    size = one.slate_size
    if not isinstance(size, int) or not 0 <= size <= SLATE_ENTRIES_MAX:
        raise FieldError(f"{field}.slate_size", f"must be a whole number from 0 to {SLATE_ENTRIES_MAX}")
    return decision_pb.PlacementRequest(
        placement_id=text_of(field, one.placement_id),
        candidate_ids=candidates_of(f"{field}.candidate_ids", one.candidate_ids) or candidates,
        slate_size=size,
        excluded_item_ids=[*excluded, *item_ids_of(f"{field}.excluded_item_ids", one.excluded_item_ids)],
    )


def decision_of(answer: decision_pb.PlacementDecision, *, placement_id: str) -> Decision:
    """The answer for the placement.

    Raises:
        EmptyError: exclusions left nothing of what the site declares.
        GarbageError: it is for another placement, empty for no reason, or not a slate.
    """
    which = answer.WhichOneof("answer")
    if answer.placement_id != placement_id or which is None:
        raise GarbageError
    slate = answer.slate if which == "slate" else answer.fallback
    entries = tuple(_entry(entry) for entry in slate.entries)
    fallback_reason = word(decision_events_pb.FallbackReason.DESCRIPTOR, answer.fallback_reason)
    if not entries and fallback_reason == "NO_ELIGIBLE_CANDIDATES":
        raise EmptyError(fallback_reason)
    if not 0 < len(entries) <= SLATE_ENTRIES_MAX:
        raise GarbageError
    return Decision(
        placement_id=placement_id,
        entries=entries,
        source="slate" if which == "slate" else "fallback",
        reason=word(decision_events_pb.Reason.DESCRIPTOR, answer.reason),
        fallback_reason=fallback_reason,
        decision_id=answer.decision_id,
        exposure_token=answer.exposure_token,
        learnable=answer.learnable,
        holdout=answer.assignment.holdout,
        versions={field.name: str(value) for field, value in answer.versions.ListFields()},
        layer=word(types_pb.SubjectLevel.DESCRIPTOR, answer.layer),
    )


def tracked_event(happening: Happening) -> feedback_pb.TrackedEvent:
    """The event; a decision that the client made itself is left out, for the log does not know it.

    Raises:
        FieldError: a value cannot be sent.
    """
    event = feedback_pb.TrackedEvent(
        event_id=id_of("event_id", happening.event_id),
        type=writable("type", happening.type),
        subject=types_pb.SubjectRef(identities=identities_of(happening.identities)),
        item_ids=[
            writable(f"item_ids[{index}]", one) for index, one in enumerate(texts_of("item_ids", happening.item_ids))
        ],
        properties={
            writable("properties", name): _property_value(name, value) for name, value in happening.properties.items()
        },
        consent_signals=signals_of(happening.consent_signals),
    )
    if happening.occurred_at is not None:
        event.occurred_at.CopyFrom(moment_of("occurred_at", happening.occurred_at))
    decision = happening.decision
    if decision is not None and not isinstance(decision, Decision):
        raise FieldError("decision", f"must be a Decision that decide gave, not {type(decision).__name__}")
    if decision is not None and decision.exposure_token:
        event.decision_id = decision.decision_id
        event.exposure_token = decision.exposure_token
    return event


def tracked_of(result: feedback_pb.TrackResult, *, event_id: str) -> Tracked:
    """What became of the event.

    Raises:
        GarbageError: the result is another event's, or says nothing.
    """
    status = _STATUSES.get(result.status)
    if result.event_id != event_id or status is None:
        raise GarbageError
    return Tracked(event_id=event_id, status=status, field=result.field, problem=result.problem, reason=result.reason)


def moment_of(field: str, at: datetime) -> Timestamp:
    """The moment.

    Raises:
        FieldError: it is none, or has no time zone.
    """
    if not isinstance(at, datetime):
        raise FieldError(field, f"must be a datetime, not {type(at).__name__}")
    if at.tzinfo is None:
        raise FieldError(field, "must be aware: give it a time zone")
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def writable(field: str, value: object) -> str:
    """The text.

    Raises:
        FieldError: it is none, or has a lone surrogate.
    """
    text = text_of(field, value)
    if not is_writable(text):
        raise FieldError(field, UNENCODABLE, from_visitor=True)
    return text


def _entry(entry: decision_events_pb.SlateEntry) -> Entry:
    if not entry.item_id or not 0.0 < entry.propensity <= 1.0:
        raise GarbageError
    return Entry(
        item_id=entry.item_id,
        variant_id=entry.variant_id,
        slot=entry.slot,
        score=entry.score,
        propensity=entry.propensity,
        reason=word(decision_events_pb.Reason.DESCRIPTOR, entry.reason),
    )


def word(enum: EnumDescriptor, number: int) -> str:
    """RANKED for REASON_RANKED; empty for UNSPECIFIED; the number where a newer server knows a word that we do not."""
    if not number:
        return ""
    found = enum.values_by_number.get(number)
    # Every enum's zero is <PREFIX>_UNSPECIFIED, which tells the prefix of the others.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(number) if found is None else found.name.removeprefix(prefix)


def _context_fact(value: Fact) -> decision_events_pb.ContextFact:
    if isinstance(value, bool):
        return decision_events_pb.ContextFact(boolean_value=value)
    if isinstance(value, str):
        return decision_events_pb.ContextFact(string_value=value)
    return decision_events_pb.ContextFact(number_value=value)


def _property_value(name: str, value: object) -> feedback_events_pb.PropertyValue:
    field = entry("properties", name)
    if isinstance(value, bool):
        return feedback_events_pb.PropertyValue(boolean_value=value)
    if isinstance(value, str):
        return feedback_events_pb.PropertyValue(string_value=writable(field, value))
    if not isinstance(value, int | float):
        raise FieldError(field, f"must be text, a number or a boolean, not {type(value).__name__}")
    number = finite(value)
    if number is None:
        raise FieldError(field, "is not a finite number", from_visitor=True)
    return feedback_events_pb.PropertyValue(number_value=number)
