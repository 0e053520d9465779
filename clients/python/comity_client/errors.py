"""The mistakes of a program that the client raises; outages it never raises."""

from contextlib import suppress
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A field of the request, what is wrong with it and how to mend it."""

    field: str
    problem: str


class FieldError(Exception):
    """A value that cannot be sent. Never reaches a caller as it is: each call makes its refusal of it.

    Args:
        from_visitor: a browser may have sent it, so no program is at fault.
    """

    def __init__(self, field: str, problem: str, *, from_visitor: bool = False) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.from_visitor = from_visitor

    def as_invalid_request(self) -> "InvalidRequestError":
        """The refusal, as callers know them."""
        return InvalidRequestError(
            str(self), reason="NOT_A_REQUEST", problems=(FieldProblem(self.field, self.problem),)
        )


class MissingDefaultError(ValueError):
    """A placement was asked for that has no default: then "never nothing" could not be kept."""

    def __init__(self, placement_id: str) -> None:
        super().__init__(
            f"placement {placement_id!r} has no default: pass at least one entry for it in `defaults`, "
            "to ComityClient or to decide"
        )


class InvalidAddressError(ValueError):
    """An address that leads nowhere, whatever runs; it is not repeated, for it may hold a password.

    Args:
        is_url: it is a URL, as services with HTTP have.
    """

    def __init__(self, field: str, *, is_url: bool = False) -> None:
        remedy = "; leave the scheme out, and pass `credentials` for TLS" if is_url else ""
        super().__init__(f"{field}: must be host:port, such as comity.internal:7070 or [::1]:7070{remedy}")


class ForkedError(RuntimeError):
    """The process was forked from one in which a client was connected; gRPC does not work in such a child."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked after a Comity client had connected, and gRPC does not work in such a child: "
            "make no call (and enter no client) before the fork, e.g. not while gunicorn preloads; a client that was "
            "only constructed may be used after it"
        )


class InvalidRequestError(ValueError):
    """The request is wrong, the server says so or it could not even be written; trying it again will not help.

    Args:
        reason: UPPER_SNAKE code that programs match on.
        problems: the fields that are wrong.
    """

    def __init__(self, message: str, *, reason: str = "", problems: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.problems = problems


def retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    """How long the server asks to wait before the call is made again; None where it does not say."""
    for detail in _details(error):
        retry = error_details_pb2.RetryInfo()
        with suppress(DecodeError):
            if detail.Unpack(retry):
                return float(retry.retry_delay.ToNanoseconds() / 1e9)
    return None


def _details(error: grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    """What the status says beside its text; whoever answers may be anybody."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            with suppress(DecodeError):
                return list(status_pb2.Status.FromString(value).details)
    return []


def invalid_request(error: grpc.aio.AioRpcError) -> InvalidRequestError:
    """The refusal with what its status details say."""
    reason = ""
    problems: tuple[FieldProblem, ...] = ()
    for detail in _details(error):
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        with suppress(DecodeError):
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(bad):
                problems = tuple(FieldProblem(v.field, v.description) for v in bad.field_violations)
    return InvalidRequestError(error.details() or "the request is not valid", reason=reason, problems=problems)
