"""The way from one service's log to another's effects, and back to whole when the stream lost something."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import nats
import pytest
from prometheus_client import REGISTRY

from cli.stack.servers import Servers
from services.chassis import envelope
from services.chassis.bus import NatsBus, stream_of
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, RecordedEvent
from services.chassis.eventstore import PostgresEventStore, append_in
from services.chassis.inbox import Subscription
from services.chassis.memory import MemoryBus
from services.chassis.ports import Bus, Message
from services.chassis.postgres import Connection, Pool, acquire, create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay, read_checkpoint
from tests.conftest import MakeDatabase
from tests.contract.samples import new_append, new_event
from tests.waiting import eventually

GRANTED, REVOKED = "comity.test.v1.Granted", "comity.test.v1.Revoked"


@dataclass
class Site:
    """A service that emits, its bus, and the database of one that consumes."""

    pool: Pool
    store: PostgresEventStore
    bus: NatsBus
    consumer_pool: Pool
    seen: list[RecordedEvent] = field(default_factory=list)

    async def note(self, connection: Connection, batch: list[RecordedEvent]) -> None:
        self.seen.extend(batch)

    def subscription(self, consumer: str = "consumer") -> Subscription:
        return Subscription(self.consumer_pool, self.bus, "source", consumer, self.note)


@pytest.fixture
async def site(database: MakeDatabase, nats_url: str) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        pool = await create_pool(await database("chassis"), size=6)
        stack.push_async_callback(pool.close)
        consumer_pool = await create_pool(await database("chassis"), size=3)
        stack.push_async_callback(consumer_pool.close)
        bus = await NatsBus.connect(nats_url, ack_wait_s=1.0)
        stack.push_async_callback(bus.close)
        store = PostgresEventStore(pool)
        stack.push_async_callback(store.drain)
        yield Site(pool, store, bus, consumer_pool)


@asynccontextmanager
async def running(*parts: Relay | Subscription | Reconciler) -> AsyncIterator[None]:
    """Background loops, run within the block."""
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield
        assert not [task for task in tasks if task.done()], "a loop ended by itself"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def of_subject(subject_id: str, *types: str) -> list[Append]:
    """Appends about one subject, each a stream of its own."""
    made = [new_event(subject_id=subject_id, type_name=type_name) for type_name in types]
    return [Append(event.event_id, 0, (event,)) for event in made]


async def test_every_event_arrives_once_and_as_recorded(site: Site) -> None:
    """What lies in the log is what a consumer gets, from before the relay started and after."""
    await site.store.append_many([new_append(f"s{number}", count=2) for number in range(40)])
    source, sink = Relay(site.pool, site.store, site.bus, "source"), site.subscription()
    async with running(source, sink):
        last = (await site.store.append_many([new_append("late", count=3)]))[0]
        source.wake()
        assert not isinstance(last, ServiceError)
        await sink.await_position(last.position, 20)
    recorded = await site.store.read_log(ORIGIN, limit=1000)
    assert sorted(site.seen, key=lambda event: event.position) == recorded
    assert len(recorded) == 83


async def test_subjects_events_keep_their_order_across_types(site: Site) -> None:
    """A subject's events arrive in commit order even where types alternate: a grant never overtakes a revocation."""
    types = [GRANTED, REVOKED] * 15
    for offset in range(0, len(types), 10):
        for appends in zip(*(of_subject(name * 26, *types[offset : offset + 10]) for name in "abcd"), strict=True):
            await site.store.append_many(appends)
    head = await site.store.head()
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(head, 20)
    for name in "abcd":
        mine = [event for event in site.seen if event.subject_id == name * 26]
        assert [event.type for event in mine] == types
        assert mine == sorted(mine, key=lambda event: event.position)


