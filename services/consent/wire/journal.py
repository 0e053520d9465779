"""Facts of the log ↔ entries of the journal."""

from comity.consent.v1 import consent_events_pb2 as events_pb

from services.chassis.events import RecordedEvent
from services.consent.domain.journal import ERASED, REFUSALS, Entry
from services.consent.domain.ledger import Answer, Collection, State
from services.consent.wire.facts import decode_answer

_ERASURE = events_pb.ErasureRequested.DESCRIPTOR.full_name
JOURNALED_TYPES = (
    events_pb.ConsentDenied.DESCRIPTOR.full_name,
    events_pb.ConsentObjected.DESCRIPTOR.full_name,
    events_pb.ConsentRevoked.DESCRIPTOR.full_name,
    _ERASURE,
)
# How a refusal was collected that was put back: the notice and the place that it had are not in the journal.
MECHANISM = "journal"


def journal_entry(event: RecordedEvent) -> Entry | None:
    """What the journal keeps of a fact; None: nothing."""
    if event.type not in JOURNALED_TYPES:
        return None
    assert isinstance(event.payload, bytes), "the ledger is not sealed"
    if event.type == _ERASURE:
        asked = events_pb.ErasureRequested.FromString(event.payload)
        return Entry(
            event_id=event.event_id,
            position=event.position,
            verdict=ERASED,
            member_ids=tuple(asked.member_ids),
            purpose="",
            recorded_at=event.occurred_at,
            answered_at=event.occurred_at,
            erasure_id=asked.erasure_id,
            subject_id=asked.subject_id,
        )
    answer = decode_answer(event)
    return Entry(
        event_id=event.event_id,
        position=event.position,
        verdict=answer.state.name,
        member_ids=(event.subject_id,),
        purpose=answer.purpose,
        recorded_at=event.occurred_at,
        answered_at=event.occurred_at if answer.collection is None else answer.collection.collected_at,
    )


def answer_of_entry(entry: Entry) -> Answer:
    """The refusal as the ledger holds it, with its own times; the version is the ledger's to give."""
    state = REFUSALS[entry.verdict]
    # Of no purpose or policy version: a refusal counts under every one.
    collection = None if state is State.REVOKED else Collection(entry.answered_at, 0, "", mechanism=MECHANISM)
    return Answer(entry.purpose, state, 0, entry.recorded_at, collection=collection)
