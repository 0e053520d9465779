"""What every ports.EventStore does; run against Postgres and against memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from services.chassis.erasure import suppress_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, Appended, Sealed
from services.chassis.eventstore import PostgresEventStore
from services.chassis.memory import MemoryEventStore
from services.chassis.ports import EventStore
from services.chassis.postgres import Pool, create_pool, transaction
from tests.conftest import MakeDatabase
from tests.contract.samples import new_append, new_event

Suppress = Callable[[str], Awaitable[None]]


class EventStoreContract:
    """The promises; a subclass gives the store."""

    async def test_events_come_back_as_they_were_recorded(self, store: EventStore) -> None:
        """Every field of an event, sealed or plain, survives storage; versions count from 1."""
        sealed = new_event(Sealed("key", b"n" * 12, b"\x00secret"), subject_id="a" * 26)
        plain = new_event(b"")
        done = await store.append(Append("s", 0, (sealed, plain)))
        first, second = await store.read_stream("s")
        assert (first.payload, first.subject_id, first.event_id) == (sealed.payload, "a" * 26, sealed.event_id)
        assert (first.occurred_at, first.traceparent, first.type) == (
            sealed.occurred_at,
            sealed.traceparent,
            sealed.type,
        )
        assert (second.payload, second.stream_id) == (b"", "s")
        assert (first.version, second.version, done.version) == (1, 2, 2)
        assert done.position == second.position > first.position

    async def test_stream_is_read_from_a_version_on(self, store: EventStore) -> None:
        """after_version leaves out what the reader has; an unknown stream is empty."""
        await store.append(new_append("s", count=3))
        assert [event.version for event in await store.read_stream("s", after_version=1)] == [2, 3]
        assert await store.read_stream("nobody") == []

    @pytest.mark.parametrize("expected_version", [0, 1, 3])
    async def test_append_at_another_version_is_refused(self, store: EventStore, expected_version: int) -> None:
        """A stream at version 2 takes events after version 2 only, and a refused append leaves nothing."""
        await store.append(new_append("s", count=2))
        with pytest.raises(ServiceError) as refusal:
            await store.append(new_append("s", expected_version, count=2))
        assert (refusal.value.kind, refusal.value.reason) == (Kind.CONFLICT, "VERSION_CONFLICT")
        assert len(await store.read_stream("s")) == 2

    async def test_command_is_applied_once(self, store: EventStore) -> None:
        """A retry with the same request id answers what the first did and writes nothing."""
        first = await store.append(new_append("s", count=2, request_id="r", digest=b"d"))
        again = await store.append(new_append("s", count=2, request_id="r", digest=b"d"))
        assert again == replace(first, duplicate=True)
        assert not first.duplicate
        assert len(await store.read_stream("s")) == 2

    async def test_retry_after_the_stream_moved_on_still_answers_the_same(self, store: EventStore) -> None:
        """What a command did does not change because others came after it."""
        first = await store.append(new_append("s", request_id="r", digest=b"d"))
        await store.append(new_append("s", 1))
        assert await store.append(new_append("s", request_id="r", digest=b"d")) == replace(first, duplicate=True)

    async def test_request_id_of_another_command_is_refused(self, store: EventStore) -> None:
        """The same request id with another digest is a caller's mistake, on any stream."""
        await store.append(new_append("s", request_id="r", digest=b"d"))
        for stream_id in ("s", "t"):
            with pytest.raises(ServiceError) as refusal:
                await store.append(new_append(stream_id, request_id="r", digest=b"other"))
            assert (refusal.value.kind, refusal.value.reason) == (Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert await store.read_stream("t") == []

    async def test_appends_of_one_call_are_judged_apart(self, store: EventStore) -> None:
        """Each append of append_many stands on its own, in order: those on one stream see each other."""
        await store.append(new_append("s", request_id="r", digest=b"d"))
        results = await store.append_many(
            [
                new_append("s", 1, count=2),
                new_append("s", 3),
                new_append("s", 3),
                new_append("t"),
                new_append("u", request_id="r", digest=b"d"),
                new_append("u", request_id="q", digest=b"d"),
                new_append("u", request_id="q", digest=b"d"),
            ]
        )
        told = [r.reason if isinstance(r, ServiceError) else (r.version, r.duplicate) for r in results]
        assert told == [(3, False), (4, False), "VERSION_CONFLICT", (1, False), (1, True), (1, False), (1, True)]

    async def test_same_event_is_recorded_once(self, store: EventStore) -> None:
        """An event id is unique in the log, whichever stream it is offered to."""
        event = new_event()
        await store.append(Append("s", 0, (event,)))
        with pytest.raises(ServiceError) as refusal:
            await store.append(Append("t", 0, (event,)))
        assert refusal.value.kind is Kind.CONFLICT

    async def test_log_is_read_in_pages_without_gap_or_repeat(self, store: EventStore) -> None:
        """Pages from ORIGIN to the head hold every event once, in order of position."""
        for number in range(7):
            await store.append(new_append(f"s{number}", count=3))
        seen = []
        after = ORIGIN
        while page := await store.read_log(after, limit=4):
            assert len(page) <= 4
            seen += page
            after = page[-1].position
        assert len({event.event_id for event in seen}) == len(seen) == 21
        assert [event.position for event in seen] == sorted(event.position for event in seen)
        assert after == await store.head()

    async def test_empty_log_has_its_head_at_the_origin(self, store: EventStore) -> None:
        """Before the first event the head is ORIGIN and there is nothing to read."""
        assert await store.head() == ORIGIN
        assert await store.read_log(ORIGIN, limit=10) == []

    async def test_one_writer_wins_each_version(self, store: EventStore) -> None:
        """Of 64 writers racing for the versions of 8 streams, each version has one winner and no version is missing."""
        streams = [f"stream-{number}" for number in range(8)]
        wins: list[tuple[str, int]] = []

        async def write(writer: int) -> None:
            for step in range(12):
                stream_id = streams[(writer + step) % len(streams)]
                version = len(await store.read_stream(stream_id))
                (result,) = await store.append_many([new_append(stream_id, version, count=1 + writer % 2)])
                if isinstance(result, ServiceError):
                    assert result.reason == "VERSION_CONFLICT"
                else:
                    wins.extend((stream_id, number) for number in range(version + 1, result.version + 1))

        await asyncio.gather(*(write(writer) for writer in range(64)))
        recorded = [(name, event.version) for name in streams for event in await store.read_stream(name)]
        assert sorted(wins) == sorted(recorded)
        for name in streams:
            versions = [version for stream_id, version in recorded if stream_id == name]
            assert versions == list(range(1, len(versions) + 1))
        assert len(recorded) > len(streams)

    async def test_racing_retries_of_one_command_write_once(self, store: EventStore) -> None:
        """The same command sent 20 times at once has one effect, and every sender is told of it."""
        results = await asyncio.gather(
            *(store.append(new_append("s", request_id="r", digest=b"d")) for _ in range(20)), return_exceptions=True
        )
        assert all(isinstance(result, Appended) for result in results), results
        assert len(await store.read_stream("s")) == 1

    async def test_nothing_about_who_was_erased_is_recorded(self, store: EventStore, suppress: Suppress) -> None:
        """An append about an erased member is refused by name, alone, and leaves no command behind."""
        await suppress("e" * 26)
        gone = Append("gone", 0, (new_event(subject_id="e" * 26),), "r", b"d")
        kept = Append("kept", 0, (new_event(subject_id="k" * 26),), "q", b"d")
        refused, done = await store.append_many([gone, kept])
        assert isinstance(done, Appended)
        assert isinstance(refused, ServiceError)
        assert (refused.kind, refused.reason) == (Kind.FAILED_PRECONDITION, "SUBJECT_ERASED")
        with pytest.raises(ServiceError) as again:
            await store.append(gone)
        assert again.value.reason == "SUBJECT_ERASED"
        assert await store.read_stream("gone") == []
        assert len(await store.read_stream("kept")) == 1


class TestMemoryEventStore(EventStoreContract):
    @pytest.fixture
    def store(self) -> MemoryEventStore:
        return MemoryEventStore()

    @pytest.fixture
    def suppress(self, store: MemoryEventStore) -> Suppress:
        async def suppress(member_id: str) -> None:
            store.suppress((member_id,))

        return suppress


class TestPostgresEventStore(EventStoreContract):
    @pytest.fixture
    async def pool(self, database: MakeDatabase) -> AsyncIterator[Pool]:
        pool = await create_pool(await database("chassis"), size=4)
        yield pool
        await pool.close()

    @pytest.fixture
    async def store(self, pool: Pool) -> AsyncIterator[EventStore]:
        store = PostgresEventStore(pool)
        yield store
        await store.drain()

    @pytest.fixture
    def suppress(self, pool: Pool) -> Suppress:
        async def suppress(member_id: str) -> None:
            async with transaction(pool) as connection:
                await suppress_in(connection, "erasure", (member_id,))

        return suppress

    async def test_bad_append_does_not_take_its_batch_along(self, store: EventStore) -> None:
        """An append that the database cannot store at all fails alone; those that left with it are recorded."""
        results = await asyncio.gather(
            store.append(new_append("good")),
            store.append(new_append("bad\x00")),
            store.append(new_append(str(uuid4()))),
            return_exceptions=True,
        )
        assert isinstance(results[0], Appended)
        assert isinstance(results[1], Exception)
        assert isinstance(results[2], Appended)
