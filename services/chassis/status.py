"""ServiceError ↔ gRPC status with google.rpc details: the one place that knows how errors look on the wire."""

import re
from typing import TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.chassis.errors import FieldProblem, Kind, ServiceError

M = TypeVar("M", bound=Message)

DOMAIN = "comity"
# Status details travel as a header, and a header block above 8 KiB is refused by the peer.
MESSAGE_CHARACTERS_MAX = 1024
PROBLEM_CHARACTERS_MAX = 200
PROBLEMS_MAX = 20

# How gRPC says which limit headers exceed; it refuses the call before any code of ours sees it.
_METADATA_LIMIT = re.compile(r"metadata size exceeds \w+ limit \(.* vs\. (\d+)\)")
_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {kind: code_pb2.Code.Value(kind.value) for kind in Kind}
_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: Kind.INVALID,
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID,
    grpc.StatusCode.NOT_FOUND: Kind.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Kind.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED: Kind.CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: Kind.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED: Kind.FORBIDDEN,
    grpc.StatusCode.UNAUTHENTICATED: Kind.FORBIDDEN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE: Kind.UNAVAILABLE,
    # The peer ended the call, as it does when it goes down: nothing is wrong with the request.
    grpc.StatusCode.CANCELLED: Kind.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.DEADLINE,
}


def to_status(error: ServiceError) -> grpc.Status:
    """The error as a gRPC status, with its reason, its fields and when to try again."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.problems:
        details.append(error_details_pb2.BadRequest(field_violations=map(_violation, error.problems[:PROBLEMS_MAX])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=_CODES[error.kind], message=error.message[:MESSAGE_CHARACTERS_MAX])
    for detail in details:
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)  # type: ignore[no-any-return]


def _violation(problem: FieldProblem) -> error_details_pb2.BadRequest.FieldViolation:
    return error_details_pb2.BadRequest.FieldViolation(
        field=problem.field[:PROBLEM_CHARACTERS_MAX], description=problem.problem[:PROBLEM_CHARACTERS_MAX]
    )


def from_call_error(error: grpc.aio.AioRpcError, name: str = "the call") -> ServiceError:
    """The error as the other service raised it; what carries no details of ours gets a reason by its code.

    Args:
        name: of the call, for people.
    """
    kind = _KINDS.get(error.code(), Kind.INTERNAL)
    status = _details_of(error)
    reason, problems, retry_after_s = "", tuple[FieldProblem, ...](), None
    for detail in status.details if status is not None else ():
        if (info := _unpacked(detail, error_details_pb2.ErrorInfo)) is not None:
            reason = info.reason
        elif (bad := _unpacked(detail, error_details_pb2.BadRequest)) is not None:
            problems = tuple(FieldProblem(one.field, one.description) for one in bad.field_violations)
        elif (retry := _unpacked(detail, error_details_pb2.RetryInfo)) is not None:
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    if not reason and (limit := _METADATA_LIMIT.search(error.details() or "")):
        problem = f"of {name} is larger than {int(limit[1]):,} bytes, all that is taken: send fewer or shorter headers"
        return ServiceError(
            Kind.INVALID, "METADATA_TOO_LARGE", f"metadata: {problem}", problems=(FieldProblem("metadata", problem),)
        )
    # Without details of ours the text is gRPC's own and may name addresses: the code says enough.
    message = (error.details() or "") if reason else f"{name} failed with {error.code().name}"
    return ServiceError(
        kind, reason or f"RPC_{error.code().name}", message, problems=problems, retry_after_s=retry_after_s
    )


def _details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _unpacked(detail: any_pb2.Any, kind: type[M]) -> M | None:
    message = kind()
    return message if detail.Unpack(message) else None
