"""Protobuf ↔ dataclasses, the only place that knows both; what is not a sound answer is refused here."""

from collections.abc import Mapping, Sequence

from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as decision_events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_events_pb2 as feedback_events_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf.descriptor import EnumDescriptor

from comity_client.results import ConsentSignals, Decision, Entry, Happening, Tracked, TrackedStatus

Fact = str | float | bool
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


def identities_of(identities: Mapping[str, str]) -> list[types_pb.Identity]:
    """Namespace → value, as messages."""
    return [types_pb.Identity(namespace=namespace, value=value) for namespace, value in identities.items()]


def decide_request(
    request_id: str,
    identities: Mapping[str, str],
    placements: Sequence[str],
    *,
    context: Mapping[str, Fact],
    candidate_ids: Sequence[str],
    excluded_item_ids: Sequence[str],
    consent_signals: ConsentSignals | None,
    deferred: bool,
    template_version: str = "",
) -> decision_pb.DecideRequest:
    """The request for these placements."""
    return decision_pb.DecideRequest(
        request_id=request_id,
        identities=identities_of(identities),
        placements=[
            decision_pb.PlacementRequest(
                placement_id=placement, candidate_ids=candidate_ids, excluded_item_ids=excluded_item_ids
            )
            for placement in placements
        ],
        context={key: _context_fact(value) for key, value in context.items()},
        consent_signals=_signals(consent_signals),
        activation=decision_events_pb.ACTIVATION_DEFERRED if deferred else decision_events_pb.ACTIVATION_IMMEDIATE,
        template_version=template_version,
    )


def decision_of(answer: decision_pb.PlacementDecision, *, placement_id: str) -> Decision:
    """The answer for the placement.

    Raises:
        GarbageError: it is for another placement, empty, or not a slate.
    """
    which = answer.WhichOneof("answer")
    if answer.placement_id != placement_id or which is None:
        raise GarbageError
    slate = answer.slate if which == "slate" else answer.fallback
    entries = tuple(_entry(entry) for entry in slate.entries)
    if not 0 < len(entries) <= SLATE_ENTRIES_MAX:
        raise GarbageError
    return Decision(
        placement_id=placement_id,
        entries=entries,
        source="slate" if which == "slate" else "fallback",
        reason=_word(decision_events_pb.Reason.DESCRIPTOR, answer.reason),
        fallback_reason=_word(decision_events_pb.FallbackReason.DESCRIPTOR, answer.fallback_reason),
        decision_id=answer.decision_id,
        exposure_token=answer.exposure_token,
        learnable=answer.learnable,
        holdout=answer.assignment.holdout,
        versions={field.name: str(value) for field, value in answer.versions.ListFields()},
        layer=_word(types_pb.SubjectLevel.DESCRIPTOR, answer.layer),
    )


def tracked_event(happening: Happening) -> feedback_pb.TrackedEvent:
    """The event; a decision that the client made itself is left out, for the log does not know it."""
    event = feedback_pb.TrackedEvent(
        event_id=happening.event_id,
        type=happening.type,
        subject=types_pb.SubjectRef(identities=identities_of(happening.identities)),
        item_ids=happening.item_ids,
        properties={name: _property_value(value) for name, value in happening.properties.items()},
        consent_signals=_signals(happening.consent_signals),
    )
    if happening.occurred_at is not None:
        if happening.occurred_at.tzinfo is None:
            raise ValueError("occurred_at must be aware: give it a time zone")
        event.occurred_at.FromDatetime(happening.occurred_at)
    decision = happening.decision
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
    return Tracked(event_id=event_id, status=status, field=result.field, problem=result.problem)


def _signals(signals: ConsentSignals | None) -> types_pb.ConsentSignals | None:
    if signals is None:
        return None
    return types_pb.ConsentSignals(
        gpc=signals.gpc,
        tc_string=signals.tc_string,
        gpp=signals.gpp,
        usp=signals.usp,
        jurisdiction=signals.jurisdiction,
        do_not_personalize=signals.do_not_personalize,
    )


def _entry(entry: decision_events_pb.SlateEntry) -> Entry:
    if not entry.item_id or not 0.0 < entry.propensity <= 1.0:
        raise GarbageError
    return Entry(
        item_id=entry.item_id,
        variant_id=entry.variant_id,
        slot=entry.slot,
        score=entry.score,
        propensity=entry.propensity,
        reason=_word(decision_events_pb.Reason.DESCRIPTOR, entry.reason),
    )


def _word(enum: EnumDescriptor, number: int) -> str:
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


def _property_value(value: Fact) -> feedback_events_pb.PropertyValue:
    if isinstance(value, bool):
        return feedback_events_pb.PropertyValue(boolean_value=value)
    if isinstance(value, str):
        return feedback_events_pb.PropertyValue(string_value=value)
    return feedback_events_pb.PropertyValue(number_value=value)
