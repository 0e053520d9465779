"""Taking events in: each has its effect once, whatever is delivered twice, dies in between or is poison."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from opentelemetry.trace import SpanKind
from prometheus_client import REGISTRY

from services.chassis import envelope
from services.chassis.bus import NatsBus
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition, RecordedEvent
from services.chassis.inbox import AfterCommit, Handle, Subscription
from services.chassis.postgres import Connection, Pool, acquire, create_pool
from tests.conftest import MakeDatabase
from tests.contract.samples import new_event
from tests.traced import Traced
from tests.waiting import eventually

EFFECT_SQL = "INSERT INTO effects (stream_id, version) VALUES ($1, $2)"
EFFECTS_SQL = "SELECT stream_id, version FROM effects ORDER BY number"
LETTERS_SQL = "SELECT event_id::text, type, subject_id, reason, detail, payload FROM dead_letters ORDER BY id"

Effect = tuple[str, int]


@pytest.fixture
async def pool(database: MakeDatabase) -> AsyncIterator[Pool]:
    pool = await create_pool(await database("chassis"), size=6)
    async with acquire(pool) as connection:
        # No unique constraint: an effect that happened twice is to be seen.
        await connection.execute(
            "CREATE TABLE effects (number bigint GENERATED ALWAYS AS IDENTITY, stream_id text, version int)"
        )
    yield pool
    await pool.close()


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[NatsBus]:
    bus = await NatsBus.connect(nats_url, ack_wait_s=1.0)
    yield bus
    await bus.close()


def events(*numbers: int, stream_id: str = "s") -> list[RecordedEvent]:
    """Recorded events at these positions."""
    made = [(number, new_event(subject_id="a" * 26)) for number in numbers]
    return [
        RecordedEvent(
            event_id=event.event_id,
            type=event.type,
            payload=event.payload,
            occurred_at=event.occurred_at,
            subject_id=event.subject_id,
            traceparent="",
            stream_id=stream_id,
            version=number,
            position=LogPosition(1, 700 + number, number),
        )
        for number, event in made
    ]


async def publish(bus: NatsBus, batch: list[RecordedEvent], *, message_id: str, watermark: bool = True) -> None:
    """One message of these events, as the relay sends it."""
    (message,) = envelope.pack("source", batch)[envelope.partition(batch[0], envelope.PARTITIONS_COUNT)]
    headers = envelope.headers("source", message, watermark=batch[-1].position if watermark else None)
    await bus.publish(message.channel, message.payload, message_id=message_id, headers=headers)


async def record(connection: Connection, batch: list[RecordedEvent]) -> None:
    """The effect: a row an event."""
    for event in batch:
        await connection.execute(EFFECT_SQL, event.stream_id, event.version)


async def effects(pool: Pool) -> list[int]:
    """Versions of the events that had their effect, in order."""
    async with acquire(pool) as connection:
        return [row["version"] for row in await connection.fetch(EFFECTS_SQL)]


@asynccontextmanager
async def running(
    pool: Pool, bus: NatsBus, handle: Handle = record, after_commit: AfterCommit | None = None, consumer: str = "test"
) -> AsyncIterator[Subscription]:
    """A subscription that consumes within the block."""
    subscription = Subscription(pool, bus, "source", consumer, handle, after_commit)
    task = asyncio.create_task(subscription.run())
    try:
        yield subscription
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def reached(pool: Pool, count: int) -> Callable[[], Awaitable[bool]]:
    async def enough_effects() -> bool:
        return len(await effects(pool)) >= count

    return enough_effects


async def test_duplicates_are_applied_once(pool: Pool, bus: NatsBus) -> None:
    """Events delivered again, in the same message, another one or a larger one, have one effect each, in order."""
    first = events(1, 2, 3)
    more = events(4, 5)
    await publish(bus, first, message_id="a")
    await publish(bus, first, message_id="b")
    await publish(bus, [*first[1:], *more, more[-1]], message_id="c")
    async with running(pool, bus) as subscription:
        await subscription.await_position(more[-1].position, 20)
    assert await effects(pool) == [1, 2, 3, 4, 5]


async def test_lag_grows_while_the_consumer_is_stuck_and_goes_when_it_is_not(pool: Pool, bus: NatsBus) -> None:
    """The metric is the age of what waits: not of what was processed last, which a stuck consumer never changes."""
    may_go_on, stuck = asyncio.Event(), asyncio.Event()

    async def handle(connection: Connection, batch: list[RecordedEvent]) -> None:
        stuck.set()
        await may_go_on.wait()
        await record(connection, batch)

    def told_s() -> float:
        return REGISTRY.get_sample_value("comity_inbox_lag_seconds", {"source": "source"}) or 0.0

    await publish(bus, events(1), message_id="a")
    async with running(pool, bus, handle) as subscription:
        watching = asyncio.create_task(subscription.watch_lag())
        await stuck.wait()

        async def is_told() -> bool:
            return told_s() > 0.0

        await eventually(is_told)
        before_s = told_s()
        assert told_s() > before_s, "it grows between two scrapes"
        may_go_on.set()

        async def is_gone() -> bool:
            return told_s() == 0.0

        await eventually(is_gone)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_span_of_a_consumer_says_what_of_whom_it_took(pool: Pool, bus: NatsBus) -> None:
    """System, destination, consumer and message, as the conventions name them; linked to every producer."""
    traced = Traced(ratio=0.0)
    second = f"00-{'c' * 32}-{'d' * 16}-01"
    one, other = events(1, 2)
    try:
        await publish(bus, [one, replace(other, traceparent=second)], message_id="a")
        async with running(pool, bus) as subscription:
            await subscription.await_position(LogPosition(1, 702, 2), 20)
            (name,) = [name for name in traced.spans() if name.startswith("process ")]
    finally:
        traced.telemetry.shutdown()
    span = traced.spans()[name]
    attributes = dict(span.attributes or {})
    channel = str(attributes["messaging.destination.name"])
    assert channel.endswith(".source.Happened")
    assert name == f"process {channel}"
    assert (attributes["messaging.system"], attributes["messaging.consumer.group.name"]) == ("nats", "test")
    assert (attributes["messaging.operation.type"], attributes["comity.batch.size"]) == ("process", 2)
    assert f"{'c' * 32}" in {f"{link.context.trace_id:032x}" for link in span.links}
    assert span.kind is SpanKind.CONSUMER


async def test_without_the_inbox_duplicates_are_doubled(pool: Pool, bus: NatsBus) -> None:
    """The test above has teeth: with the inbox emptied between deliveries, effects double."""
    batch = events(1, 2)
    async with running(pool, bus):
        await publish(bus, batch, message_id="a")
        await eventually(reached(pool, 2))
        async with acquire(pool) as connection:
            await connection.execute("DELETE FROM inbox")
        await publish(bus, batch, message_id="b")
        await eventually(reached(pool, 4))


async def test_kill_between_effect_and_ack_applies_once(pool: Pool, bus: NatsBus) -> None:
    """A consumer that dies after its commit and before its acknowledgement leaves no second effect behind."""
    committed = asyncio.Event()

    async def die(batch: list[RecordedEvent]) -> None:
        committed.set()
        await asyncio.Event().wait()

    batch = events(1, 2, 3)
    await publish(bus, batch, message_id="a")
    async with running(pool, bus, after_commit=die):
        async with asyncio.timeout(50):
            await committed.wait()
    assert await effects(pool) == [1, 2, 3]
    last = events(4)
    await publish(bus, last, message_id="b")
    async with running(pool, bus) as subscription:
        await subscription.await_position(last[0].position, 20)
    assert await effects(pool) == [1, 2, 3, 4]


async def test_kill_within_the_effect_applies_once(pool: Pool, bus: NatsBus) -> None:
    """A consumer that dies half-way leaves nothing, and its successor does all of it."""
    half_way = asyncio.Event()

    async def die_half_way(connection: Connection, batch: list[RecordedEvent]) -> None:
        await record(connection, batch[:1])
        half_way.set()
        await asyncio.Event().wait()

    batch = events(1, 2, 3)
    await publish(bus, batch, message_id="a")
    async with running(pool, bus, die_half_way):
        async with asyncio.timeout(50):
            await half_way.wait()
    assert await effects(pool) == []
    async with running(pool, bus) as subscription:
        await subscription.await_position(batch[-1].position, 20)
    assert await effects(pool) == [1, 2, 3]


async def test_after_commit_is_repeated_until_it_was_done(pool: Pool, bus: NatsBus) -> None:
    """What runs after the commit runs again after a crash, with the events that are duplicates by then."""
    calls: list[list[int]] = []

    async def fill(batch: list[RecordedEvent]) -> None:
        calls.append([event.version for event in batch])
        if len(calls) == 1:
            raise ServiceError(Kind.UNAVAILABLE, "CACHE_UNAVAILABLE", "gone")

    batch = events(1, 2)
    await publish(bus, batch, message_id="a")
    async with running(pool, bus, after_commit=fill):

        async def twice() -> bool:
            return len(calls) == 2

        await eventually(twice)
    assert calls == [[1, 2], [1, 2]]
    assert await effects(pool) == [1, 2]


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (ServiceError(Kind.INVALID, "BAD_EVENT", "It is bad."), "BAD_EVENT", "It is bad."),
        (ServiceError(Kind.NOT_FOUND, "NO_DECISION", "There is none."), "NO_DECISION", "There is none."),
        (ServiceError(Kind.FAILED_PRECONDITION, "CLOSED", "It is closed."), "CLOSED", "It is closed."),
        (KeyError("a value of the event"), "BUG", "KeyError"),
    ],
)
async def test_poison_is_put_aside_at_once_and_the_rest_applies(
    pool: Pool, bus: NatsBus, error: Exception, reason: str, detail: str
) -> None:
    """One event of a message that can never be handled goes to the dead letters; its neighbors have their effect."""
    deliveries_count = 0

    async def choke_on_two(connection: Connection, batch: list[RecordedEvent]) -> None:
        nonlocal deliveries_count
        deliveries_count += len(batch) == 3
        for event in batch:
            # Before the error, so that what a failed event did is seen to be undone.
            await record(connection, [event])
            if event.version == 2:
                raise error

    batch = events(1, 2, 3)
    await publish(bus, batch, message_id="a")
    async with running(pool, bus, choke_on_two) as subscription:
        await subscription.await_position(batch[-1].position, 20)
    assert await effects(pool) == [1, 3]
    assert deliveries_count == 1
    async with acquire(pool) as connection:
        (letter,) = await connection.fetch(LETTERS_SQL)
    assert (letter["event_id"], letter["type"], letter["subject_id"]) == (batch[1].event_id, batch[1].type, "a" * 26)
    assert (letter["reason"], letter["detail"]) == (reason, detail)
    assert envelope.decode_batch(letter["payload"]) == [batch[1]]


async def test_database_refusal_is_poison_without_its_words(pool: Pool, bus: NatsBus) -> None:
    """A row that a constraint refuses is put aside; the database's text, which quotes the row, is not kept."""
    batch = events(1, 2, 3)
    async with acquire(pool) as connection:
        await connection.execute("ALTER TABLE effects ADD CHECK (version <> 2)")
    await publish(bus, batch, message_id="a")
    async with running(pool, bus, record) as subscription:
        await subscription.await_position(batch[-1].position, 20)
    assert await effects(pool) == [1, 3]
    async with acquire(pool) as connection:
        (letter,) = await connection.fetch(LETTERS_SQL)
    assert (letter["reason"], letter["detail"]) == ("DATABASE_REFUSED", "CheckViolationError")


