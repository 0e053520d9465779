"""Revocation under concurrency, cut connections and killed backends: never late, and never said when it is not so."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import grpc
import pytest
from comity.common.v1 import types_pb2 as common_pb

from services.chassis.errors import Kind
from services.chassis.status import from_call_error

ALICE = "a" * 26
PURPOSE = "ads"

# At the COMMIT of a change, waits for a lock that the test holds: the moment at which an outcome is in doubt.
SLOW_COMMIT_SQL = """
CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4711);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT OR UPDATE ON consent_state
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold_commit();
"""
WAITING_SQL = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory' AND query = 'COMMIT;'
"""


def who(subject_id: str) -> common_pb.SubjectRef:
    return common_pb.SubjectRef(subject_id=subject_id)


def member(subject_id: str) -> list[common_pb.Member]:
    return [common_pb.Member(subject_id=subject_id)]


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    """What the condition gives once that is true."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            pass
    return found


async def revocations(consent: Any) -> int:
    """How many revocations are in the log."""
    return int(await consent.pool.fetchval("SELECT count(*) FROM events WHERE type LIKE '%ConsentRevoked'"))


async def test_no_read_sent_after_revoke_returned_is_allowed(consent: Any) -> None:
    """Many readers and revokers at once: every read that began after an answer to Revoke sees the revocation."""
    people = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" * 13 for n in range(40)]
    for n, person in enumerate(people):
        await consent.record(f"g{n}", who(person), ads="GRANTED")
    revoked_at: dict[str, float] = {}
    reads: list[tuple[str, float, bool]] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            for person in people:
                began = time.monotonic()
                verdict = (await consent.evaluate(member(person), PURPOSE)).verdicts[0]
                reads.append((person, began, verdict.allowed))

    async def revoke(first: int) -> None:
        for n in range(first, len(people), 4):
            await consent.revoke(f"v{n}", who(people[n]), PURPOSE)
            revoked_at[people[n]] = time.monotonic()

    readers = [asyncio.ensure_future(read()) for _ in range(6)]
    await asyncio.gather(*(revoke(first) for first in range(4)))
    done.set()
    await asyncio.gather(*readers)
    late = [allowed for person, began, allowed in reads if began > revoked_at[person]]
    assert not any(late)
    # The test could have failed: reads happened on both sides.
    assert any(allowed for _, _, allowed in reads)
    assert len(late) > 20


@asynccontextmanager
async def commits_held(consent: Any) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Every COMMIT of a change hangs until the block ends; gives a connection to look around with."""
    connection = await asyncpg.connect(consent.url)
    try:
        await connection.execute(SLOW_COMMIT_SQL)
        await connection.execute("SELECT pg_advisory_lock(4711)")
        yield connection
    finally:
        await connection.close()


async def test_a_revocation_that_died_in_its_commit_is_not_reported(consent: Any) -> None:
    """The backend is killed at every COMMIT: the caller is told that it is unknown, and the grant stands."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    async with commits_held(consent) as looking:
        call = asyncio.ensure_future(consent.revoke("r2", who(ALICE), PURPOSE))
        killed = 0
        while not call.done():
            for row in await looking.fetch(WAITING_SQL):
                killed += bool(await looking.fetchval("SELECT pg_terminate_backend($1)", row["pid"]))
            await asyncio.wait({call}, timeout=0.02)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    error = from_call_error(caught.value)
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "OUTCOME_UNKNOWN")
    assert killed >= 2
    assert consent.pauses.asked_s == []
    assert await consent.states(member(ALICE), PURPOSE) == ["GRANTED"]
    # The same command again tells, and is applied once.
    await consent.revoke("r2", who(ALICE), PURPOSE)
    assert await consent.states(member(ALICE), PURPOSE) == ["REVOKED"]
    assert await revocations(consent) == 1


async def test_a_revocation_killed_once_is_tried_again(consent: Any) -> None:
    """One lost transaction costs the caller nothing but time."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    async with commits_held(consent) as looking:
        call = asyncio.ensure_future(consent.revoke("r2", who(ALICE), PURPOSE))
        (row,) = await until(lambda: looking.fetch(WAITING_SQL))
        await looking.execute("SELECT pg_terminate_backend($1)", row["pid"])
    assert list((await call).purposes) == [PURPOSE]
    assert await consent.states(member(ALICE), PURPOSE) == ["REVOKED"]
    assert await revocations(consent) == 1


