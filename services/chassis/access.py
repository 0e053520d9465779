"""Reads of personal data are facts: who read what about whom, when and why.

They lie in the log of the service that gave the data out, in the stream `access-<subject_id>`, under the pseudonym. The
payload is not sealed: it tells of the reader, not of the person, and must stay readable when the person's key is gone.

What goes over several calls, services or people is an operation (a replay, an export, an explanation; chassis.reads):
each service that gives something out for it records it once, about nobody, in `access-op-<id>`; the service that runs
an export or an explanation records it about the person, too. A call that is part of none is recorded about each person
that it reads.
"""

from collections import OrderedDict
from collections.abc import Sequence

from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb

from services.chassis.clock import Clock
from services.chassis.erasure import erased_in
from services.chassis.errors import ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.metrics import PERSONAL_DATA_ACCESSES
from services.chassis.ports import Access, Operation
from services.chassis.postgres import Pool, acquire, transaction
from services.chassis.tracing import span, traceparent

PERSONAL_DATA_ACCESSED = holdings_pb.PersonalDataAccessed.DESCRIPTOR.full_name

# The stream of reads that are about more people than can be named, and of those about people who are being erased.
EVERYBODY = "everybody"
# Operations that this process knows to be recorded; the log knows them all.
KNOWN_MAX = 10_000

# Two reads of one person at once go one after the other. Advisory, because a row lock would give the transaction its
# id before it waits, and the log is read in order of those. In order of stream, so that none waits for another's.
LOCK_SQL = """
SELECT pg_advisory_xact_lock(hashtextextended('comity.access.' || s, 0)) FROM unnest($1::text[]) AS s ORDER BY s
"""
VERSIONS_SQL = """
SELECT stream_id, max(version) AS version FROM events WHERE stream_id = ANY($1::text[]) GROUP BY stream_id
"""


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
        self._known: OrderedDict[str, None] = OrderedDict()

    async def accessed(self, subject_id: str, access: Access, method: str) -> None:
        """See ports.AccessLog."""
        assert subject_id, "data about nobody is no personal data"
        await self._record((subject_id,), _fact(access, method))

    async def operated(
        self, operation: Operation, method: str, *, member_ids: Sequence[str] = (), purpose: str = ""
    ) -> None:
        """See ports.AccessLog."""
        fact = _fact(operation.access, method, purpose)
        if operation.id:
            await self._record_once(operation.id, fact)
            return
        about = set(member_ids) or {EVERYBODY}
        while True:
            try:
                await self._record(sorted(about), fact)
                return
            except ServiceError as refusal:
                erased = await self._erased(about) if refusal.reason == "SUBJECT_ERASED" else ()
                if not erased:
                    raise
            about = about.difference(erased) | {EVERYBODY}

    async def _record_once(self, operation_id: str, fact: holdings_pb.PersonalDataAccessed) -> None:
        if operation_id in self._known:
            return
        try:
            async with transaction(self._pool) as connection:
                event = self._event(fact, "")
                await append_in(connection, [Append(f"access-op-{operation_id}", 0, (event,))])
        except ServiceError as refusal:
            # Another call of the operation was first, here or in another replica.
            if refusal.reason != "VERSION_CONFLICT":
                raise
        else:
            PERSONAL_DATA_ACCESSES.labels(fact.method.rpartition("/")[2]).inc()
        self._known[operation_id] = None
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def _record(self, subject_ids: Sequence[str], fact: holdings_pb.PersonalDataAccessed) -> None:
        """The fact in each one's stream, all or none."""
        streams = {stream_of(subject_id): subject_id for subject_id in subject_ids}
        with span("access.record"):
            async with transaction(self._pool) as connection:
                await connection.execute(LOCK_SQL, list(streams))
                rows = await connection.fetch(VERSIONS_SQL, list(streams))
                versions = {row["stream_id"]: row["version"] for row in rows}
                appends = [
                    Append(stream, versions.get(stream, 0), (self._event(fact, self._about(subject_id)),))
                    for stream, subject_id in streams.items()
                ]
                await append_in(connection, appends)
        PERSONAL_DATA_ACCESSES.labels(fact.method.rpartition("/")[2]).inc()

    async def _erased(self, member_ids: set[str]) -> set[str]:
        async with acquire(self._pool) as connection:
            return await erased_in(connection, member_ids)

    def _about(self, subject_id: str) -> str:
        return "" if self._outlives_erasure or subject_id == EVERYBODY else subject_id

    def _event(self, fact: holdings_pb.PersonalDataAccessed, about: str) -> NewEvent:
        # Read under the lock, so that no later read gets an earlier time.
        now = self._clock.now()
        payload = fact.SerializeToString(deterministic=True)
        return NewEvent(uuid7(now), PERSONAL_DATA_ACCESSED, payload, now, about, traceparent())


def _fact(access: Access, method: str, purpose: str = "") -> holdings_pb.PersonalDataAccessed:
    stated = types_pb.Access(accessor=access.accessor, reason=access.reason)
    return holdings_pb.PersonalDataAccessed(access=stated, method=method, purpose=purpose)