async def test_watermark_is_passed_only_when_all_before_it_had_their_effect(site: Site) -> None:
    """Whoever has waited for an event's position finds the effects of every earlier event, of all partitions."""
    sink = site.subscription()
    source = Relay(site.pool, site.store, site.bus, "source")
    async with running(source, sink):
        for _ in range(10):
            appends = [append for number in range(30) for append in of_subject(f"{number:026}", GRANTED, REVOKED)]
            results = await site.store.append_many(appends)
            source.wake()
            positions = [result.position for result in results if not isinstance(result, ServiceError)]
            await sink.await_position(max(positions), 20)
            assert set(positions) <= {event.position for event in site.seen}


async def test_checkpoint_makes_a_successor_go_on(site: Site) -> None:
    """A relay that starts again publishes what is new, not the log from its beginning."""
    await site.store.append(new_append("a"))
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)

        async def stored() -> bool:
            async with acquire(site.pool) as connection:
                return await read_checkpoint(connection, "source") == await site.store.head()

        await eventually(stored)
    before = (await site.bus.stream_state("source")).last_seq
    await site.store.append(new_append("b"))
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)
    assert (await site.bus.stream_state("source")).last_seq == before + 1


async def test_crash_between_publish_and_checkpoint_doubles_no_effect(site: Site) -> None:
    """A relay whose checkpoint was not stored publishes again, perhaps in other messages; effects stay single."""
    await site.store.append_many([new_append(f"s{number}") for number in range(20)])
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)
    async with acquire(site.pool) as connection:
        await connection.execute("DELETE FROM relay_checkpoint")
    await site.store.append_many([new_append(f"t{number}") for number in range(20)])
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)
    assert len(site.seen) == len({event.event_id for event in site.seen}) == 40


async def test_two_relays_take_turns(site: Site) -> None:
    """Of two processes one leads; when it ends the other goes on, and nothing is published in between by both."""
    first, second = (Relay(site.pool, site.store, site.bus, "source") for _ in range(2))
    sink = site.subscription()
    async with running(sink, second):
        async with running(first):
            await site.store.append_many([new_append(f"s{number}") for number in range(10)])
            await sink.await_position(await site.store.head(), 20)
        await site.store.append_many([new_append(f"t{number}") for number in range(10)])
        await sink.await_position(await site.store.head(), 20)
    assert len(site.seen) == 20


async def test_relay_survives_its_databases_connections(site: Site) -> None:
    """When every connection is killed the relay takes the lead again and goes on."""
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        for number in range(3):
            await site.store.append(new_append(f"s{number}"))
            await sink.await_position(await site.store.head(), 20)
            async with acquire(site.pool) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        await site.store.append(new_append("last"))
        await sink.await_position(await site.store.head(), 20)
    assert len(site.seen) == 4


async def test_nothing_is_lost_when_nats_is_killed(site: Site, servers: Servers) -> None:
    """SIGKILL of NATS in the middle of traffic: relay and consumer come back, and every event has its effect."""
    source, sink = Relay(site.pool, site.store, site.bus, "source"), site.subscription()
    async with running(source, sink, Reconciler(site.pool, site.bus, "source", look_every_s=0.2)):
        for number in range(60):
            await site.store.append(new_append(f"s{number}"))
            source.wake()
            if number == 30:
                await _kill_nats(servers)

        async def all_there() -> bool:
            return len(site.seen) >= 60

        await eventually(all_there, within_s=40)
    assert len(site.seen) == len({event.event_id for event in site.seen}) == 60


async def _kill_nats(servers: Servers) -> None:
    """Kill the server as a crash would, and start it on the same port and files."""
    port = servers.nats.port
    await servers.nats.process.kill()
    await servers.nats.start(may_move=False)
    assert servers.nats.port == port


async def test_messages_carry_cloudevents_headers(site: Site) -> None:
    """A message says what it is in the headers that CloudEvents declares."""
    (append,) = of_subject("a" * 26, GRANTED)
    await site.store.append(append)
    sent = _RecordingBus()
    async with running(Relay(site.pool, site.store, sent, "source")):

        async def published() -> bool:
            return bool(sent.messages)

        await eventually(published)
    ((message_id, message),) = sent.messages
    event = append.events[0]
    assert message_id == event.event_id
    assert message.channel == "ev.v1.0.source.Granted"
    assert dict(message.headers) == {
        "ce-specversion": "1.0",
        "ce-id": event.event_id,
        "ce-source": "/comity/source",
        "ce-type": GRANTED,
        "ce-watermark": envelope.headers("", _out(message), watermark=(await site.store.head()))["ce-watermark"],
        "content-type": "application/protobuf",
        "traceparent": event.traceparent,
    }