async def test_a_caller_that_leaves_in_the_commit_leaves_a_revocation_or_nothing(consent: Any) -> None:
    """A COMMIT is never cancelled: what the caller did not wait for is in the log once, and a retry is answered."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    async with commits_held(consent) as looking:
        call = asyncio.ensure_future(consent.revoke("r2", who(ALICE), PURPOSE))
        await until(lambda: looking.fetch(WAITING_SQL))
        call.cancel()
        await asyncio.wait({call})
    await consent.revoke("r2", who(ALICE), PURPOSE)
    assert await consent.states(member(ALICE), PURPOSE) == ["REVOKED"]
    assert await revocations(consent) == 1


@dataclass
class Proxy:
    """Between consent and Postgres: can swallow the answer to the next COMMIT, or hold that COMMIT itself back.

    Args:
        release: the COMMIT reaches Postgres only when this is set, after the client was cut off.
    """

    port: int
    target: int
    cut_next_commit: bool = False
    release: asyncio.Event | None = None
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        there, away = await asyncio.open_connection("127.0.0.1", self.target)
        cut = asyncio.Event()
        back = asyncio.ensure_future(self._back(there, writer, cut))
        self.tasks.append(back)
        while data := await reader.read(65536):
            if self.cut_next_commit and b"COMMIT;" in data:
                self.cut_next_commit = False
                cut.set()
                if self.release is not None:
                    writer.transport.abort()
                    await self.release.wait()
                away.write(data)
                await away.drain()
                break
            away.write(data)
        if not cut.is_set():
            away.close()
        await asyncio.wait({back})
        away.close()
        writer.close()

    async def _back(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await there.read(65536):
            if cut.is_set():
                # Postgres has answered the COMMIT; nobody will hear it.
                writer.transport.abort()
                return
            writer.write(data)
        writer.close()


@pytest.fixture
async def cut_off(database: Any, consent_over: Any) -> AsyncIterator[tuple[Any, Proxy]]:
    """Consent whose changes go through a proxy."""
    url = await database("consent")
    parts = urlsplit(url)
    assert parts.port is not None
    proxy = Proxy(0, parts.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    netloc = parts.netloc.replace(f":{parts.port}", f":{proxy.port}")
    consent = await consent_over(url=url, write_url=urlunsplit(parts._replace(netloc=netloc)))
    await consent.publish(PURPOSE)
    await consent.record("r1", who(ALICE), ads="GRANTED")
    yield consent, proxy
    server.close()


async def test_a_commit_whose_answer_is_lost_is_looked_up(cut_off: tuple[Any, Proxy]) -> None:
    """The revocation is there: the caller hears so, after the drain, and it is there once."""
    consent, proxy = cut_off
    proxy.cut_next_commit = True
    revoked = await consent.revoke("r2", who(ALICE), PURPOSE)
    assert not proxy.cut_next_commit
    assert (revoked.consent_version, list(revoked.purposes)) == (2, [PURPOSE])
    assert consent.pauses.asked_s == [0.05]
    assert await revocations(consent) == 1


async def test_a_commit_that_is_still_on_its_way_is_waited_for(cut_off: tuple[Any, Proxy]) -> None:
    """Looked up too early it is not there; the second try waits at its lock and finds it, instead of doubling it."""
    consent, proxy = cut_off
    proxy.release = asyncio.Event()
    proxy.cut_next_commit = True
    looking = await asyncpg.connect(consent.url)
    try:
        call = asyncio.ensure_future(consent.revoke("r2", who(ALICE), PURPOSE))
        await until(
            lambda: looking.fetch(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
            )
        )
        assert not call.done()
        proxy.release.set()
        assert (await call).consent_version == 2
        assert await revocations(consent) == 1
    finally:
        await looking.close()


async def test_a_slow_database_gives_no_verdict(consent: Any) -> None:
    """A consent read that is not answered in time is an outage, never a yes."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    connection = await asyncpg.connect(consent.url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE consent_state IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await consent.evaluate(member(ALICE), PURPOSE)
    finally:
        await connection.close()
    assert from_call_error(caught.value).kind is Kind.UNAVAILABLE
