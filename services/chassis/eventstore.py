"""The event log of a service in Postgres: optimistic concurrency, idempotent commands, group commit, commit order."""

from collections.abc import Callable, Sequence

from services.chassis.errors import ServiceError
from services.chassis.events import Append, Appended, LogPosition, RecordedEvent
from services.chassis.postgres import Connection, Pool, Verify


async def append_in(connection: Connection, appends: Sequence[Append]) -> list[Appended]:
    """Record events inside the caller's transaction, beside its state tables: all of the appends, or none.

    Where an Appended is a duplicate its command was applied before: leave the state tables alone and answer from them.

    Raises:
        ServiceError: CONFLICT (VERSION_CONFLICT), ALREADY_EXISTS (REQUEST_ID_REUSED), INVALID (EVENT_TOO_LARGE);
            the transaction must be rolled back, which chassis.postgres.transaction does.
    """
    raise NotImplementedError


async def find_command(connection: Connection, request_id: str, digest: bytes) -> Appended | None:
    """What the command with this request id did; None when it was never applied.

    Raises:
        ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED) when it was another command.
    """
    raise NotImplementedError


def command_applied(request_id: str) -> Verify:
    """For `transaction(pool, verify=...)`: whether the command with this request id is in the log."""
    raise NotImplementedError


class PostgresEventStore:
    """ports.EventStore over a pool; one instance a process, so that appends that wait can leave together.

    Args:
        pool: of chassis.postgres.create_pool.
        on_commit: called after each batch of this store that wrote something; Relay.wake is meant.
    """

    def __init__(self, pool: Pool, *, on_commit: Callable[[], None] | None = None) -> None:
        raise NotImplementedError

    async def append(self, append: Append) -> Appended:
        """See ports.EventStore. A caller that is cancelled does not cancel the batch its append left in."""
        raise NotImplementedError

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | ServiceError]:
        """See ports.EventStore."""
        raise NotImplementedError

    async def read_stream(self, stream_id: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """See ports.EventStore."""
        raise NotImplementedError

    async def read_log(self, after: LogPosition, *, limit: int) -> list[RecordedEvent]:
        """See ports.EventStore. Sees only transactions that ended before every one still running began."""
        raise NotImplementedError

    async def head(self) -> LogPosition:
        """See ports.EventStore."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Returns when no append waits or is in flight: before the pool is closed."""
        raise NotImplementedError