async def test_refusal_at_the_commit_puts_the_message_aside(pool: Pool, bus: NatsBus) -> None:
    """When only the COMMIT refuses, the message's events are all kept aside, and those behind it go on."""
    async with acquire(pool) as connection:
        await connection.execute("ALTER TABLE effects ADD UNIQUE (version) DEFERRABLE INITIALLY DEFERRED")
    async with running(pool, bus) as subscription:
        await publish(bus, events(1), message_id="a")
        await publish(bus, events(1, 2), message_id="b")
        last = events(3)
        await publish(bus, last, message_id="c")
        await subscription.await_position(last[0].position, 20)
    assert await effects(pool) == [1, 3]
    async with acquire(pool) as connection:
        letters = await connection.fetch(LETTERS_SQL)
    assert [letter["reason"] for letter in letters] == ["DATABASE_REFUSED"] * 2


async def test_message_that_is_no_batch_is_put_aside(pool: Pool, bus: NatsBus) -> None:
    """Bytes that cannot be read are kept, and what follows is consumed."""
    await bus.publish("ev.v1.0.source.Happened", b"\xff\xff\xff", message_id="a", headers={})
    broken = replace(events(1)[0], event_id="no uuid")
    await publish(bus, [broken], message_id="b", watermark=False)
    good = events(2)
    await publish(bus, good, message_id="c")
    async with running(pool, bus) as subscription:
        await subscription.await_position(good[0].position, 20)
    assert await effects(pool) == [2]
    async with acquire(pool) as connection:
        letters = await connection.fetch(LETTERS_SQL)
    assert [letter["reason"] for letter in letters] == ["UNDECODABLE"] * 2
    assert letters[0]["payload"] == b"\xff\xff\xff"


