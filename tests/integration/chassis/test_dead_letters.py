"""What was put aside: listed, retried and dropped by an operator, over gRPC and from the command line."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from cli.main import app as commands
from services.chassis import envelope
from services.chassis.alarms import Alarm, standing
from services.chassis.dead_letters import DeadLetters, Letter, put_aside
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import RecordedEvent
from services.chassis.inbox import Subscription
from services.chassis.lifecycle import App, serve
from services.chassis.memory import MemoryBus
from services.chassis.postgres import Connection, Pool, acquire, create_pool
from services.chassis.settings import ServiceSettings
from tests.conftest import MakeDatabase
from tests.integration.chassis.test_inbox import events, publish
from tests.waiting import eventually, until_served

ROW = Letter("decision", "catalog", "BUG", channel="items/poison")
SETTINGS = ServiceSettings(database_url=SecretStr("x"), nats_url="x", drain_s=0.0, stop_grace_s=1.0)


@pytest.fixture
async def pool(database: MakeDatabase) -> AsyncIterator[Pool]:
    pool = await create_pool(await database("chassis"), size=6)
    yield pool
    await pool.close()


class Consumer:
    """A service whose handler refuses what it is told to, and notes the rest."""

    def __init__(self, pool: Pool) -> None:
        self.bus = MemoryBus()
        self.refused: set[int] = set()
        self.taken: list[int] = []
        self.letters = DeadLetters(pool)
        self.subscription = Subscription(pool, self.bus, "source", "test", self.handle)
        self.letters.retried_by("source", "test", self.subscription.retry)

    async def handle(self, connection: Connection, batch: list[RecordedEvent]) -> None:
        if self.refused.intersection(event.version for event in batch):
            raise ServiceError(Kind.INVALID, "REFUSED", "it is refused")
        self.taken += [event.version for event in batch]

    async def build(self, _settings: ServiceSettings, app: App) -> None:
        app.keep(self.letters)
        app.background("events", self.subscription.run)
        self.server = app.server


async def cli(*arguments: str) -> tuple[int, str]:
    """The command's exit code and output, in a thread: it runs a loop of its own."""
    result = await asyncio.to_thread(CliRunner().invoke, commands, list(arguments))
    return result.exit_code, result.stdout


async def test_letters_are_listed_retried_and_dropped(pool: Pool) -> None:
    """doctor names each with its remedy and exits with 1; a retry has the effect once, and what fails again stays."""
    consumer, stop = Consumer(pool), asyncio.Event()
    consumer.refused = {2, 3}
    serving = asyncio.create_task(serve("feedback", SETTINGS, consumer.build, stop=stop))
    try:

        async def is_built() -> bool:
            return hasattr(consumer, "server")

        await eventually(is_built)
        address = ("--address", f"feedback={await until_served(consumer.server)}")
        assert await cli("doctor", *address) == (0, "nothing is wrong\n")
        batch = events(1, 2, 3, 4)
        await publish(consumer.bus, batch, message_id="a")  # type: ignore[arg-type]
        await consumer.subscription.await_position(batch[-1].position, 20)
        assert consumer.taken == [1, 4]
        code, told = await cli("doctor", "--json", *address)
        first, second = json.loads(told)["findings"]
        assert code == 1
        assert first["name"] == "feedback:1"
        assert batch[1].event_id in first["problem"]
        assert "comity dead-letters retry feedback:1" in first["remedy"]
        consumer.refused = {3}
        code, told = await cli("dead-letters", "retry", "--all", "--json", *address)
        assert (code, consumer.taken) == (1, [1, 4, 2])
        assert [one["letter"] for one in json.loads(told)["left"]] == [second["name"]]
        await publish(consumer.bus, batch, message_id="b")  # type: ignore[arg-type]
        await consumer.subscription.await_position(batch[-1].position, 20)
        assert consumer.taken == [1, 4, 2]
        assert (await cli("dead-letters", "discard", second["name"], "--yes", *address))[0] == 0
        assert await cli("doctor", *address) == (0, "nothing is wrong\n")
        assert Alarm.DEAD_LETTERS not in standing()
    finally:
        stop.set()
        assert await serving == 0


