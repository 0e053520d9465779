"""Enforces the limits that are declared on the protos (comity.common.v1.limits), in one place.

A message type is compiled once into a check that walks only what can be wrong.
"""

from google.protobuf.message import Message

from services.chassis.errors import FieldProblem

PROBLEMS_MAX = 20


def problems_of(message: Message) -> tuple[FieldProblem, ...]:
    """What is wrong with the message, field by field; empty when nothing is."""
    raise NotImplementedError


def require_valid(message: Message) -> None:
    """Returns when the message keeps its limits.

    Raises:
        ServiceError: INVALID (INVALID_FIELD), with the fields that do not.
    """
    raise NotImplementedError
