"""The event log of a service in Postgres: optimistic concurrency, idempotent commands, group commit, commit order.

A position alone is not the order to read in: a transaction can take a low position and commit late. Readers
go by (epoch, xid, position) and stop before the oldest transaction that still runs, so nothing they have passed can
appear behind them.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.events import ORIGIN, Append, Appended, LogPosition, NewEvent, RecordedEvent
from services.chassis.group_commit import IN_FLIGHT_MAX, GroupCommit
from services.chassis.log_rows import (
    APPEND_SQL,
    COMMAND_EXISTS_SQL,
    COMMAND_OF_SQL,
    COMMAND_SQL,
    HEAD_SQL,
    LOG_SQL,
    LOOK_UP_SQL,
    STREAM_SQL,
    arguments,
    payload_of,
    position_of,
    recorded,
)
from services.chassis.postgres import (
    Connection,
    Pool,
    Verify,
    acquire,
    outcome_unknown,
    to_the_end,
    transaction,
    wrote,
)

__all__ = [
    "PostgresEventStore",
    "append_in",
    "command_applied",
    "find_command",
    "own_request_id",
    "recorded",
    "scoped_request_id",
]

SUBJECT_ERASED = "SUBJECT_ERASED"
APPENDS_MAX = 500
BATCH_BYTES_MAX = 8 * 2**20
# What fits one message of the bus with its envelope; refused here, where the caller can still do something about it.
PAYLOAD_BYTES_MAX = 900 * 2**10
BATCH_TIMEOUT_S = 10.0
# A Postgres that was killed is back within a second or two; waiters with less time leave by their own deadlines.
RETRY_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


# Appends on their way, and a read beside them.
WARM_CONNECTIONS = IN_FLIGHT_MAX + 1
# Refused wherever it comes: there is no first version that it could follow.
_BEHIND_NOTHING = Append("warm", 1, (NewEvent(str(UUID(int=0)), "", b"", datetime(1970, 1, 1, tzinfo=UTC)),))


async def append_in(connection: Connection, appends: Sequence[Append]) -> list[Appended]:
    """Record events inside the caller's transaction, beside its state tables: all of the appends, or none.

    Where an Appended is a duplicate its command was applied before: leave the state tables alone and answer from them.

    Raises:
        ServiceError: CONFLICT (VERSION_CONFLICT), ALREADY_EXISTS (REQUEST_ID_REUSED), INVALID (EVENT_TOO_LARGE),
            FAILED_PRECONDITION (SUBJECT_ERASED); the transaction must be rolled back, which
            chassis.postgres.transaction does.
    """
    _check(appends)
    try:
        results = await _record(connection, appends, again=False)
    except asyncpg.UniqueViolationError as error:
        raise _racing() from error
    done: list[Appended] = []
    for result in results:
        if isinstance(result, ServiceError):
            raise result
        done.append(result)
    return done


async def find_command(connection: Connection, request_id: str, digest: bytes) -> Appended | None:
    """What the command with this request id did; None when it was never applied.

    Raises:
        ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED) when it was another command.
    """
    row = await connection.fetchrow(COMMAND_SQL, request_id)
    if row is None:
        return None
    if row["digest"] != digest:
        raise _reused()
    return Appended(row["version"], position_of(row), duplicate=True)


async def own_request_id(
    connection: Connection,
    request_id: str,
    digest: bytes,
    *,
    member_id: str,
    whose: Callable[[str], Awaitable[str | None]],
) -> str:
    """The request id that a command about this member has in the log: the caller's, unless it is another's there.

    A request id is its person's own. It is scoped only where two people meet, so that a replica of the version before,
    which knows no scopes, finds what was applied.

    Args:
        whose: the member that the commands of a stream are about.
    """
    row = await connection.fetchrow(COMMAND_OF_SQL, request_id)
    if row is None or row["digest"] == digest or await whose(row["stream_id"]) == member_id:
        return request_id
    return scoped_request_id(request_id, member_id)


def scoped_request_id(request_id: str, member_id: str) -> str:
    """A member's own form of a request id that is another person's in the log, too: 64 hex digits."""
    return hashlib.sha256(f"{member_id}\0{request_id}".encode()).hexdigest()


def command_applied(digest: bytes, *request_ids: str) -> Verify:
    """For `transaction(pool, verify=...)`: whether the command is in the log, under one of these request ids."""

    async def verify(connection: Connection) -> bool:
        return bool(await connection.fetchval(COMMAND_EXISTS_SQL, list(request_ids), digest))

    return verify


class PostgresEventStore:
    """ports.EventStore over a pool; one instance a process, so that appends that wait can leave together.

    Args:
        pool: of chassis.postgres.create_pool.
        on_commit: called after each batch of this store that wrote something; Relay.wake is meant.
    """

    def __init__(self, pool: Pool, *, on_commit: Callable[[], None] | None = None) -> None:
        self._pool = pool
        self._on_commit = on_commit
        self._group: GroupCommit[Append, Appended | ServiceError] = GroupCommit(
            self._commit, batch_max=APPENDS_MAX, bytes_max=BATCH_BYTES_MAX
        )

    async def append(self, append: Append) -> Appended:
        """See ports.EventStore. A caller that is cancelled does not cancel the batch its append left in."""
        _check((append,))
        result = await self._group(
            append, bytes_count=_bytes_count(append), traced=any(event.traceparent for event in append.events)
        )
        assert isinstance(result, Appended), "refusals are raised"
        return result

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | ServiceError]:
        """See ports.EventStore."""
        _check(appends)
        return await self._persist(appends)

    async def read_stream(self, stream_id: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """See ports.EventStore."""
        async with acquire(self._pool) as connection:
            return [recorded(row) for row in await connection.fetch(STREAM_SQL, stream_id, after_version)]

    async def read_log(self, after: LogPosition, *, limit: int) -> list[RecordedEvent]:
        """See ports.EventStore. Sees only transactions that ended before every one still running began."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(LOG_SQL, after.epoch, after.xid, after.position, limit)
        return [recorded(row) for row in rows]

    async def head(self) -> LogPosition:
        """See ports.EventStore."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(HEAD_SQL)
        return ORIGIN if row is None else position_of(row)

    async def warm(self) -> None:
        """Open connections, and have what appends and reads of a stream ask prepared on them; nothing is written.

        The first append of a process would else pay for all that, and may have milliseconds.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        async with AsyncExitStack() as stack:
            for _ in range(min(WARM_CONNECTIONS, self._pool.get_max_size())):
                connection = await stack.enter_async_context(acquire(self._pool))
                await _record(connection, [_BEHIND_NOTHING], again=True)
                await connection.fetch(STREAM_SQL, _BEHIND_NOTHING.stream_id, 0)

    async def drain(self) -> None:
        """Returns when no append waits or is in flight: before the pool is closed."""
        await self._group.drain()

    async def _commit(self, appends: list[Append]) -> Sequence[Appended | ServiceError | Exception]:
        """A batch; one append that the database cannot take at all does not fail the others."""
        try:
            return await self._persist(appends)
        except (asyncpg.PostgresError, asyncpg.DataError, ValueError) as error:
            if len(appends) == 1:
                return [error]
        return [result for append in appends for result in await self._commit([append])]

    async def _persist(self, appends: Sequence[Append]) -> list[Appended | ServiceError]:
        """Record in one transaction; after a lost answer do it again, which finds out what became of the first try."""
        for attempt, pause_s in enumerate((*RETRY_PAUSES_S, None)):
            try:
                results = await self._try(appends, again=attempt > 0)
            except ServiceError as error:
                if pause_s is None:
                    raise outcome_unknown() from error
                await asyncio.sleep(pause_s)
                continue
            except asyncpg.UniqueViolationError as error:
                # Two commands with one request id for two streams at once: now the other one can be seen.
                if attempt > 1:
                    raise _racing() from error
                continue
            if self._on_commit is not None and any(isinstance(r, Appended) and not r.duplicate for r in results):
                self._on_commit()
            return results
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, appends: Sequence[Append], *, again: bool) -> list[Appended | ServiceError]:
        if len(appends) <= APPENDS_MAX and _is_one_wave(appends):
            async with acquire(self._pool) as connection:
                # A single statement commits itself: no BEGIN and COMMIT to pay for.
                results = await to_the_end(
                    connection, _record(connection, appends, again=again), timeout_s=BATCH_TIMEOUT_S
                )
                wrote()
                return results
        async with transaction(self._pool) as connection:
            return await _record(connection, appends, again=again)


