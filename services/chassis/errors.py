"""The one error that crosses a service's edges, in kinds a caller can act on.

A refusal says what is wrong and how to mend it; an outage says what did not answer. A bug is an
assertion or any other exception: the caller is told nothing but INTERNAL.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a caller can do about an error; each maps to one gRPC status (chassis.status)."""

    INVALID = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CONFLICT = "ABORTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    FORBIDDEN = "PERMISSION_DENIED"
    EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


_PASSING = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED, Kind.CONFLICT})


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A field of a request, what is wrong with it and how to mend it; holds no value of the request."""

    field: str
    problem: str


class ServiceError(Exception):
    """A refusal or an outage.

    Args:
        kind: what the caller can do about it.
        reason: UPPER_SNAKE code that programs match on; stable.
        message: a sentence for people: what is wrong and how to mend it. No personal data.
        problems: the fields that are wrong, if any.
        retry_after_s: how long to wait before trying again; None when trying again will not help.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        message: str,
        *,
        problems: tuple[FieldProblem, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.problems = problems
        self.retry_after_s = retry_after_s

    @property
    def passes(self) -> bool:
        """Whether time may mend it; all else is a fault of what was read or asked, and would be the same next time."""
        return self.kind in _PASSING

    def again(self) -> "ServiceError":
        """The same for another waiter: one that is raised in many tasks would collect the tracebacks of all of them."""
        other = ServiceError(
            self.kind, self.reason, self.message, problems=self.problems, retry_after_s=self.retry_after_s
        )
        other.__cause__ = self
        return other

    def __repr__(self) -> str:
        return f"ServiceError({self.kind.value}, {self.reason}, {self.message!r})"


def invalid(field: str, problem: str, *, reason: str = "INVALID_FIELD") -> ServiceError:
    """A refusal of one field: *problem* says what is wrong with it and how to mend it."""
    return ServiceError(Kind.INVALID, reason, f"{field}: {problem}", problems=(FieldProblem(field, problem),))