async def test_outage_is_waited_out_in_order(pool: Pool, bus: NatsBus) -> None:
    """While something is away the message is tried again and those behind it wait; nothing is put aside."""
    outages_left = 3
    seen: list[int] = []

    async def flaky(connection: Connection, batch: list[RecordedEvent]) -> None:
        nonlocal outages_left
        seen.extend(event.version for event in batch)
        if batch[0].version == 1 and outages_left:
            outages_left -= 1
            raise ServiceError(Kind.UNAVAILABLE, "IDENTITY_UNAVAILABLE", "gone")
        await record(connection, batch)

    for number in (1, 2, 3):
        await publish(bus, events(number), message_id=str(number))
    async with running(pool, bus, flaky):
        await eventually(reached(pool, 3))
    assert seen == [1, 1, 1, 1, 2, 3]
    async with acquire(pool) as connection:
        assert await connection.fetch(LETTERS_SQL) == []


async def test_position_is_told_in_every_process(pool: Pool, bus: NatsBus) -> None:
    """await_position returns at once when it is passed, and in a process that does not consume itself."""
    batch = events(1, 2)
    idle = Subscription(pool, bus, "source", "test", record)
    waiting = asyncio.create_task(idle.await_position(batch[-1].position, 20))
    async with running(pool, bus) as subscription:
        await publish(bus, batch, message_id="a")
        await subscription.await_position(batch[-1].position, 20)
        await waiting
    assert subscription.position == idle.position == batch[-1].position
    later = Subscription(pool, bus, "source", "test", record)
    await later.await_position(batch[0].position, 0.0)
    with pytest.raises(ServiceError) as refusal:
        await later.await_position(LogPosition(9, 9, 9), 0.05)
    assert (refusal.value.kind, refusal.value.reason) == (Kind.DEADLINE, "POSITION_NOT_REACHED")