def _out(message: Message) -> envelope.OutMessage:
    return envelope.OutMessage(message.channel, "", tuple(envelope.decode_batch(message.payload)), message.payload)


class _RecordingBus(MemoryBus):
    """A bus that refuses what *refuse* says, and keeps the rest."""

    def __init__(self, refuse: str = "") -> None:
        super().__init__()
        self.messages: list[tuple[str, Message]] = []
        self._refuse = refuse

    async def publish(self, channel: str, payload: bytes, *, message_id: str, headers: Mapping[str, str]) -> None:
        if self._refuse and channel.endswith(self._refuse):
            raise ServiceError(Kind.INVALID, "MESSAGE_TOO_LARGE", "It is too large.")
        self.messages.append((message_id, Message(channel, payload, headers, 0)))


async def test_event_that_the_bus_refuses_does_not_wedge_the_relay(site: Site) -> None:
    """What can never be published is kept with its reason, and the log goes on behind it."""
    for type_name in (GRANTED, REVOKED, GRANTED):
        await site.store.append_many(of_subject("a" * 26, type_name))
    sent: Bus = _RecordingBus(refuse="Revoked")
    async with running(Relay(site.pool, site.store, sent, "source")):

        async def all_relayed() -> bool:
            async with acquire(site.pool) as connection:
                return await read_checkpoint(connection, "source") == await site.store.head()

        await eventually(all_relayed)
    assert isinstance(sent, _RecordingBus)
    assert len(sent.messages) == 2
    async with acquire(site.pool) as connection:
        (letter,) = await connection.fetch("SELECT consumer, type, reason FROM dead_letters")
    assert tuple(letter) == ("relay", REVOKED, "MESSAGE_TOO_LARGE")


async def test_large_events_travel(site: Site) -> None:
    """Events beyond a message's usual size travel alone, next to small ones."""
    sizes = [10, 150_000, 150_000, 900 * 2**10, 10]
    events = [new_event(bytes(size), subject_id="a" * 26) for size in sizes]
    await site.store.append_many([Append(event.event_id, 0, (event,)) for event in events])
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)
    assert [len(event.payload) for event in site.seen if isinstance(event.payload, bytes)] == sizes


async def test_lag_counts_what_the_barrier_holds_back(site: Site) -> None:
    """A transaction that does not end shows as lag, and its end makes the lag go."""
    async with acquire(site.pool) as connection:
        running_long = connection.transaction()
        await running_long.start()
        await append_in(connection, [new_append("slow")])
        await site.store.append(new_append("fast"))
        relay = Relay(site.pool, site.store, site.bus, "source")
        async with running(relay), watching(relay):

            async def lagging() -> bool:
                return told_lag() > 0.0

            await eventually(lagging)
            await running_long.commit()

            async def caught_up() -> bool:
                return told_lag() == 0.0

            await eventually(caught_up)


async def test_lag_is_told_where_nobody_relays(site: Site) -> None:
    """A replica that does not lead, or whose leader hangs, sees what waits too."""
    await site.store.append(new_append("waits"))
    async with watching(Relay(site.pool, site.store, site.bus, "source")):

        async def lagging() -> bool:
            return told_lag() > 0.0

        await eventually(lagging)


@asynccontextmanager
async def watching(relay: Relay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.watch_lag())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def told_lag() -> float:
    return REGISTRY.get_sample_value("comity_relay_lag_seconds", {"service": "source"}) or 0.0


