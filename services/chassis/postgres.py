"""Connections to a service's own Postgres database, transactions whose outcome is known, and errors in our words.

Owns no SQL but its own checks. What a database error says never leaves here: it may quote values.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.errors import Kind, ServiceError
from services.chassis.refused import by_postgres
from services.chassis.uncancelled import uncancelled

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
# Asked on a fresh connection after the answer to a COMMIT was lost: is it there?
Verify = Callable[[Connection], Awaitable[bool]]
T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
# Waiting longer for a free connection only turns an overload into a late answer.
ACQUIRE_TIMEOUT_S = 2.0
# A COMMIT is never cancelled; one that has no answer after this counts as one whose outcome is unknown.
COMMIT_TIMEOUT_S = 10.0
# A Postgres that was killed is back within a second or two.
VERIFY_FOR_S = 3.0
VERIFY_PAUSE_S = 0.1
# How often those that do not lead look whether the leader is gone.
LEAD_PAUSE_S = 0.5
# For so long after a refused write the disk counts as full; what is retried comes back sooner.
FULL_FOR_S = 15.0
IDLE_IN_TRANSACTION_TIMEOUT = "5s"
RETRY_AFTER_S = 0.2

CHECK_SQL = "SELECT pg_is_in_recovery(), current_setting('synchronous_commit')"
MAY_CREATE_SQL = "SELECT has_schema_privilege(coalesce(current_schema(), 'public'), 'CREATE')"
MAY_PROVISION_SQL = "SELECT rolsuper OR (rolcreaterole AND rolcreatedb) FROM pg_roles WHERE rolname = current_user"
LEAD_SQL = "SELECT pg_try_advisory_lock(hashtext($1))"
RESIGN_SQL = "SELECT pg_advisory_unlock(hashtext($1))"


async def create_pool(
    url: str,
    *,
    statement_timeout_ms: int = 2000,
    size: int = 8,
    name: str = "comity",
    durable: bool = True,
) -> Pool:
    """A pool whose every connection was checked: it writes to a primary, and waits for the disk.

    Args:
        url: postgresql:// address with role and database.
        statement_timeout_ms: after which the server gives a statement up.
        size: most connections; they are made when needed and kept.
        name: application_name, shown in pg_stat_activity.
        durable: False switches synchronous_commit off: only to show that the tests would notice.

    Raises:
        ServiceError: UNAVAILABLE when the database cannot be reached or is not a primary.
    """

    async def check(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        in_recovery, synchronous = await connection.fetchrow(CHECK_SQL) or (True, "off")
        if in_recovery or (durable and synchronous == "off"):
            raise ServiceError(
                Kind.UNAVAILABLE,
                "DATABASE_NOT_PRIMARY",
                "The database is a standby, or does not wait for the disk: point the service at the primary.",
                retry_after_s=RETRY_AFTER_S,
            )

    with _connecting():
        pool: Pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=size,
            timeout=CONNECT_TIMEOUT_S,
            init=check,
            reset=_reset,
            server_settings={
                "application_name": name,
                "statement_timeout": f"{statement_timeout_ms}ms",
                "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
                "synchronous_commit": "on" if durable else "off",
                "timezone": "UTC",
                # Compiling a plan costs more than our statements run.
                "jit": "off",
            },
        )
    return pool


async def try_database(url: str, *, provisions: bool = False) -> None:
    """Do what a service does at its start: log in to a primary where it may make tables.

    Args:
        provisions: the role is the administrator's, who makes roles and databases.

    Raises:
        ServiceError: UNAVAILABLE, with the setting to correct.
    """
    with _connecting():
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
        try:
            in_recovery, _ = await connection.fetchrow(CHECK_SQL) or (True, "")
            may = await connection.fetchval(MAY_PROVISION_SQL if provisions else MAY_CREATE_SQL)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)
    right = "create roles and databases" if provisions else "create tables: make it the owner of its database"
    if in_recovery or not may:
        sentence = "DATABASE_URL names a standby: name the primary."
        refusal = sentence if in_recovery else f"The role in DATABASE_URL may not {right}."
        raise ServiceError(Kind.UNAVAILABLE, "DATABASE_REFUSED", refusal)


@asynccontextmanager
async def acquire(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool, for reads and single statements; database errors come out translated.

    Raises:
        ServiceError: UNAVAILABLE.
    """
    with translated():
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            yield connection


@asynccontextmanager
async def transaction(pool: Pool, *, verify: Verify | None = None) -> AsyncIterator[Connection]:
    """A transaction (READ COMMITTED) that is committed when the block ends and rolled back when it raises.

    The COMMIT is never cancelled: a cancellation that arrives meanwhile is raised once the outcome is known.
    When its answer is lost, *verify* is asked on a fresh connection; only a yes counts as committed.

    Args:
        verify: whether this transaction's effect is there (eventstore.command_applied(digest, request_id) is one).

    Raises:
        ServiceError: UNAVAILABLE; OUTCOME_UNKNOWN when the COMMIT was sent and neither it nor *verify* said yes.
    """
    with translated():
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            running = connection.transaction()
            await running.start()
            try:
                yield connection
            except BaseException:
                await _roll_back(connection, running)
                raise
            lost = await _commit(connection, running)
            wrote()
    if lost is not None and not (verify is not None and await _verified(pool, verify)):
        raise outcome_unknown() from lost


@asynccontextmanager
async def leadership(pool: Pool, name: str) -> AsyncIterator[Connection]:
    """Waits until this process leads *name* in this database, then keeps the lead while the block runs.

    The lead is a session's lock: it ends with the connection it is given as. Work that only a leader may
    write goes through that connection, so that who lost the lead cannot write.

    Raises:
        ServiceError: UNAVAILABLE.
    """
    while True:
        async with acquire(pool) as connection:
            if await connection.fetchval(LEAD_SQL, name):
                try:
                    yield connection
                finally:
                    await _resign(connection, name)
                return
        await asyncio.sleep(LEAD_PAUSE_S)


