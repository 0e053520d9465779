"""What features holds about a person: given out, subtracted from the counts of items, and gone from every store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis.asyncio
from comity.decision.v1 import site_pb2
from comity.feedback.v1 import feedback_events_pb2
from structlog.testing import capture_logs

from services.chassis import envelope
from services.chassis.cache import RedisCache
from services.chassis.erasure import Counts, Erasure, Step
from services.chassis.events import LogPosition, RecordedEvent
from services.chassis.holdings import Eraser, HeldRecord
from services.chassis.ids import uuid7
from services.chassis.inbox import Subscription
from services.chassis.memory import MemoryBus
from services.chassis.postgres import Pool, create_pool
from services.features.domain.book import Book
from services.features.domain.members import Behavior
from services.features.domain.requests import FeatureQuery, Source
from services.features.handlers import Settled
from services.features.store import CACHE_TTL_S, CONSUMER, cache_key
from services.features.store.holdings import LOCK_SQL, NOTE_WITHDRAWN_SQL, FeaturesHoldings, _declared_s
from services.features.subscribers import BehaviorIntake
from services.features.wire import BEHAVIOR_RECORDED, behavior_from
from tests.conftest import MakeDatabase
from tests.integration.features.test_serving import FEATURES, Features

ANN, BOB = "a" * 26, "b" * 26
NOW = datetime.now(UTC)


class Site(Features):
    """Features that takes messages in through its inbox, beside a feedback log in memory."""

    def __init__(self, pool: Pool, cache: RedisCache) -> None:
        super().__init__(pool, cache)
        self.cache = cache
        self.settled = Settled()
        self.intake = BehaviorIntake(self.books, self.sealer, self.states, self.settled)
        self.log: list[RecordedEvent] = []
        self.bus = MemoryBus()
        self.holdings = FeaturesHoldings(pool, cache, self.books, self.sealer, self)
        self.eraser = Eraser(pool, self.holdings, forget=self.sealer.forget)
        self.subscription = Subscription(
            pool, self.bus, Source.FEEDBACK, CONSUMER, self.intake.handle, self.intake.after_commit
        )

    async def behavior_of(self, member_ids: Sequence[str]) -> AsyncIterator[list[tuple[str, Behavior]]]:
        """What feedback would give out again: one event a page."""
        for event in self.log:
            if event.subject_id in member_ids:
                (plain,) = await self.sealer.open_many([event])
                assert isinstance(plain, bytes)
                yield [(event.event_id, behavior_from(event, plain))]

    async def record(self, who: str, *items: str, age: timedelta = timedelta(0)) -> RecordedEvent:
        """A click in feedback's log, not yet delivered."""
        payload = feedback_events_pb2.BehaviorRecorded(type="click", item_ids=items).SerializeToString()
        at, place = NOW - age, len(self.log) + 1
        sealed = await self.sealer.seal(who, BEHAVIOR_RECORDED, payload)
        event = RecordedEvent(
            uuid7(at), BEHAVIOR_RECORDED, sealed, at, who, "", f"s{place}", 1, LogPosition(1, place, place)
        )
        self.log.append(event)
        return event

    async def deliver(self, *events: RecordedEvent, message_id: str = "") -> None:
        """Deliver a message of these, and wait for its effect."""
        message = envelope.OutMessage(
            "ev.v1.0.feedback.BehaviorRecorded", message_id or uuid7(NOW), tuple(events), envelope.encode_batch(events)
        )
        marker = LogPosition(1, self.subscription.position.xid + 1_000, 1)
        headers = envelope.headers("feedback", message, watermark=marker)
        await self.bus.publish(message.channel, message.payload, message_id=message.message_id, headers=headers)
        task = asyncio.create_task(self.subscription.run())
        await self.subscription.await_position(marker, 20)
        # The cache is filled after the commit that moved the position.
        await self.settled.wait(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def click_through(self, who: str, *items: str) -> RecordedEvent:
        event = await self.record(who, *items)
        await self.deliver(event)
        return event

    async def erase(self, *steps: Step, who: str = ANN) -> Counts:
        counts: Counts = {}
        for step in steps:
            counts = await self.eraser(step, Erasure("e1", (who,)))
        return counts

    async def item_clicks(self) -> dict[str, float]:
        """The clicks of each item, as decision would be given them."""
        await self.columns.refresh()
        columns = await self.columns.columns(self.version)
        return dict(zip(columns.item_ids, columns.rows[:, 0].tolist(), strict=True))

    async def clicks_of(self, who: str) -> float:
        query = FeatureQuery(who, (who,), (NOW + timedelta(days=1)).timestamp())
        answers = await self.read(self.version, [query])
        return float(answers.vectors[0][0])

    async def exported(self, who: str) -> list[HeldRecord]:
        return [record async for record in self.holdings.export((who,))]


@pytest.fixture
async def site(database: MakeDatabase, redis_url: str) -> AsyncIterator[Site]:
    """Features with two items in the catalog, clicks counted."""
    pool = await create_pool(await database("features"), size=4, name="test")
    cache = RedisCache(redis_url, prefix="features:")
    site = Site(pool, cache)
    await site.publish(FEATURES)
    for item_id in ("book", "coat"):
        await pool.execute("INSERT INTO items (id, item) VALUES ($1, $2)", item_id, _item(item_id))
    yield site
    await cache.close()
    await pool.close()


def _item(item_id: str) -> bytes:
    return site_pb2.Item(id=item_id).SerializeToString()


async def test_counts_are_as_though_the_person_had_never_been(site: Site) -> None:
    """Ann's clicks leave the counts, also of replicas that hold them in memory; Bob's stay. Taken again: nothing."""
    await site.click_through(ANN, "book", "coat")
    await site.click_through(BOB, "book")
    await site.click_through(ANN, "book")
    assert await site.item_clicks() == {"book": 3.0, "coat": 1.0}
    counts = await site.erase(Step.SUPPRESS, Step.WITHDRAW)
    assert await site.item_clicks() == {"book": 1.0, "coat": 0.0}
    assert await site.erase(Step.WITHDRAW) == counts
    assert await site.item_clicks() == {"book": 1.0, "coat": 0.0}
    assert counts["postgres", "item_blocks: events"] == 2


async def test_what_cannot_be_subtracted_any_more_is_told(site: Site) -> None:
    """Restored from a backup, features may count somebody whose behavior is gone: it says so, and goes on."""
    await site.click_through(ANN, "book")
    site.log.clear()
    with capture_logs() as logs:
        counts = await site.erase(Step.SUPPRESS, Step.WITHDRAW)
    assert counts["postgres", "item_blocks: not subtracted"] == 1
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["item counts keep an erased person"]
    assert await site.item_clicks() == {"book": 1.0, "coat": 0.0}


async def test_a_replica_that_looks_late_forgets_blocks_that_are_deleted_by_then(site: Site) -> None:
    """Between two looks somebody is subtracted and what is empty after it is deleted: the counts in memory go, too."""
    await site.click_through(ANN, "book", "coat")
    await site.click_through(BOB, "book")
    assert await site.item_clicks() == {"book": 2.0, "coat": 1.0}
    await site.erase(*Step)
    assert await site.item_clicks() == {"book": 1.0, "coat": 0.0}
    await site.click_through(BOB, "coat")
    assert await site.item_clicks() == {"book": 1.0, "coat": 1.0}


async def test_withdrawals_are_numbered_in_the_order_in_which_they_take_effect(site: Site) -> None:
    """One that began later waits for one under way: a replica that saw its number would never look for the other."""
    await site.click_through(ANN, "book")
    async with site.pool.acquire() as connection, connection.transaction():
        await connection.execute(LOCK_SQL)
        first = await connection.fetchval(NOTE_WITHDRAWN_SQL, BOB, "e0")
        second = asyncio.create_task(site.erase(Step.SUPPRESS, Step.WITHDRAW))
        done, _ = await asyncio.wait([second], timeout=0.5)
        assert not done
    await second
    assert await site.pool.fetchval("SELECT number FROM withdrawn_members WHERE member_id = $1", ANN) > first


async def test_only_what_was_folded_is_subtracted(site: Site) -> None:
    """Behavior that had not arrived when the person was suppressed is neither folded later nor subtracted."""
    await site.click_through(ANN, "book")
    late = await site.record(ANN, "book")
    await site.click_through(BOB, "book")
    await site.erase(Step.SUPPRESS)
    await site.deliver(late, await site.record(BOB, "coat"))
    await site.erase(Step.WITHDRAW)
    assert await site.item_clicks() == {"book": 1.0, "coat": 1.0}


async def test_what_the_inbox_has_forgotten_was_folded(site: Site) -> None:
    """An event older than the inbox keeps its rows has been folded, though no row says so."""
    await site.pool.execute("UPDATE feature_sets SET published_at = now() - interval '30 days'")
    event = await site.record(ANN, "book", age=timedelta(days=20))
    await site.deliver(event)
    await site.pool.execute("DELETE FROM inbox")
    await site.erase(Step.SUPPRESS, Step.WITHDRAW)
    assert await site.item_clicks() == {"book": 0.0, "coat": 0.0}


async def test_a_redelivery_creates_nothing(site: Site) -> None:
    """Every old message delivered again, with an empty inbox: no state, no count, no key in the cache."""
    await site.click_through(ANN, "book")
    await site.erase(Step.SUPPRESS, Step.WITHDRAW, Step.DELETE)
    await site.pool.execute("DELETE FROM inbox")
    await site.deliver(*site.log)
    assert await site.item_clicks() == {"book": 0.0, "coat": 0.0}
    for table in ("member_states", "item_blocks", "inbox", "dead_letters"):
        assert await site.pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_late_filler_resurrects_nothing(site: Site, redis_url: str) -> None:
    """Who read the state before the erasure cannot put it into the cache after it; what stands there expires."""
    await site.click_through(ANN, "book")
    _, fill = await site.states._read_database((ANN,))
    counts = await site.erase(Step.SUPPRESS, Step.WITHDRAW, Step.DELETE)
    await site.cache.set_newer_many(fill, ttl_s=CACHE_TTL_S)
    assert await site.clicks_of(ANN) != 1.0
    assert counts["postgres", "member_states"] == 1
    client = redis.asyncio.Redis.from_url(redis_url)
    assert 0 < await client.ttl(f"features:{cache_key(ANN)}") <= 600
    await client.delete(f"features:{cache_key(ANN)}")
    # Asked for again, it is not put there either.
    assert await site.clicks_of(ANN) != 1.0
    await site.states.close()
    assert await client.dbsize() == 0
    await client.aclose()


async def test_a_person_s_state_is_given_out_by_its_names(site: Site) -> None:
    """Counts by type; after the erasure there is nothing to give."""
    await site.click_through(ANN, "book")
    (record,) = await site.exported(ANN)
    assert (record.name, record.member_id) == ("member_states", ANN)
    assert {"type": "click", "half_life_s": 0.0, "count": 1.0} in record.content["counts"]
    await site.erase(Step.SUPPRESS, Step.WITHDRAW, Step.DELETE)
    assert await site.exported(ANN) == []
    assert {record.name} <= {holding.name for holding in site.holdings.describe()}


async def test_a_rectified_event_is_not_folded_again(site: Site) -> None:
    """Its next version comes under its own id; long after, too, when the inbox has forgotten it."""
    young, old = await site.record(BOB, "book"), await site.record(BOB, "coat", age=timedelta(days=20))
    await site.deliver(young, old)
    await site.pool.execute("DELETE FROM inbox WHERE event_id = $1", old.event_id)
    await site.deliver(replace(young, version=2), replace(old, version=2))
    assert await site.item_clicks() == {"book": 1.0, "coat": 1.0}


async def test_a_set_that_is_published_meanwhile_declares_nothing_that_was_counted(site: Site) -> None:
    """A withdrawal goes by the book that it read at its beginning."""
    async with site.pool.acquire() as connection:
        assert await _declared_s(connection, Book()) == {}
        assert await _declared_s(connection, site.books.book) != {}


async def test_rows_that_cannot_be_read_stop_neither_columns_nor_erasures(site: Site) -> None:
    """An item and a block that are broken are put aside; the columns of the others go on, and people are erased."""
    await site.click_through(ANN, "book", "coat")
    await site.click_through(BOB, "book")
    await site.pool.execute(
        "UPDATE item_blocks SET state = 'no state', xid = pg_current_xact_id() WHERE item_id = 'coat'"
    )
    await site.pool.execute("INSERT INTO items (id, item) VALUES ('poison', 'no item')")
    await site.click_through(BOB, "book")
    assert (await site.item_clicks())["book"] == 3.0
    counts = await site.erase(Step.SUPPRESS, Step.WITHDRAW)
    assert counts["postgres", "item_blocks: not subtracted"] == 1
    assert (await site.item_clicks())["book"] == 2.0
    letters = await site.pool.fetch("SELECT channel FROM dead_letters ORDER BY channel")
    assert [letter["channel"].rpartition("/")[0] for letter in letters] == ["item_blocks/coat", "items"]


async def test_click_on_a_block_that_cannot_be_read_costs_no_other_click(site: Site) -> None:
    """One message with a click on what is broken and one on what is not: the second counts, the first is put aside."""
    await site.click_through(ANN, "coat")
    await site.pool.execute("UPDATE item_blocks SET state = 'no state'")
    await site.deliver(await site.record(ANN, "coat"), await site.record(BOB, "book"))
    assert await site.clicks_of(BOB) == 1.0
    assert await site.pool.fetchval("SELECT count(*) FROM dead_letters WHERE consumer = 'features'") == 1
