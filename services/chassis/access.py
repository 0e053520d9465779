"""Reads of personal data are facts: who read what about whom, when and why.

They lie in the log of the service that gave the data out, in the stream `access-<subject_id>`, under the pseudonym. The
payload is not sealed: it tells of the reader, not of the person, and must stay readable when the person's key is gone.
"""

from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb

from services.chassis.clock import Clock
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.metrics import PERSONAL_DATA_ACCESSES
from services.chassis.ports import Access
from services.chassis.postgres import Pool, transaction
from services.chassis.tracing import span, traceparent

PERSONAL_DATA_ACCESSED = holdings_pb.PersonalDataAccessed.DESCRIPTOR.full_name
# Recorded for callers that do not say who they are, or why: those that were built before it was asked, or in a hurry.
UNSTATED = "unstated"

# Two reads of one person at once go one after the other. Advisory, because a row lock would give the transaction its
# id before it waits, and the log is read in order of those.
LOCK_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('comity.access.' || $1::text, 0))"
VERSION_SQL = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = $1"


def access_of(message: types_pb.Access) -> Access:
    """Who reads, and why, as a request says it."""
    return Access(message.accessor or UNSTATED, message.reason or UNSTATED)


def stream_of(subject_id: str) -> str:
    """The stream that reads of this person's data lie in."""
    return f"access-{subject_id}"


class PostgresAccessLog:
    """ports.AccessLog over the service's own log.

    Args:
        outlives_erasure: the facts are recorded about nobody, in the person's stream all the same: they stay when the
            person is erased, and can be added then. For a ledger that itself stays.
    """

    def __init__(self, pool: Pool, clock: Clock, *, outlives_erasure: bool = False) -> None:
        self._pool = pool
        self._clock = clock
        self._outlives_erasure = outlives_erasure

    async def accessed(self, subject_id: str, access: Access, method: str) -> None:
        """See ports.AccessLog."""
        assert subject_id, "data about nobody is no personal data"
        fact = holdings_pb.PersonalDataAccessed(
            access=types_pb.Access(accessor=access.accessor, reason=access.reason), method=method
        )
        payload, stream_id = fact.SerializeToString(deterministic=True), stream_of(subject_id)
        with span("access.record"):
            async with transaction(self._pool) as connection:
                await connection.execute(LOCK_SQL, stream_id)
                version = await connection.fetchval(VERSION_SQL, stream_id)
                # Read under the lock, so that no later read gets an earlier time.
                now = self._clock.now()
                about = "" if self._outlives_erasure else subject_id
                event = NewEvent(uuid7(now), PERSONAL_DATA_ACCESSED, payload, now, about, traceparent())
                await append_in(connection, [Append(stream_id, version, (event,))])
        PERSONAL_DATA_ACCESSES.labels(method.rpartition("/")[2]).inc()