async def _record(connection: Connection, appends: Sequence[Append], *, again: bool) -> list[Appended | ServiceError]:
    """Append wave by wave: within a statement no append sees another, so those on one stream go one after another."""
    results: list[Appended | ServiceError | None] = [None] * len(appends)
    for wave in _waves(appends):
        asked = [appends[index] for index in wave]
        for index, result in zip(wave, await _record_wave(connection, asked, again=again), strict=True):
            results[index] = result
    return [result for result in results if result is not None]


async def _record_wave(
    connection: Connection, appends: Sequence[Append], *, again: bool
) -> list[Appended | ServiceError]:
    rows = await connection.fetch(APPEND_SQL, *arguments(appends))
    # In order of version, so that what stays is the last event.
    written = {row["stream_id"]: row for row in sorted(rows, key=lambda row: int(row["version"]))}
    results: list[Appended | ServiceError | None] = [None] * len(appends)
    unsure: list[int] = []
    for index, append in enumerate(appends):
        row = written.get(append.stream_id)
        if row is not None and row["version"] == 0:
            results[index] = subject_erased()
        elif row is not None:
            results[index] = Appended(row["version"], position_of(row))
        elif append.request_id is None and not again:
            results[index] = _conflict()
        else:
            unsure.append(index)
    if unsure:
        found = await _look_up(connection, [appends[index] for index in unsure], again=again)
        for index, result in zip(unsure, found, strict=True):
            results[index] = result
    return [result for result in results if result is not None]


