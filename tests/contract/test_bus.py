"""What every ports.Bus does; run against JetStream and against memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import nats
import pytest

from services.chassis.bus import MESSAGE_BYTES_MAX, NatsBus, channels_of, stream_of
from services.chassis.errors import Kind, ServiceError
from services.chassis.memory import MemoryBus
from services.chassis.ports import Bus, Message
from tests.waiting import eventually

HELD = channels_of("testing")


def channel(partition: int = 0, name: str = "Happened") -> str:
    return f"ev.v1.{partition}.testing.{name}"


async def publish(bus: Bus, *names: str, to: str = "") -> None:
    for name in names:
        await bus.publish(to or channel(), name.encode(), message_id=name, headers={"ce-id": name})


async def take(bus: Bus, count: int, *, durable: str = "reader", channels: str = HELD) -> list[Message]:
    """The next messages of a durable consumer, acknowledged."""
    messages: list[Message] = []
    if count == 0:
        return messages
    async with asyncio.timeout(50), aclosing(bus.consume(channels, durable=durable)) as deliveries:
        async for delivery in deliveries:
            messages.append(delivery.message)
            await delivery.ack()
            if len(messages) == count:
                break
    return messages


def payloads(messages: list[Message]) -> list[str]:
    return [message.payload.decode() for message in messages]


class BusContract:
    """The promises; a subclass gives the bus."""

    async def test_messages_arrive_as_they_were_sent(self, bus: Bus) -> None:
        """Channel, payload and headers survive; the first delivery is number 1."""
        await bus.publish(channel(3), b"\x00\xff", message_id="m", headers={"ce-id": "m", "ce-type": "a%20b"})
        (message,) = await take(bus, 1)
        assert (message.channel, message.payload, message.deliveries_count) == (channel(3), b"\x00\xff", 1)
        assert dict(message.headers) == {"ce-id": "m", "ce-type": "a%20b"}

    async def test_order_is_kept(self, bus: Bus) -> None:
        """Messages of one publisher come in the order they were stored, whatever their channels."""
        names = [f"m{number}" for number in range(30)]
        for number, name in enumerate(names):
            await publish(bus, name, to=channel(number % 4))
        assert payloads(await take(bus, 30)) == names

    async def test_same_message_id_is_stored_once(self, bus: Bus) -> None:
        """Publishing again under the same id is safe."""
        await publish(bus, "a", "a", "b", "a")
        assert payloads(await take(bus, 2)) == ["a", "b"]

    async def test_durable_goes_on_where_it_stood(self, bus: Bus) -> None:
        """A consumer that comes back gets what it has not acknowledged, another one gets everything."""
        await publish(bus, "a", "b", "c")
        assert payloads(await take(bus, 2)) == ["a", "b"]
        assert payloads(await take(bus, 1)) == ["c"]
        assert payloads(await take(bus, 3, durable="other")) == ["a", "b", "c"]

    async def test_consumer_takes_only_its_channels(self, bus: Bus) -> None:
        """`*` stands for one token and `>` for the rest."""
        await publish(bus, "a", to=channel(0, "One"))
        await publish(bus, "b", to=channel(1, "Two"))
        await publish(bus, "c", to=channel(0, "Two"))
        assert payloads(await take(bus, 2, channels="ev.v1.*.testing.Two", durable="two")) == ["b", "c"]
        assert payloads(await take(bus, 2, channels="ev.v1.0.testing.>", durable="zero")) == ["a", "c"]

    async def test_retry_holds_what_is_behind(self, bus: Bus) -> None:
        """A message to be tried again comes before those behind it, with its deliveries counted."""
        await publish(bus, "a", "b")
        seen: list[tuple[str, int]] = []
        async with asyncio.timeout(50), aclosing(bus.consume(HELD, durable="reader")) as deliveries:
            async for delivery in deliveries:
                seen.append((delivery.message.payload.decode(), delivery.message.deliveries_count))
                if len(seen) < 3:
                    await delivery.retry(delay_s=0.05)
                else:
                    await delivery.ack()
                if len(seen) == 4:
                    break
        assert seen == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]

    async def test_delivery_without_verdict_comes_again(self, bus: Bus) -> None:
        """What a consumer took and never acknowledged goes to the next one."""
        await publish(bus, "a", "b")
        async with asyncio.timeout(50), aclosing(bus.consume(HELD, durable="reader")) as deliveries:
            assert (await anext(deliveries)).message.payload == b"a"
        again, behind = await take(bus, 2)
        assert (again.payload, behind.payload) == (b"a", b"b")
        assert again.deliveries_count > 1

    async def test_consumer_that_waits_gets_what_comes(self, bus: Bus) -> None:
        """A consumer may be there before the first message is."""
        waiting = asyncio.create_task(take(bus, 1))
        await asyncio.sleep(0)
        await publish(bus, "a")
        assert payloads(await waiting) == ["a"]

    async def test_oldest_that_waits_is_told_while_nobody_works(self, bus: Bus) -> None:
        """Age of what was not acknowledged, also while it is in somebody's hands, and of its own channels alone."""
        two = "ev.v1.*.testing.Two"
        with pytest.raises(ServiceError):
            await bus.oldest_age_s(two, durable="reader")
        await publish(bus, "a", to=channel(0, "One"))
        await publish(bus, "b", "c", to=channel(1, "Two"))
        async with asyncio.timeout(50), aclosing(bus.consume(two, durable="reader")) as deliveries:
            delivery = await anext(deliveries)
            held_s = await bus.oldest_age_s(two, durable="reader")
            assert held_s > 0.0
            await delivery.retry(delay_s=0.01)
            delivery = await anext(deliveries)
            assert await bus.oldest_age_s(two, durable="reader") > held_s
            await delivery.ack()
            delivery = await anext(deliveries)
            assert await bus.oldest_age_s(two, durable="reader") > 0.0
            await delivery.ack()

            async def nothing_waits() -> bool:
                return await bus.oldest_age_s(two, durable="reader") == 0.0

            # NATS takes an acknowledgement in a moment after it was sent.
            await eventually(nothing_waits)

    async def test_consumers_of_one_durable_share_it(self, bus: Bus) -> None:
        """Two processes with one durable name get every message once between them."""
        names = [f"m{number}" for number in range(20)]
        await publish(bus, *names)
        taken: list[str] = []

        async def work() -> None:
            async with aclosing(bus.consume(HELD, durable="reader")) as deliveries:
                async for delivery in deliveries:
                    taken.append(delivery.message.payload.decode())
                    await delivery.ack()

        workers = [asyncio.create_task(work()) for _ in range(2)]

        async def all_taken() -> bool:
            return len(taken) >= len(names)

        await eventually(all_taken)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert taken == names


