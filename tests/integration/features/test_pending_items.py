"""Behavior and catalog in any order give the same states; what waits for its item is bounded, readable and erasable."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from random import Random

import numpy as np
import pytest
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2

from services.chassis.cache import RedisCache
from services.chassis.erasure import Step
from services.chassis.events import RecordedEvent
from services.chassis.postgres import create_pool, transaction
from services.features.domain.catalog import bucket_of
from services.features.store import PENDING_S_MAX, items
from tests.conftest import MakeDatabase
from tests.integration.features.test_holdings import ANN, BOB, Site
from tests.integration.features.test_serving import MEMBER, START, Features
from tests.waiting import eventually

COUNT_SQL = "SELECT count(*) FROM pending_items"
TASTE = feature_set_pb2.Feature(
    name="taste",
    purposes=["profile"],
    category_affinity=feature_set_pb2.CategoryAffinity(attribute="kind", numerator="click", buckets=32),
)
CLICKS = feature_set_pb2.Feature(
    name="clicks", purposes=["profile"], subject_count=feature_set_pb2.SubjectCount(event_type="click")
)
FEATURES = [CLICKS, TASTE]


@pytest.fixture
async def features(database: MakeDatabase, redis_url: str) -> AsyncIterator[Site]:
    """Features that count clicks by kind."""
    pool = await create_pool(await database("features"), size=4, name="test")
    cache = RedisCache(redis_url, prefix="features:")
    made = Site(pool, cache)
    await made.publish(FEATURES)
    yield made
    await made.states.close()
    await cache.close()
    await pool.close()


def item(item_id: str, *kinds: str) -> site_pb2.Item:
    return site_pb2.Item(id=item_id, categories={"kind": site_pb2.Categories(values=kinds)})


async def counts(features: Features) -> "np.typing.NDArray[np.float32]":
    """The member's counts, as they are read."""
    return (await features.states.read(features.books.book, [MEMBER]))[MEMBER].counts


def happenings(features: Features) -> list[list[Callable[[], Awaitable[None]]]]:
    """What happens, in sequences: each keeps its order, and they interleave at will."""

    def click(place: int, item_id: str) -> Callable[[], Awaitable[None]]:
        async def take() -> None:
            await features.take(await features.click(place, item_id))

        return take

    def bring(second: int, *items: site_pb2.Item) -> Callable[[], Awaitable[None]]:
        return lambda: features.bring(*items, at=START + timedelta(seconds=second))

    return [
        [click(5, "book")],
        [click(15, "book")],
        [click(4, "coat")],
        [click(30, "coat")],
        [click(7, "never")],
        # A catalog's changes come in order: they are one stream.
        [bring(10, item("book", "old"), item("coat", "warm", "long")), bring(20, item("book", "new"))],
    ]


@pytest.mark.parametrize("seed", range(8))
async def test_any_order_of_items_and_behavior_gives_the_same_state(features: Site, seed: int) -> None:
    """Each click counts for the categories that its item had then, else first; for none where it never comes."""
    left, chance = happenings(features), Random(seed)
    while left:
        sequence = chance.choice(left)
        await sequence.pop(0)()
        left = [one for one in left if one]
    found = await counts(features)
    layout = features.books.book.member_layout
    (spread,) = layout.spreads
    expected = np.zeros(layout.width, dtype=np.float32)
    expected[: len(layout.tallies)] = 5.0
    for kind, times in (("old", 2), ("warm", 2), ("long", 2)):
        expected[layout.spread_offsets[spread] + bucket_of("kind", kind, spread.buckets)] += times
    np.testing.assert_array_equal(found, expected)


async def test_what_never_comes_is_forgotten_in_time(features: Site) -> None:
    """It counts without categories from the beginning, and is not kept for longer than is said."""
    await features.take(await features.click(1, "never"))
    before = await counts(features)
    assert await features.pool.fetchval(COUNT_SQL) == 1
    age = timedelta(seconds=PENDING_S_MAX + 60)
    await features.pool.execute("UPDATE pending_items SET received_at = now() - $1::interval", age)
    forgetting = asyncio.create_task(features.catalog.forget())

    async def forgotten() -> bool:
        return bool(await features.pool.fetchval(COUNT_SQL) == 0)

    await eventually(forgotten)
    forgetting.cancel()
    await asyncio.gather(forgetting, return_exceptions=True)
    await features.bring(item("never", "late"))
    np.testing.assert_array_equal(await counts(features), before)