class Slow(Consumer):
    """One whose handler waits until it may go on; it notes how many events each commit is told of."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()
        self.told: list[int] = []
        subscription = Subscription(pool, self.bus, "source", "test", self.handle, self.after_commit)
        self.letters.retried_by("source", "test", subscription.retry)

    async def handle(self, connection: Connection, batch: list[RecordedEvent]) -> None:
        self.begun.set()
        await self.goes_on.wait()
        await super().handle(connection, batch)

    async def after_commit(self, batch: list[RecordedEvent]) -> None:
        self.told.append(len(batch))

    async def left(self) -> int:
        return (await self.letters.after(0, 0))[1]

    async def retry_one(self, pool: Pool) -> "asyncio.Task[ServiceError | None]":
        payload = envelope.encode_batch(events(1))
        await put_aside(pool, [Letter("source", "test", "REFUSED", payload=payload)])
        ((letter,), _) = await self.letters.after(0, 0)
        retrying = asyncio.create_task(self.letters.retry(letter.id))
        async with asyncio.timeout(50):
            await self.begun.wait()
        return retrying


async def test_retry_that_is_refused_commits_nothing(pool: Pool) -> None:
    """Its letter stays, and nobody is told of an effect."""
    consumer = Slow(pool)
    consumer.refused = {1}
    consumer.goes_on.set()
    assert await (await consumer.retry_one(pool)) is not None
    assert (consumer.told, await consumer.left()) == ([], 1)


async def test_retry_whose_caller_has_gone_is_finished(pool: Pool) -> None:
    """Neither the effect nor what follows its commit is left halfway."""
    consumer = Slow(pool)
    retrying = await consumer.retry_one(pool)
    retrying.cancel()
    consumer.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await retrying
    assert (consumer.taken, consumer.told, await consumer.left()) == ([1], [1], 0)


async def test_service_that_does_not_serve_is_a_finding() -> None:
    """Where nothing answers doctor says so, with what to do, and exits with 1."""
    code, told = await cli("doctor", "--json", "--address", "feedback=127.0.0.1:1")
    (finding,) = json.loads(told)["findings"]
    assert (code, finding["where"], finding["what"]) == (1, "feedback", "not_serving")
    assert finding["remedy"]


async def test_row_is_put_aside_once(pool: Pool) -> None:
    """A reader that meets it again tells nothing new, also not once it was dropped; an outage is nobody's reason."""
    letters = DeadLetters(pool)
    for _ in range(2):
        await put_aside(pool, [ROW])
    (letter,), count = await letters.after(0, 0)
    assert (count, letter.channel, letters.can_retry(letter)) == (1, "items/poison", True)
    assert await letters.discard([letter.id]) == 1
    await put_aside(pool, [ROW])
    assert (await letters.after(0, 0))[1] == 0


async def test_rows_of_two_people_are_two_letters(pool: Pool) -> None:
    """Also where nothing but the person names the row; that one was dropped hides no other."""
    letters = DeadLetters(pool)
    await put_aside(pool, [replace(ROW, subject_id="a" * 26)])
    (first,), _ = await letters.after(0, 0)
    await letters.discard([first.id])
    await put_aside(pool, [replace(ROW, subject_id="b" * 26)])
    assert [letter.subject_id for letter in (await letters.after(0, 0))[0]] == ["b" * 26]


async def test_nothing_is_put_aside_about_the_erased(pool: Pool) -> None:
    """Neither a letter about an erased member nor a message that names one is kept."""
    member = "a" * 26
    async with acquire(pool) as connection:
        await connection.execute("INSERT INTO erased_members (member_id, erasure_id) VALUES ($1, 'e')", member)
    message = envelope.encode_batch(events(1))
    await put_aside(pool, [replace(ROW, subject_id=member), replace(ROW, payload=message, channel="ev")])
    assert (await DeadLetters(pool).after(0, 0))[1] == 0


async def test_texts_that_no_table_takes_are_put_aside_without_them(pool: Pool) -> None:
    """A letter of something unspeakable is a letter all the same."""
    await put_aside(pool, [replace(ROW, type="a\x00b", channel="c\x00", event_id="no id")])
    (letter,), _ = await DeadLetters(pool).after(0, 0)
    assert (letter.type, letter.channel, letter.event_id) == ("ab", "c", "")