async def _look_up(connection: Connection, appends: Sequence[Append], *, again: bool) -> list[Appended | ServiceError]:
    """What became of appends that did not go in just now.

    When the answer to a first try was lost (*again*), an append whose event is there went in then. This is exact: from
    here on the first try can no longer happen, because its place in the stream is taken.
    """
    rows = await connection.fetch(
        LOOK_UP_SQL,
        [append.stream_id for append in appends],
        [append.expected_version + 1 for append in appends],
        [append.expected_version + len(append.events) for append in appends],
        [append.request_id for append in appends],
    )
    return [_judge(append, row, again=again) for append, row in zip(appends, rows, strict=True)]


def _judge(append: Append, row: asyncpg.Record, *, again: bool) -> Appended | ServiceError:
    if again and row["event_id"] is not None and row["event_id"] == UUID(append.events[0].event_id):
        position = LogPosition(row["own_epoch"], row["own_xid"], row["own_position"])
        return Appended(append.expected_version + len(append.events), position)
    if row["digest"] is None:
        return _conflict()
    if row["digest"] != append.request_digest:
        return _reused()
    return Appended(row["version"], position_of(row), duplicate=True)


def _waves(appends: Sequence[Append]) -> Iterator[list[int]]:
    """Indexes of appends that can go together: no stream and no request id twice, order kept for those that clash."""
    left = list(range(len(appends)))
    while left:
        wave: list[int] = []
        later: list[int] = []
        taken: set[tuple[str, str | None]] = set()
        for index in left:
            names = {("stream", appends[index].stream_id)}
            if appends[index].request_id is not None:
                names |= {("request", appends[index].request_id or "")}
            (later if taken & names or len(wave) == APPENDS_MAX else wave).append(index)
            taken |= names
        yield wave
        left = later


def _is_one_wave(appends: Sequence[Append]) -> bool:
    requests = [append.request_id for append in appends if append.request_id is not None]
    return len({append.stream_id for append in appends}) == len(appends) and len(set(requests)) == len(requests)


def _check(appends: Sequence[Append]) -> None:
    for append in appends:
        assert append.events, "an append has events"
        assert append.stream_id, "an append names its stream"
        assert append.expected_version >= 0, "a version is not negative"
        for event in append.events:
            if len(payload_of(event)) > PAYLOAD_BYTES_MAX:
                raise invalid(
                    "payload",
                    f"an event may hold {PAYLOAD_BYTES_MAX} bytes; send fewer candidates or split it",
                    reason="EVENT_TOO_LARGE",
                )


def _bytes_count(append: Append) -> int:
    return sum(len(payload_of(event)) for event in append.events)


def subject_erased() -> ServiceError:
    """The refusal to store anything about somebody who was erased."""
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        SUBJECT_ERASED,
        "The subject was erased, and nothing about it is stored any more: resolve the person's identities anew.",
    )


def _conflict() -> ServiceError:
    return ServiceError(
        Kind.CONFLICT,
        "VERSION_CONFLICT",
        "The stream does not stand at the expected version: read it again and decide again.",
    )


def _reused() -> ServiceError:
    return ServiceError(
        Kind.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        "This request_id was used for another command; nothing was done now: use a new one for a new command.",
    )


def _racing() -> ServiceError:
    return ServiceError(
        Kind.CONFLICT,
        "COMMAND_RACING",
        "The same request_id, or an event with the same id, is being recorded at this moment: send it again.",
        retry_after_s=0.05,
    )