async def test_what_waits_is_bounded(features: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound behavior counts without categories, and the rest waits on."""
    monkeypatch.setattr(items, "PENDING_MAX", 2)
    for place in range(1, 5):
        await features.take(await features.click(place, f"ghost-{place}"))
    assert await features.pool.fetchval(COUNT_SQL) == 2
    assert (await counts(features))[0] == 4.0


async def test_who_finds_an_item_missing_and_who_brings_it_take_turns(features: Site) -> None:
    """The item comes while the click's transaction is open: neither overlooks the other."""
    clicked: RecordedEvent = await features.click(1, "book")
    async with transaction(features.pool) as connection:
        await features.intake.handle(connection, [clicked])
        bringing = asyncio.create_task(features.bring(item("book", "old")))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

        async def waits() -> bool:
            return bool(await features.pool.fetchval(waiting))

        await eventually(waits)
    await features.intake.after_commit([clicked])
    await bringing
    assert (await counts(features)).sum() == 2.0
    assert await features.pool.fetchval(COUNT_SQL) == 0


async def test_a_cache_that_was_not_told_is_told_by_the_next_message(features: Site) -> None:
    """What was folded for an item is written through, also where the process ended between commit and cache."""
    await features.take(await features.click(1, "book"))
    told = features.catalog.after_commit
    features.catalog.after_commit = nothing  # type: ignore[method-assign]
    await features.bring(item("book", "old"))
    assert (await counts(features)).sum() == 1.0
    features.catalog.after_commit = told  # type: ignore[method-assign]
    await features.bring(item("coat", "warm"))
    assert (await counts(features)).sum() == 2.0


async def nothing(events: object) -> None:
    return None


async def test_an_item_event_that_comes_late_replaces_nothing_newer(features: Site) -> None:
    """The reconciler republishes what a stream lost after what came later."""
    await features.bring(item("book", "new"), at=START + timedelta(seconds=20))
    await features.bring(item("book", "old"), at=START + timedelta(seconds=10))
    kept = site_pb2.Item.FromString(await features.pool.fetchval("SELECT item FROM items WHERE id = 'book'"))
    assert kept == item("book", "new")


async def test_an_item_of_a_release_before_has_no_versions_and_counts(features: Site) -> None:
    """A replica of it writes the item alone."""
    stored = item("book", "old").SerializeToString()
    await features.pool.execute("INSERT INTO items (id, item) VALUES ('book', $1)", stored)
    await features.take(await features.click(1, "book"))
    assert (await counts(features)).sum() == 2.0


async def test_what_cannot_be_read_keeps_no_item_away(features: Site) -> None:
    """A member's broken state, or a broken version of the item: the item comes, and everybody else is folded."""
    await features.take(await features.click(1, "book"))
    waits = (
        "INSERT INTO pending_items (item_id, member_id, type, occurred_s, layout) VALUES ('book', $1, 'click', 0, '')"
    )
    await features.pool.execute(waits, BOB)
    await features.pool.execute("INSERT INTO member_states VALUES ($1, 1, 'x')", BOB)
    await features.pool.execute("INSERT INTO item_versions VALUES ('book', 0, decode('ff', 'hex'))")
    await features.bring(item("book", "old"))
    assert (await counts(features)).sum() == 2.0
    assert await features.pool.fetchval("SELECT count(*) FROM items WHERE id = 'book'") == 1


async def test_what_waits_is_given_out_and_erased(features: Site) -> None:
    """It is part of an export, gone after the erasure, and an item that comes then brings nobody back."""
    await features.click_through(ANN, "book")
    told = {(record.name, record.content.get("item")) for record in await features.exported(ANN)}
    assert ("pending_items", "book") in told
    assert "pending_items" in {holding.name for holding in features.holdings.describe()}
    counted = await features.erase(Step.SUPPRESS, Step.WITHDRAW, Step.DELETE)
    assert counted["postgres", "pending_items"] == 1
    await features.bring(item("book", "old"))
    for table in ("pending_items", "member_states"):
        assert await features.pool.fetchval(f"SELECT count(*) FROM {table}") == 0