@pytest.mark.parametrize("loss", ["some messages", "all messages", "the stream"])
async def test_lost_messages_are_published_again(
    site: Site, nats_url: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is taken from the stream before a consumer had it is found by the reconciler, and arrives, once."""
    monkeypatch.setattr(envelope, "EVENTS_MAX", 5)
    await site.store.append_many([append for number in range(60) for append in of_subject(f"{number:026}", GRANTED)])
    early = site.subscription("early")
    async with running(Relay(site.pool, site.store, site.bus, "source"), early):
        await early.await_position(await site.store.head(), 20)
    site.seen.clear()
    assert await Reconciler(site.pool, site.bus, "source").reconcile() == 0

    lost_count = await _lose(nats_url, loss)
    late = site.subscription("late")
    async with running(late, early, Reconciler(site.pool, site.bus, "source", look_every_s=0.1)):

        async def all_there() -> bool:
            return len({event.event_id for event in site.seen}) == 60

        await eventually(all_there)
    assert lost_count > 0
    assert len(site.seen) == 60, "the early consumer had them all before, and must not have them again"
    assert await Reconciler(site.pool, site.bus, "source").reconcile() == 0


async def test_without_the_reconciler_losses_stay(site: Site, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above has teeth: nobody else brings lost messages back."""
    monkeypatch.setattr(envelope, "EVENTS_MAX", 5)
    await site.store.append_many([new_append(f"s{number}") for number in range(60)])
    source, early = Relay(site.pool, site.store, site.bus, "source"), site.subscription("early")
    async with running(source, early):
        await early.await_position(await site.store.head(), 20)
    site.seen.clear()
    await _lose(nats_url, "some messages")
    await site.store.append(new_append("last"))
    late = site.subscription("late")
    async with running(source, late):
        await late.await_position(await site.store.head(), 20)
    assert 0 < len(site.seen) < 61


async def _lose(nats_url: str, loss: str) -> int:
    """Take messages out of the stream; how many."""
    admin = await nats.connect(nats_url)
    jetstream = admin.jetstream()
    name = stream_of("source")
    state = (await jetstream.stream_info(name)).state
    if loss == "the stream":
        await jetstream.delete_stream(name)
    elif loss == "all messages":
        await jetstream.purge_stream(name)
    else:
        for seq in range(state.first_seq + 1, state.last_seq, 2):
            await jetstream.delete_msg(name, seq)
    await admin.close()
    return state.messages


async def test_events_not_yet_relayed_are_not_the_reconcilers(site: Site) -> None:
    """What the relay has not reached is not lost: publishing it early would put it before older events."""
    await site.store.append(new_append("s"))
    assert await Reconciler(site.pool, site.bus, "source").reconcile() == 0
    assert (await site.bus.stream_state("source")).last_seq == 0


@pytest.mark.parametrize("type_name", ["", "no type", "comity.test.v1.", "comity.*", "x>"])
async def test_event_that_no_channel_can_be_named_after_does_not_wedge_the_relay(site: Site, type_name: str) -> None:
    """It is put aside with its reason, once, though the reconciler meets it again; the log goes on behind it."""
    for one in (GRANTED, type_name, REVOKED):
        await site.store.append_many(of_subject("a" * 26, one))
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)
        assert await Reconciler(site.pool, site.bus, "source").reconcile() == 0
    assert [event.type for event in site.seen] == [GRANTED, REVOKED]
    async with acquire(site.pool) as connection:
        letters = await connection.fetch("SELECT consumer, type, reason FROM dead_letters")
    assert [tuple(letter) for letter in letters] == [("relay", type_name, "UNPUBLISHABLE")]


async def test_trace_context_that_is_none_leaves_the_message_whole(site: Site) -> None:
    """A row whose trace context would break the headers travels without it."""
    event = replace(new_event(subject_id="a" * 26), traceparent="00\r\nNats-Msg-Id: other")
    await site.store.append_many([Append(event.event_id, 0, (event,)), *of_subject("a" * 26, GRANTED)])
    sink = site.subscription()
    async with running(Relay(site.pool, site.store, site.bus, "source"), sink):
        await sink.await_position(await site.store.head(), 20)
    assert len(site.seen) == 2
