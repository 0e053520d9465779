"""Features over real Postgres and Valkey: what is folded is read, whatever happens to the cache."""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import redis.asyncio
from comity.decision.v1 import decision_events_pb2, site_pb2
from comity.features.v1 import feature_set_pb2
from comity.feedback.v1 import feedback_events_pb2

from services.chassis.cache import RedisCache
from services.chassis.clock import SystemClock
from services.chassis.errors import ServiceError
from services.chassis.events import LogPosition, RecordedEvent
from services.chassis.ids import content_hash, uuid7
from services.chassis.memory import MemoryKeys
from services.chassis.postgres import Pool, create_pool, transaction
from services.chassis.sealing import Sealer
from services.features.domain.feature_set import SEMANTICS
from services.features.domain.item_counts import decode
from services.features.domain.requests import FeatureQuery
from services.features.handlers import ItemColumns, ReadFeatures, Settled, checked_set
from services.features.store import Books, ItemStore, MemberStates
from services.features.subscribers import BehaviorIntake, CatalogIntake
from services.features.wire import BEHAVIOR_RECORDED, CATALOG_CHANGED, feature_set_to_pb, features_from_pb
from tests.conftest import MakeDatabase
from tests.waiting import eventually

MEMBER = "a" * 26
START = datetime(2026, 1, 1, tzinfo=UTC)
# As the inbox notes it with the message's effect.
STANDS_AT_SQL = "INSERT INTO inbox_positions VALUES ('feedback', 'features', 1, '1', 1)"
FEATURES = [
    feature_set_pb2.Feature(
        name="clicks", purposes=["profile"], subject_count=feature_set_pb2.SubjectCount(event_type="click")
    ),
    feature_set_pb2.Feature(name="item_clicks", item_count=feature_set_pb2.ItemCount(event_type="click")),
    feature_set_pb2.Feature(name="price", item_attribute=feature_set_pb2.ItemAttribute(attribute="price")),
]


class Features:
    """The service's parts, without gRPC and NATS."""

    def __init__(self, pool: Pool, cache: RedisCache) -> None:
        self.pool = pool
        self.sealer = Sealer(MemoryKeys())
        self.books = Books(pool, SystemClock())
        self.states = MemberStates(pool, cache)
        self.columns = ItemColumns(self.books, ItemStore(pool))
        self.settled = Settled()
        self.intake = BehaviorIntake(self.books, self.sealer, self.states, self.settled)
        self.catalog = CatalogIntake(pool, self.books, self.states, Settled())
        self.read = ReadFeatures(self.books, self.states, self.columns)
        self.version = ""

    async def publish(self, features: list[feature_set_pb2.Feature]) -> None:
        """Make these features the active set."""
        feature_set = await self.books.named(checked_set(features_from_pb(features)))
        await self.books.publish(feature_set_to_pb(feature_set, features))
        self.version = feature_set.version

    async def take(self, *events: RecordedEvent) -> None:
        """Fold behavior as a delivered message would."""
        async with transaction(self.pool) as connection:
            await self.intake.handle(connection, list(events))
        await self.intake.after_commit(events)

    async def bring(self, *items: site_pb2.Item, at: datetime = START) -> None:
        """Take a change of the catalog in, as a delivered message would."""
        payload = decision_events_pb2.CatalogChanged(items=items).SerializeToString()
        event = RecordedEvent(uuid7(at), CATALOG_CHANGED, payload, at, "", "", "catalog", 1, LogPosition(1, 1, 1))
        async with transaction(self.pool) as connection:
            await self.catalog.handle(connection, [event])
        await self.catalog.after_commit([event])

    async def click(self, place: int, item_id: str = "book") -> RecordedEvent:
        """A click, sealed, at a position of the behavior log."""
        payload = feedback_events_pb2.BehaviorRecorded(type="click", item_ids=[item_id]).SerializeToString()
        at = START + timedelta(seconds=place)
        sealed = await self.sealer.seal(MEMBER, BEHAVIOR_RECORDED, payload)
        return RecordedEvent(
            uuid7(at), BEHAVIOR_RECORDED, sealed, at, MEMBER, "", f"s{place}", 1, LogPosition(1, place, place)
        )

    async def clicks(self) -> float:
        """The member's count, as GetFeatures gives it; NaN when nothing is known."""
        query = FeatureQuery(MEMBER, (MEMBER,), (START + timedelta(days=1)).timestamp())
        answers = await self.read(self.version, [query])
        return float(answers.vectors[0][0])


@pytest.fixture
async def features(database: MakeDatabase, redis_url: str) -> AsyncIterator[Features]:
    """A fresh features service with its features published."""
    pool = await create_pool(await database("features"), size=4, name="test")
    cache = RedisCache(redis_url, prefix="features:")
    made = Features(pool, cache)
    await made.publish(FEATURES)
    yield made
    await cache.close()
    await pool.close()


async def test_what_was_folded_is_read(features: Features) -> None:
    """A click is in the member's vector as soon as its message is done."""
    assert np.isnan(await features.clicks())
    await features.take(await features.click(1), await features.click(2))
    assert await features.clicks() == 2.0


async def test_a_wiped_cache_changes_no_answer(features: Features, redis_url: str) -> None:
    """Valkey is a cache of the states: emptied, it is filled again from Postgres."""
    await features.take(await features.click(1))
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.flushall()
    assert await features.clicks() == 1.0

    async def filled() -> bool:
        return await client.dbsize() == 1

    await eventually(filled)
    await client.aclose()