def outcome_unknown() -> ServiceError:
    """The refusal to say whether a write happened; sending the same command again is safe and will tell."""
    return ServiceError(
        Kind.UNAVAILABLE,
        "OUTCOME_UNKNOWN",
        "The database did not say whether the change was stored; send it again with the same request_id.",
        retry_after_s=RETRY_AFTER_S,
    )


def translate(error: BaseException) -> ServiceError | None:
    """The database error in our words; None when it is a bug of ours (a constraint, a wrong statement)."""
    if (refusal := by_postgres(error)) is not None:
        return ServiceError(Kind.UNAVAILABLE, "DATABASE_REFUSED", refusal, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, _TIMEOUTS):
        return _unavailable("DATABASE_TIMEOUT", "The database did not answer in time.")
    if isinstance(error, _COLLISIONS):
        return _unavailable("DATABASE_BUSY", "The database gave up one of several changes that waited for each other.")
    if isinstance(error, asyncpg.DiskFullError):
        _room.missing()
        return _unavailable("DATABASE_FULL", "The database has no room left on its disk.")
    if isinstance(error, _OUTAGES) or _is_closed(error):
        return _unavailable("DATABASE_UNAVAILABLE", "The database cannot be reached.")
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Database errors of the block come out as ServiceError where a caller can do something about them."""
    try:
        yield
    except Exception as error:
        known = translate(error)
        if known is None:
            raise
        raise known from error


@contextmanager
def _connecting() -> Iterator[None]:
    """The same of a block that connects; of an address that is none the client's words quote a part."""
    try:
        with translated():
            yield
    except (ValueError, OverflowError):
        sentence = "DATABASE_URL is no address: correct it, and percent-encode what is special in its password."
        raise ServiceError(Kind.UNAVAILABLE, "DATABASE_REFUSED", sentence) from None


def wrote() -> None:
    """Say that the database took a write, where it was no `transaction`: it has room again."""
    _room.there()


async def to_the_end(connection: Connection, work: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
    """Run *work*, which uses only this connection, uncancelled; after *timeout_s* the connection is cut off.

    Cut off, not cancelled: a cancelled COMMIT can be reported as done before it is safe on the disk or the standby.
    """

    async def bounded() -> T:
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            _cut_off(connection)
        return await task

    return await uncancelled(bounded())


class _Room:
    """Whether the disk of the database had room, as the alarm DATABASE_FULL tells it."""

    def __init__(self) -> None:
        self._full_until_s = 0.0

    def missing(self) -> None:
        """A write was refused for lack of it."""
        self._full_until_s = time.monotonic() + FULL_FOR_S
        set_alarm(Alarm.DATABASE_FULL, True)

    def there(self) -> None:
        """A transaction was committed; one that only read says nothing, so the last refusal has to be a while ago."""
        if self._full_until_s and time.monotonic() >= self._full_until_s:
            self._full_until_s = 0.0
            set_alarm(Alarm.DATABASE_FULL, False)


_room = _Room()
_OUTAGES = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    # A former primary that became a standby.
    asyncpg.ReadOnlySQLTransactionError,
    # What asyncpg says of a connection that the server ended while it was idle, before it sees the end of it.
    asyncpg.InternalClientError,
)
_TIMEOUTS = (TimeoutError, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
_COLLISIONS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


def _is_closed(error: BaseException) -> bool:
    """Whether asyncpg refused because the connection or pool is closed: it has no class of its own for that.

    A connection that dies while it is lent is taken back by the pool, and then "has been released".
    """
    return isinstance(error, asyncpg.InterfaceError) and any(word in str(error) for word in ("clos", "been released"))


def _unavailable(reason: str, message: str) -> ServiceError:
    return ServiceError(Kind.UNAVAILABLE, reason, f"{message} Try again.", retry_after_s=RETRY_AFTER_S)


async def _reset(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Make a connection fit for the pool again.

    asyncpg's own reset is a round trip after every use; nothing here leaves session state but an open transaction.
    """
    if connection.is_in_transaction():
        await connection.reset()


async def _roll_back(connection: Connection, running: Transaction) -> None:
    """Roll back, or cut the connection off, which does the same."""
    try:
        await to_the_end(connection, running.rollback(), timeout_s=COMMIT_TIMEOUT_S)
    except Exception:
        # Whatever it is, the error that led here is the one to tell.
        _cut_off(connection)


async def _resign(connection: Connection, name: str) -> None:
    """Give the lead back; a connection that cannot say so is cut off, which does the same."""
    try:
        await to_the_end(connection, connection.execute(RESIGN_SQL, name), timeout_s=1.0)
    except Exception:
        _cut_off(connection)


def _cut_off(connection: Connection) -> None:
    """Close the connection at once; one that is lost already was taken from us by the pool."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _commit(connection: Connection, running: Transaction) -> BaseException | None:
    """Commit; None when it is done, the error when its answer was lost."""
    try:
        await to_the_end(connection, running.commit(), timeout_s=COMMIT_TIMEOUT_S)
    except Exception as error:
        if isinstance(error, _OUTAGES) or _is_closed(error):
            return error
        raise
    return None


async def _verified(pool: Pool, verify: Verify) -> bool:
    """Whether *verify* says yes within a bound; no answer is no."""
    give_up_at = time.monotonic() + VERIFY_FOR_S
    while True:
        try:
            async with acquire(pool) as connection:
                return await verify(connection)
        except ServiceError:
            if time.monotonic() > give_up_at:
                return False
        await asyncio.sleep(VERIFY_PAUSE_S)
