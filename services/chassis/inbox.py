"""Takes a source's events in, each with its effect once: inbox row, effect and position are one transaction."""

from collections.abc import Awaitable, Callable

from services.chassis.events import LogPosition, RecordedEvent
from services.chassis.ports import Bus
from services.chassis.postgres import Connection, Pool

# Applies events that this consumer has not seen, in commit order per subject, inside the given transaction.
Handle = Callable[[Connection, list[RecordedEvent]], Awaitable[None]]
# Told every event of a message (also those seen before) once their effect is committed; must be idempotent.
AfterCommit = Callable[[list[RecordedEvent]], Awaitable[None]]


class Subscription:
    """A durable consumer of everything that one service emits.

    An event whose handling raises ServiceError INVALID, NOT_FOUND, FAILED_PRECONDITION (or a bug) goes to
    dead_letters with its reason, at first delivery, and the rest of its message applies; UNAVAILABLE and lost
    databases are waited out, with the message kept first in line. A type that *handle* does not know it must ignore.

    Args:
        pool: of the consuming service's database.
        bus: where from.
        source: service that emits, e.g. "consent".
        consumer: durable name, unique within the consuming service and its source, e.g. "features".
        handle: the effect; may use only the given connection.
        after_commit: what need not be in the transaction (caches); runs before the message is acknowledged.
    """

    def __init__(
        self,
        pool: Pool,
        bus: Bus,
        source: str,
        consumer: str,
        handle: Handle,
        after_commit: AfterCommit | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def position(self) -> LogPosition:
        """Everything of the source up to here has had its effect, as far as this process knows."""
        raise NotImplementedError

    async def run(self) -> None:
        """Consume until cancelled; outages are waited out."""
        raise NotImplementedError

    async def await_position(self, position: LogPosition, timeout_s: float) -> None:
        """Returns once everything of the source up to *position* has had its effect, in whichever process.

        Raises:
            ServiceError: DEADLINE (POSITION_NOT_REACHED).
        """
        raise NotImplementedError