async def test_a_late_filler_puts_no_old_state_over_a_new_one(features: Features) -> None:
    """A read that missed before a fold fills the cache with a version that is already outdated."""
    await features.clicks()
    await features.take(await features.click(1))
    await features.states.write_through([MEMBER])
    assert await features.clicks() == 1.0


async def test_an_event_that_comes_back_behind_newer_ones_still_counts(features: Features) -> None:
    """The reconciler republishes what a stream lost after what came later; only the inbox tells it apart."""
    lost = await features.click(1)
    await features.take(await features.click(2))
    await features.take(lost)
    assert await features.clicks() == 2.0


async def test_item_columns_follow_catalog_and_behavior(features: Features) -> None:
    """An item enters with its attributes, and its counts move; who holds the rest is sent the moving columns only."""
    await features.bring(site_pb2.Item(id="book", numbers={"price": 12.5}))
    before = await features.columns.columns(features.version)
    assert before.item_ids == ("book",)
    assert before.rows[0].tolist() == [0.0, 12.5]
    await features.take(await features.click(1))
    await features.pool.execute(STANDS_AT_SQL)
    await features.columns.refresh()
    after = await features.columns.columns(features.version)
    assert after.rows[0].tolist() == [1.0, 12.5]
    assert features.columns.changed_since(features.version, before.version) == (0,)
    assert features.columns.changed_since(features.version, "another") is None


async def test_a_new_set_keeps_the_histories_it_shares(features: Features) -> None:
    """Old and new sets are read side by side; what both count goes on, what is new begins at zero."""
    await features.take(await features.click(1))
    old = features.version
    more = feature_set_pb2.Feature(
        name="buys", purposes=["profile"], subject_count=feature_set_pb2.SubjectCount(event_type="purchase")
    )
    await features.publish([*FEATURES, more])
    assert features.version != old
    assert await features.clicks() == 1.0
    await features.take(await features.click(2))
    features.version = old
    assert await features.clicks() == 2.0


async def test_an_unknown_feature_set_is_refused_with_the_active_one(features: Features) -> None:
    """Whoever asks for a set that was never published is told which one there is."""
    active, features.version = features.version, "0" * 16
    with pytest.raises(ServiceError, match=active) as refused:
        await features.clicks()
    assert refused.value.reason == "FEATURE_SET_UNKNOWN"


async def test_behavior_of_nobody_counts_for_the_item_and_for_no_member(features: Features) -> None:
    """What was stored without its person is not sealed, has no member, and is part of the item's count."""
    payload = feedback_events_pb2.BehaviorRecorded(type="click", item_ids=["book"]).SerializeToString()
    nobodys = RecordedEvent(uuid7(START), BEHAVIOR_RECORDED, payload, START, "", "", "s9", 1, LogPosition(1, 9, 9))
    await features.take(await features.click(1), nobodys)
    assert await features.clicks() == 1.0
    assert await features.pool.fetchval("SELECT count(*) FROM member_states") == 1
    blocks = await features.pool.fetch("SELECT state FROM item_blocks WHERE item_id = 'book'")
    layout = features.books.book.item_layout
    assert sum(decode(layout, row["state"]).counts.sum() for row in blocks) == 2.0


def hash_of_all(data: bytes) -> str:
    """The version that a release before gives what is stored."""
    features = [one for one in features_from_pb(feature_set_pb2.FeatureSet.FromString(data).features) if one]
    declared = [[type(one.kind).__name__, asdict(one)] for one in features]
    return content_hash(json.dumps([SEMANTICS, declared], sort_keys=True).encode())


async def test_corrected_words_are_told_under_the_version_that_stands(features: Features) -> None:
    """The set keeps its version and says the new words; that is a fact, and the same words again are none."""
    before = features.version
    corrected = [feature_set_pb2.Feature() for _ in FEATURES]
    for changed, feature in zip(corrected, FEATURES, strict=True):
        changed.CopyFrom(feature)
        changed.description = "as people should read it"
    for _ in range(2):
        await features.publish(corrected)
        assert features.version == before
    told = feature_set_pb2.FeatureSet.FromString(await features.books.message(before) or b"")
    assert list(told.features) == corrected
    published = "SELECT count(*) FROM events WHERE stream_id = 'feature_sets'"
    assert await features.pool.fetchval(published) == 2
    stored = await features.pool.fetchval("SELECT feature_set FROM feature_sets WHERE version = $1", before)
    assert hash_of_all(stored) == before, "a replica of the release before finds the set under its version"


async def test_a_set_of_a_release_before_keeps_its_version(features: Features) -> None:
    """Its version is a hash of its words, too; published again by this release, with other words, it stays the same."""
    feature = feature_set_pb2.Feature(
        name="clicks",
        description="old",
        purposes=["profile"],
        subject_count=feature_set_pb2.SubjectCount(event_type="click"),
    )
    stored = feature_set_pb2.FeatureSet(features=[feature], subject_width=1)
    stored.version = hash_of_all(stored.SerializeToString())
    put = "INSERT INTO feature_sets (version, feature_set) VALUES ($1, $2)"
    await features.pool.execute(put, stored.version, stored.SerializeToString())
    await features.pool.execute("UPDATE active_feature_set SET version = $1", stored.version)
    await features.publish([feature])
    assert features.version == stored.version
    feature.description = "new"
    await features.publish([feature])
    assert features.version == stored.version
    fresh = await Books(features.pool, SystemClock()).refresh()
    assert (fresh.active, fresh.sets[stored.version].version) == (stored.version, stored.version)
    await features.take(await features.click(1))
    assert await features.clicks() == 1.0
