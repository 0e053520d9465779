"""Rows that a service goes by and cannot read: it serves without them, says so, and reads them once mended."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2

from bench.prove import bricks
from cli.stack import SERVICES
from services.chassis import alarms
from services.chassis.alarms import Alarm
from services.chassis.clock import SystemClock
from services.chassis.dead_letters import DeadLetters, retry_rows
from services.chassis.erasure_gate import ErasureGate
from services.chassis.errors import ServiceError
from services.chassis.events import ORIGIN, LogPosition
from services.chassis.eventstore import PostgresEventStore
from services.chassis.memory import MemoryBus
from services.chassis.postgres import Pool, create_pool
from services.chassis.relay import Relay, read_checkpoint
from services.consent.domain.declaring import Declaration, declare
from services.consent.domain.notices import Notice
from services.consent.domain.purposes import Purpose
from services.consent.domain.regimes import Jurisdiction, Regime
from services.consent.domain.signals.mapping import PurposeRule
from services.consent.store import policies as policies_store
from services.consent.store.policies import PostgresPolicies
from services.decision.domain.release import DeclaredItem, DeclaredSite
from services.decision.store import PostgresCatalog, PostgresSites, PostgresStanding
from services.decision.wire.site import compiled_from_pb, item_from_pb
from services.features.handlers import checked_set
from services.features.store.books import PUBLISHED_SQL, Books
from services.features.wire import feature_set_to_pb, features_from_pb
from services.feedback.domain.schemas import EventSchema
from services.feedback.handlers.join import ANSWERS, ARRIVALS
from services.feedback.store import PostgresProgress, PostgresSchemas
from services.feedback.wire import encode_schema
from tests.conftest import MakeDatabase
from tests.contract.samples import new_append
from tests.integration.decision.conftest import FEATURE_SET, items, site
from tests.waiting import eventually

CLOCK = SystemClock()
FAR = LogPosition(1, 2**62, 2**62)
SET_ROWS = ("feature_set", "declared")
FEATURES = [
    [feature_set_pb2.Feature(name="price", item_attribute=feature_set_pb2.ItemAttribute(attribute="price"))],
    [feature_set_pb2.Feature(name="clicks", item_count=feature_set_pb2.ItemCount(event_type="click"))],
]
PURPOSES = [
    Purpose(id=name, description=name, legal_basis="consent", owner="o", retention_days=9, version=1, signals=rule)
    for name, rule in (("ads", None), ("analytics", PurposeRule(gpc=True)))
]
DECLARED = Declaration(
    PURPOSES,
    [Notice("2026-01", ("en",), ("ads",), "https://example.org")],
    [Jurisdiction("us", Regime.OPT_OUT, is_default=True)],
    "Shop Ltd",
)


@pytest.fixture
def none_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """No alarm of another test."""
    monkeypatch.setattr(alarms, "_since", {})


@asynccontextmanager
async def pool_of(database: MakeDatabase, service: str) -> AsyncIterator[Pool]:
    pool = await create_pool(await database(service), size=4)
    try:
        yield pool
    finally:
        await pool.close()


async def places(pool: Pool) -> list[str]:
    """Of rows and positions that were put aside."""
    return sorted(letter.channel for letter in (await DeadLetters(pool).after(0, 0))[0])


async def retried(letters: DeadLetters) -> list[ServiceError | None]:
    """What became of every letter."""
    return [await letters.retry(letter.id) for letter in (await letters.after(0, 0))[0]]


def stands() -> bool:
    return Alarm.STORED_UNUSABLE in alarms.standing()


def declared(site_: site_pb2.Site) -> DeclaredSite:
    compiled = compiled_from_pb(site_, FEATURE_SET)
    return DeclaredSite(compiled, site_.SerializeToString(), FEATURE_SET.SerializeToString())


@pytest.mark.parametrize(
    "broken", ["'no site'", "''", "substring(site for 20)", "(SELECT site FROM sites WHERE site_version <> $1)"]
)
async def test_site_that_cannot_be_read_is_told_and_applied_again(database: MakeDatabase, broken: str) -> None:
    """Also one that reads as another site; the one before is named, and the same site applied again mends the row."""
    first, second = declared(site()), declared(site(epsilon=0.5))
    version = second.compiled.site.version
    async with pool_of(database, "decision") as pool:
        for one in (first, second):
            assert await PostgresSites(pool, CLOCK).apply(one)
        await pool.execute(f"UPDATE sites SET site = {broken} WHERE site_version = $1", version)
        fresh = PostgresSites(pool, CLOCK)
        assert await fresh.load(version) is None
        assert await places(pool) == [f"sites/{version}"]
        assert await fresh.before(version) == [first.compiled.site.version]
        assert not await fresh.apply(second)
        assert await fresh.load(version) is not None


async def test_lost_standing_is_no_site(database: MakeDatabase) -> None:
    """What stands is then nothing, and no crash."""
    async with pool_of(database, "decision") as pool:
        await pool.execute("DELETE FROM standing")
        assert (await PostgresStanding(pool).standing()).site_version == ""


async def test_mended_item_is_read_again(database: MakeDatabase) -> None:
    """By every replica, though no version moved; a retry that finds it as it was says so and keeps the letter."""
    async with pool_of(database, "decision") as pool:
        entered = [DeclaredItem(item_from_pb(one), one.SerializeToString()) for one in items(3)]
        version, _ = await PostgresCatalog(pool, CLOCK).upsert(entered)
        broken = ("item-0", b"no item"), ("item-1", entered[2].data)
        await pool.executemany("UPDATE items SET item = $2 WHERE item_id = $1", broken)
        catalog = PostgresCatalog(pool, CLOCK)
        assert [one.id for one in (await catalog.changed_since(0))[1]] == ["item-2"]
        assert catalog.has_unread
        assert await places(pool) == ["items/item-0", "items/item-1"]
        letters = DeadLetters(pool)
        letters.retried_by("decision", "catalog", retry_rows(lambda: catalog.changed_since(version), catalog.rows))
        assert [refused and refused.reason for refused in await retried(letters)] == ["STILL_UNREADABLE"] * 2
        await pool.execute("UPDATE items SET item = $1 WHERE item_id = 'item-0'", entered[0].data)
        assert [refused and refused.reason for refused in await retried(letters)] == [None, "STILL_UNREADABLE"]
        await pool.execute("UPDATE items SET item = $1 WHERE item_id = 'item-1'", entered[1].data)
        assert [one.id for one in (await catalog.changed_since(version))[1]] == ["item-1"]
        assert not catalog.has_unread


async def test_row_is_told_also_where_its_letter_could_not_be_stored_at_first(database: MakeDatabase) -> None:
    """A reader goes on without the letter, and stores it as soon as it can."""
    pool = await create_pool(await database("decision"), size=4, statement_timeout_ms=200)
    try:
        entered = [DeclaredItem(item_from_pb(one), one.SerializeToString()) for one in items(2)]
        await PostgresCatalog(pool, CLOCK).upsert(entered)
        await pool.execute("UPDATE items SET item = 'no item' WHERE item_id = 'item-0'")
        catalog = PostgresCatalog(pool, CLOCK)
        async with pool.acquire() as other, other.transaction():
            await other.execute("LOCK TABLE dead_letters")
            assert [one.id for one in (await catalog.changed_since(0))[1]] == ["item-1"]
        assert await places(pool) == []
        assert (await catalog.changed_since(1))[1] == []
        assert await places(pool) == ["items/item-0"]
    finally:
        await pool.close()


async def published(books: Books, features: Sequence[feature_set_pb2.Feature]) -> str:
    feature_set = await books.named(checked_set(features_from_pb(features)))
    await books.publish(feature_set_to_pb(feature_set, features))
    return feature_set.version


@pytest.mark.usefixtures("none_stands")
async def test_feature_set_is_read_from_wherever_it_can_be(database: MakeDatabase) -> None:
    """The row holds it twice and the log once more; the layouts that follow from it stay what they are."""
    async with pool_of(database, "features") as pool:
        books = Books(pool, CLOCK)
        versions = [await published(books, features) for features in FEATURES]
        for column in SET_ROWS:
            await pool.execute(f"UPDATE feature_sets SET {column} = 'no set' WHERE version = $1", versions[0])
            fresh = await Books(pool, CLOCK).refresh()
            assert (list(fresh.sets), fresh.is_whole) == (versions, True)
            assert fresh.item_layout == books.book.item_layout
            assert await places(pool) == [f"feature_sets/{versions[0]}"]


@pytest.mark.usefixtures("none_stands")
async def test_feature_set_that_is_lost_everywhere_makes_counting_wait(database: MakeDatabase) -> None:
    """The others are served; nothing is counted in a layout without it; published again, all goes on by itself."""
    async with pool_of(database, "features") as pool:
        versions = [await published(Books(pool, CLOCK), features) for features in FEATURES]
        await pool.execute("UPDATE feature_sets SET feature_set = 'no set', declared = NULL WHERE sequence = 1")
        await pool.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
        await pool.execute("UPDATE events SET payload = 'no event'")
        books = Books(pool, CLOCK)
        assert list((await books.refresh()).sets) == versions[1:]
        assert stands()
        async with pool.acquire() as connection:
            with pytest.raises(ServiceError) as waits:
                await books.whole(connection)
        assert waits.value.passes
        assert await published(books, FEATURES[0]) == versions[0]
        async with pool.acquire() as connection:
            assert list((await books.whole(connection)).sets) == versions
        assert not stands()


@pytest.mark.usefixtures("none_stands")
async def test_lost_feature_set_that_is_taken_away_makes_nothing_wait(database: MakeDatabase) -> None:
    """An operator who has no more than a broken row deletes it, and counting goes on by itself."""
    async with pool_of(database, "features") as pool:
        versions = [await published(Books(pool, CLOCK), features) for features in FEATURES]
        await pool.execute("UPDATE feature_sets SET feature_set = 'no set', declared = NULL WHERE sequence = 1")
        await pool.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
        await pool.execute("UPDATE events SET payload = 'no event'")
        books = Books(pool, CLOCK)
        assert not (await books.refresh()).is_whole
        await pool.execute("DELETE FROM feature_sets WHERE sequence = 1")
        async with pool.acquire() as connection:
            assert list((await books.whole(connection)).sets) == versions[1:]
        assert not stands()


async def test_feature_set_is_looked_for_in_the_log_once(database: MakeDatabase) -> None:
    """What was found there is held: whoever counts does not read all that was ever published, message by message."""
    async with pool_of(database, "features") as pool:
        version = await published(Books(pool, CLOCK), FEATURES[0])
        await pool.execute("UPDATE feature_sets SET feature_set = 'no set', declared = NULL")
        books, asked = Books(pool, CLOCK), list[str]()
        async with pool.acquire() as connection:
            connection.add_query_logger(lambda record: asked.append(record.query))
            for _ in range(3):
                assert list((await books.whole(connection)).sets) == [version]
        assert asked.count(PUBLISHED_SQL) == 1


@pytest.mark.usefixtures("none_stands")
@pytest.mark.parametrize(
    ("table", "column"),
    [("policy_terms", "signals"), ("policy_notices", "notice"), ("policy_jurisdictions", "declared")],
)
async def test_policy_that_cannot_be_read_allows_nothing_more(
    database: MakeDatabase, monkeypatch: pytest.MonkeyPatch, table: str, column: str
) -> None:
    """A purpose is as if undeclared, a place as strict as there is; declared again, the rows are put right."""
    monkeypatch.setattr(policies_store, "AGAIN_S", 0.0)
    async with pool_of(database, "consent") as pool:
        whole = await PostgresPolicies(pool, CLOCK).publish(lambda now: declare(now, DECLARED, lambda _: "v1"))
        await pool.execute(f"UPDATE {table} SET {column} = '\\xff' WHERE {column} IS NOT NULL")
        policies = PostgresPolicies(pool, CLOCK)
        read = await policies.policy()
        assert (set(read.purposes), read.controller) == ({"ads"} | {"analytics"} & set(read.purposes), "Shop Ltd")
        lost = {
            "policy_terms": "analytics" not in read.purposes,
            "policy_notices": not read.notices,
            "policy_jurisdictions": read.jurisdictions["us"]
            == Jurisdiction("us", Regime.OPT_IN, gpc_objects_to=("ads", "analytics")),
        }
        assert [name for name, is_lost in lost.items() if is_lost] == [table]
        assert len(await places(pool)) == 1
        assert stands()
        await policies.publish(lambda now: declare(now, DECLARED, lambda _: "v1"))
        assert await policies.policy() == whole
        assert not stands()


@pytest.mark.usefixtures("none_stands")
@pytest.mark.parametrize(
    ("table", "change", "field"),
    [
        ("policy_terms", {"purposes": [replace(one, legal_basis="contract") for one in PURPOSES]}, "purposes[1]"),
        ("policy_notices", {"notices": [replace(DECLARED.notices[0], purposes=("analytics",))]}, "notices"),
    ],
)
async def test_policy_that_cannot_be_read_is_still_checked_against(
    database: MakeDatabase, table: str, change: dict[str, Any], field: str
) -> None:
    """What people agreed to, or were told, is not changed under them because a row is broken just then."""
    async with pool_of(database, "consent") as pool:
        await PostgresPolicies(pool, CLOCK).publish(lambda now: declare(now, DECLARED, lambda _: "v1"))
        column = "signals" if table == "policy_terms" else "notice"
        await pool.execute(f"UPDATE {table} SET {column} = '\\xff' WHERE {column} IS NOT NULL")
        policies = PostgresPolicies(pool, CLOCK)
        changed = replace(DECLARED, **change)
        with pytest.raises(ServiceError) as refused:
            await policies.publish(lambda now: declare(now, changed, lambda _: "v2"))
        assert refused.value.reason == "PURPOSES_INVALID"
        assert any(one.field.startswith(field) for one in refused.value.problems)


@pytest.mark.usefixtures("none_stands")
async def test_policy_without_its_rows_is_told(database: MakeDatabase) -> None:
    """It allows nothing, and would pass for a site that asks nobody; when another one holds it is told of no more."""
    async with pool_of(database, "consent") as pool:
        policies = PostgresPolicies(pool, CLOCK)
        await policies.publish(lambda now: declare(now, DECLARED, lambda _: "v1"))
        declared = await policies.policy()
        await pool.execute("UPDATE active_policy SET policy_version = 'lost'")
        assert not (await policies.policy()).purposes
        assert stands()
        await pool.execute("UPDATE active_policy SET policy_version = 'v1'")
        assert await policies.policy() == declared
        assert not stands()


@pytest.mark.usefixtures("none_stands")
async def test_mended_event_schema_is_read_again(database: MakeDatabase) -> None:
    """A type that cannot be read is as if undeclared, until it can be."""
    async with pool_of(database, "feedback") as pool:
        schemas = [
            EventSchema(type=name, description="", purposes=(), owner="o", reason="r", retention_days=1)
            for name in "ab"
        ]
        assert await PostgresSchemas(pool, CLOCK).publish(schemas, version="1", before={})
        await pool.execute("UPDATE event_schemas SET schema = $1 WHERE type = 'a'", encode_schema(schemas[1]))
        fresh = PostgresSchemas(pool, CLOCK)
        assert set(await fresh.book()) == {"b"}
        assert stands()
        assert await places(pool) == ["event_schemas/a"]
        await pool.execute("UPDATE event_schemas SET schema = $1 WHERE type = 'a'", encode_schema(schemas[0]))
        assert set(await fresh.book()) == {"a", "b"}
        assert not stands()


@pytest.mark.usefixtures("none_stands")
async def test_event_schema_that_is_mended_after_a_later_publication_is_read_again(database: MakeDatabase) -> None:
    """Of an earlier publication than the newest, it is no older than what is held."""
    async with pool_of(database, "feedback") as pool:
        schemas = {
            name: EventSchema(type=name, description="", purposes=(), owner="o", reason="r", retention_days=1)
            for name in "ab"
        }
        assert await PostgresSchemas(pool, CLOCK).publish([schemas["a"]], version="1", before={})
        assert await PostgresSchemas(pool, CLOCK).publish([schemas["b"]], version="2", before={"a": schemas["a"]})
        await pool.execute("UPDATE event_schemas SET schema = $1 WHERE type = 'a'", encode_schema(schemas["b"]))
        fresh = PostgresSchemas(pool, CLOCK)
        assert set(await fresh.book()) == {"b"}
        await pool.execute("UPDATE event_schemas SET schema = $1 WHERE type = 'a'", encode_schema(schemas["a"]))
        assert await fresh.book() == schemas
        assert not stands()


async def test_positions_beyond_the_log_pass_over_nothing(database: MakeDatabase) -> None:
    """A joiner joins anew; a relay publishes what comes from now on, and leaves the rest to the reconciler."""
    async with pool_of(database, "feedback") as pool:
        progress = PostgresProgress(pool)
        await progress.advance(ARRIVALS, FAR)
        await progress.advance(ANSWERS, ORIGIN)
        await progress.forget_impossible()
        assert await progress.position(ARRIVALS) == ORIGIN
        assert await places(pool) == [f"join_positions/{ARRIVALS}"]
    async with pool_of(database, "chassis") as pool:
        store, bus = PostgresEventStore(pool), MemoryBus()
        await store.append(new_append("before"))
        await pool.execute("INSERT INTO relay_checkpoint VALUES ('source', 1, '4611686018427387904', 1)")
        relay = Relay(pool, store, bus, "source")
        relaying = asyncio.create_task(relay.run())

        async def told() -> bool:
            return await places(pool) == ["relay_checkpoint/source"]

        try:
            await eventually(told)
            appended = await store.append(new_append("after"))

            async def published_to() -> bool:
                async with pool.acquire() as connection:
                    return await read_checkpoint(connection, "source") == appended.position

            await eventually(published_to)
        finally:
            relaying.cancel()
            await asyncio.wait({relaying})
        await store.drain()


async def test_erasures_applied_below_the_first_asks_for_all(database: MakeDatabase) -> None:
    """A number that no erasure has is no reason not to look."""
    asked: list[int] = []

    class Ledger:
        """Consent's, empty."""

        async def after(self, number: int) -> AsyncIterator[object]:
            asked.append(number)
            return
            yield

        async def completed(self, erasure_id: str) -> bool:
            return True

    async with pool_of(database, "chassis") as pool:
        await pool.execute("INSERT INTO erasures_applied (number, epoch, timeline) VALUES (-7, 1, 0)")
        gate = ErasureGate(pool, None, Ledger())  # type: ignore[arg-type]  # nothing is taken
        assert await gate._apply(await gate._stands()) == 0
    assert asked == [0]


TABLES_SQL = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'"


@pytest.mark.parametrize("service", SERVICES)
async def test_every_table_is_a_brick_or_says_why_it_is_none(database: MakeDatabase, service: str) -> None:
    """Whoever adds a table says how it is loaded, and has it broken by the proof."""
    async with pool_of(database, service) as pool:
        tables = {row["tablename"] for row in await pool.fetch(TABLES_SQL)}
    told = {**bricks.CHASSIS, **bricks.HOLDS[service]}
    assert set(told) == tables
    planted = {brick.table for brick in bricks.bricks_of("''") if brick.service == service}
    broken = {table for table, why in told.items() if why == "brick"}
    # Of consent's own erasures consent needs no list.
    assert broken - planted == ({"erasures_applied"} if service == "consent" else set())
    assert planted <= broken


@pytest.mark.parametrize("ruin", bricks.RUINS)
async def test_every_brick_can_be_planted_and_mended(database: MakeDatabase, ruin: str) -> None:
    """The statements fit the tables."""
    for service in SERVICES:
        async with pool_of(database, service) as pool:
            for brick in bricks.bricks_of(ruin):
                for sql in (*brick.plant, *brick.mend) if brick.service == service else ():
                    await pool.execute(sql)