async def test_position_advances_over_duplicates_and_never_back(pool: Pool, bus: NatsBus) -> None:
    """A message of nothing but duplicates moves the position; an old one that comes late does not move it back."""
    first, second = events(1), events(2)
    async with running(pool, bus) as subscription:
        await publish(bus, second, message_id="a", watermark=False)
        await publish(bus, second, message_id="b")
        await subscription.await_position(second[0].position, 20)
        await publish(bus, first, message_id="c")
        await eventually(reached(pool, 2))
    assert subscription.position == second[0].position
    assert await effects(pool) == [2, 1]


async def test_only_one_type_is_taken_and_its_own_position_awaited(pool: Pool, bus: NatsBus) -> None:
    """A subscription to one type sees nothing else, and stands where the last event of that type stood."""
    wanted, other, last = events(1), [replace(one, type="source.v1.Other") for one in events(2)], events(3)
    taken: list[str] = []

    async def note(connection: Connection, batch: list[RecordedEvent]) -> None:
        taken.extend(event.type for event in batch)
        await record(connection, batch)

    subscription = Subscription(pool, bus, "source", "picky", note, only=wanted[0].type)
    task = asyncio.create_task(subscription.run())
    try:
        for name, batch in zip("abc", (wanted, other, last), strict=True):
            await publish(bus, batch, message_id=name, watermark=False)
        await subscription.await_position(last[0].position, 20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert taken == [wanted[0].type, last[0].type]
    assert subscription.position == last[0].position


async def test_consumers_of_one_source_are_independent(pool: Pool, bus: NatsBus) -> None:
    """Two subscriptions in one database each have every event's effect."""
    batch = events(1, 2)
    await publish(bus, batch, message_id="a")
    async with running(pool, bus, consumer="one"), running(pool, bus, consumer="two"):
        await eventually(reached(pool, 4))
    assert sorted(await effects(pool)) == [1, 1, 2, 2]
