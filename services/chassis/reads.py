"""What a read of personal data is part of: a replay, an export, an explanation (chassis.access records it).

The call that begins an operation carries it to the services that it asks, which know it again.
"""

import getpass
import uuid
from contextvars import ContextVar

from comity.common.v1 import types_pb2 as types_pb

from services.chassis.ports import Access, Operation

# Recorded for callers that do not say who they are, or why: those that were built before it was asked, or in a hurry.
UNSTATED = "unstated"
_running: ContextVar[Operation | None] = ContextVar("comity_operation", default=None)


def access_of(message: types_pb.Access) -> Access:
    """Who reads, and why, as a request says it."""
    return Access(message.accessor or UNSTATED, message.reason or UNSTATED)


def this_user() -> str:
    """Who reads where a command does not say: the user of this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user has no name.
        return "command_line"


def new_operation(access: Access) -> Operation:
    """An operation that begins now."""
    return Operation(str(uuid.uuid4()), access)


def begin(access: Access) -> Operation:
    """Begin an operation: what this call asks of other services from now on is part of it."""
    return carry(new_operation(access))


def carry(operation: Operation) -> Operation:
    """Go on with an operation that was begun elsewhere, or begin one where the caller named none."""
    _running.set(operation if operation.id else new_operation(operation.access))
    return operation


def running() -> Operation | None:
    """The operation that this call is part of."""
    return _running.get()


def operation_of(message: types_pb.Operation) -> Operation:
    """The operation that a request says it is part of."""
    return Operation(message.id, access_of(message.access))


def operation_to_pb(operation: Operation) -> types_pb.Operation:
    """The same, for a request."""
    access = types_pb.Access(accessor=operation.access.accessor, reason=operation.access.reason)
    return types_pb.Operation(id=operation.id, access=access)