class TestMemoryBus(BusContract):
    @pytest.fixture
    def bus(self) -> Bus:
        return MemoryBus()


class TestNatsBus(BusContract):
    @pytest.fixture
    async def bus(self, nats_url: str) -> AsyncIterator[NatsBus]:
        bus = await NatsBus.connect(nats_url, ack_wait_s=1.0)
        yield bus
        await bus.close()

    async def test_slow_work_is_not_delivered_twice(self, bus: NatsBus) -> None:
        """A consumer that works longer than the acknowledgement may take keeps its message."""
        await publish(bus, "a")
        ended = asyncio.get_running_loop().time() + 2.5
        async with asyncio.timeout(50), aclosing(bus.consume(HELD, durable="reader")) as deliveries:
            delivery = await anext(deliveries)
            other = asyncio.create_task(take(bus, 1))
            await asyncio.wait({other}, timeout=ended - asyncio.get_running_loop().time())
            assert not other.done()
            await delivery.ack()
            await publish(bus, "b")
            assert payloads(await other) == ["b"]

    async def test_message_that_can_never_be_stored_is_refused(self, bus: NatsBus) -> None:
        """Beyond the limit there is nothing to retry, and the refusal says so."""
        with pytest.raises(ServiceError) as refusal:
            await bus.publish(channel(), bytes(MESSAGE_BYTES_MAX), message_id="m", headers={})
        assert (refusal.value.kind, refusal.value.reason) == (Kind.INVALID, "MESSAGE_TOO_LARGE")
        await bus.publish(channel(), bytes(900 * 2**10), message_id="n", headers={})

    async def test_deleted_stream_is_made_again_by_publisher_and_consumer(self, bus: NatsBus, nats_url: str) -> None:
        """Publishing goes on after somebody deleted the stream, and a consumer that waited goes on too."""
        await publish(bus, "a")
        taken: list[str] = []

        async def work() -> None:
            async with aclosing(bus.consume(HELD, durable="reader")) as deliveries:
                async for delivery in deliveries:
                    taken.append(delivery.message.payload.decode())
                    await delivery.ack()

        worker = asyncio.create_task(work())

        async def has_a() -> bool:
            return "a" in taken

        await eventually(has_a)
        admin = await nats.connect(nats_url)
        await admin.jetstream().delete_stream(stream_of("testing"))
        await admin.close()
        await publish(bus, "b")

        async def has_b() -> bool:
            return "b" in taken

        await eventually(has_b)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    async def test_limits_of_an_older_stream_are_brought_up_to_date(self, bus: NatsBus, nats_url: str) -> None:
        """ensure_stream changes what differs and is no error when nothing does."""
        admin = await nats.connect(nats_url)
        await admin.jetstream().add_stream(name=stream_of("testing"), subjects=[HELD], max_age=60)
        await bus.ensure_stream("testing")
        await bus.ensure_stream("testing")
        info = await admin.jetstream().stream_info(stream_of("testing"))
        await admin.close()
        assert info.config.max_age == 7 * 24 * 3600
        assert info.config.duplicate_window == 600

    async def test_bus_that_is_not_there_is_an_outage(self) -> None:
        """A server that does not answer within the bound is UNAVAILABLE."""
        with pytest.raises(ServiceError) as outage:
            await NatsBus.connect("nats://127.0.0.1:1", timeout_s=0.3)
        assert outage.value.kind is Kind.UNAVAILABLE
