"""The rights of a person on the wire: PrivacyService, HoldingsService of the others, and the facts of erasures."""

from collections.abc import Sequence
from typing import Any

from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.consent.v1 import consent_events_pb2 as events_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from services.chassis.events import RecordedEvent
from services.chassis.ports import Access
from services.consent.domain.erasure import Erasure, Progress, Step
from services.consent.domain.receipts import Counts, Signed, key_id_of
from services.consent.wire.times import to_timestamp


def encode_erasure_requested(
    erasure_id: str, subject_id: str, member_ids: Sequence[str], access: Access
) -> tuple[str, bytes]:
    """The fact that somebody asked for it, as the log holds it."""
    return _encoded(
        events_pb.ErasureRequested(
            erasure_id=erasure_id,
            subject_id=subject_id,
            member_ids=sorted(member_ids),
            requested_by=access.accessor,
            reason=access.reason,
        )
    )


def encode_step_taken(erasure_id: str, service: str, step: Step, counts: Counts) -> tuple[str, bytes]:
    """The fact that a service took a step, as the log holds it."""
    rows = {f"{store}/{name}": count for store, name, count in counts}
    return _encoded(events_pb.ErasureStepTaken(erasure_id=erasure_id, service=service, step=step.name, counts=rows))


def encode_erasure_completed(erasure_id: str) -> tuple[str, bytes]:
    """The fact that all is done, as the log holds it."""
    return _encoded(events_pb.ErasureCompleted(erasure_id=erasure_id))


def decode_policy_version(event: RecordedEvent) -> str:
    """The version that a PurposesPublished is of."""
    assert isinstance(event.payload, bytes), "a policy is about nobody"
    return events_pb.PurposesPublished.FromString(event.payload).policy_version


def event_json(event: RecordedEvent) -> dict[str, Any]:
    """An unsealed event's payload as JSON, with the event's own id and version."""
    assert isinstance(event.payload, bytes), "nothing here is sealed"
    descriptor = descriptor_pool.Default().FindMessageTypeByName(event.type)
    message = message_factory.GetMessageClass(descriptor).FromString(event.payload)
    content = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return {"event_id": event.event_id, "consent_version": event.version, **content}


def erase_request(step: Step, erasure_id: str, member_ids: Sequence[str]) -> holdings_pb.EraseHoldingsRequest:
    """What a service is asked to do."""
    return holdings_pb.EraseHoldingsRequest(
        erasure_id=erasure_id,
        member_ids=member_ids,
        step=int(step),  # type: ignore[arg-type]  # the domain's numbers are the enum's
    )


def counts_of(response: holdings_pb.EraseHoldingsResponse) -> Counts:
    """What it did."""
    return tuple((one.store, one.name, one.count) for one in response.counts)


def rectify_request(member_ids: Sequence[str], request: pb.RectifyRequest) -> feedback_pb.RectifyBehaviorRequest:
    """The request to feedback, for all of the person's members."""
    return feedback_pb.RectifyBehaviorRequest(
        request_id=request.request_id,
        member_ids=member_ids,
        type=request.type,
        property=request.property,
        value=request.value,
        event_id=request.event_id,
    )


def erasure_response(erasure: Erasure) -> pb.GetErasureResponse:
    """How far it is."""
    state = pb.ERASURE_STATE_RUNNING if erasure.completed_at is None else pb.ERASURE_STATE_COMPLETED
    response = pb.GetErasureResponse(
        erasure_id=erasure.erasure_id,
        state=state,
        requested_at=to_timestamp(erasure.requested_at),
        steps=[_progress(one) for one in erasure.plan()],
    )
    if erasure.completed_at is not None:
        response.completed_at.FromDatetime(erasure.completed_at)
    if erasure.receipt is not None:
        signed = erasure.receipt
        response.receipt, response.signature = signed.receipt, signed.signature
        response.key_id, response.public_key = signed.key_id, signed.public_key
    return response


def erasure_entry(erasure: Erasure) -> pb.ErasureEntry:
    """A line of the ledger of erasures."""
    return pb.ErasureEntry(number=erasure.number, erasure_id=erasure.erasure_id, member_ids=erasure.member_ids)


def receipt_response(signed: Signed) -> pb.GetReceiptResponse:
    """A signed receipt."""
    return pb.GetReceiptResponse(
        receipt=signed.receipt, signature=signed.signature, key_id=signed.key_id, public_key=signed.public_key
    )


def receipt_key_response(public_key: bytes) -> pb.GetReceiptKeyResponse:
    """The key that receipts are signed with."""
    return pb.GetReceiptKeyResponse(key_id=key_id_of(public_key), public_key=public_key)


def _progress(progress: Progress) -> pb.ErasureProgress:
    return pb.ErasureProgress(
        service=progress.service,
        step=int(progress.step),  # type: ignore[arg-type]  # as above
        taken_at=None if progress.taken_at is None else to_timestamp(progress.taken_at),
        counts=[holdings_pb.ErasedCount(store=store, name=name, count=count) for store, name, count in progress.counts],
        waiting_for=progress.waiting_for,
    )


def _encoded(message: Message) -> tuple[str, bytes]:
    return message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True)
