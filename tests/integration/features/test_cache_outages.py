"""A cache that is hung, dead, full or read-only stops no fold, hides none, and keeps nothing of who did nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext

import numpy as np
import pytest
import redis.asyncio

from services.chassis.alarms import Alarm, standing
from services.chassis.cache import RedisCache, split_version
from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.postgres import create_pool
from services.features.domain.members import decode
from services.features.store import CACHE_TTL_S, MemberStates, cache_key
from tests.conftest import MakeDatabase
from tests.integration.features.test_serving import FEATURES, MEMBER, Features
from tests.waiting import eventually

Server = redis.asyncio.Redis
Do = Callable[[Server], Awaitable[object]]

# Far more than an answer takes on a busy machine.
DEADLINE_S = 20.0


async def _becomes_a_replica(server: Server) -> None:
    await server.slaveof("127.0.0.1", 1)


async def _becomes_primary(server: Server) -> None:
    await server.slaveof()


async def _fills_up(server: Server) -> None:
    await server.config_set("maxmemory-policy", "noeviction")
    await server.config_set("maxmemory", "1")


async def _has_room(server: Server) -> None:
    await server.config_set("maxmemory", "512mb")
    await server.config_set("maxmemory-policy", "allkeys-lru")


async def _refuses_connections(server: Server) -> None:
    await server.config_set("maxclients", "1")
    await server.client_kill_filter(_type="normal", skipme=True)


async def _takes_connections(server: Server) -> None:
    await server.config_set("maxclients", "1000")


def _raising(error: Exception) -> Callable[..., Awaitable[None]]:
    async def raises(*_: object, **__: object) -> None:
        raise error

    return raises


OUTAGES: dict[str, tuple[Do, Do]] = {
    "replica": (_becomes_a_replica, _becomes_primary),
    "full": (_fills_up, _has_room),
    "dead": (_refuses_connections, _takes_connections),
}


@pytest.fixture
async def server(redis_url: str) -> AsyncIterator[Server]:
    """A connection of the test's own, made before the server is troubled; well again afterwards."""
    client = redis.asyncio.Redis.from_url(redis_url, single_connection_client=True)
    await client.ping()
    yield client
    for _, ends in OUTAGES.values():
        await ends(client)
    await client.aclose()


@pytest.fixture
async def features(database: MakeDatabase, redis_url: str, server: Server) -> AsyncIterator[Features]:
    """Features whose cache soon gives up, and a second replica's states on the same servers."""
    pool = await create_pool(await database("features"), size=4, name="test")
    cache = RedisCache(redis_url, prefix="features:", timeout_s=1.0)
    made = Features(pool, cache)
    await made.publish(FEATURES)
    yield made
    await made.states.close()
    await cache.close()
    await pool.close()


@pytest.fixture
async def other(features: Features, redis_url: str) -> AsyncIterator[MemberStates]:
    """The states of a second replica."""
    cache = RedisCache(redis_url, prefix="features:", timeout_s=1.0)
    states = MemberStates(features.pool, cache)
    yield states
    await states.close()
    await cache.close()


@pytest.mark.parametrize("outage", ["hung", *OUTAGES])
async def test_folding_goes_on_and_is_read_whatever_the_cache_does(
    features: Features, other: MemberStates, server: Server, hung_valkey: Callable[[bool], None], outage: str
) -> None:
    """While the cache takes no writes, and after it, every replica reads what was folded; an alarm stands meanwhile."""

    async def trouble(begins: bool) -> None:
        if outage == "hung":
            hung_valkey(begins)
        else:
            await OUTAGES[outage][0 if begins else 1](server)

    async def clicks_elsewhere() -> float:
        await other.refresh()
        book = features.books.book
        return float((await other.read(book, [MEMBER]))[MEMBER].counts.sum())

    await features.take(await features.click(1))
    assert (await features.clicks(), await clicks_elsewhere()) == (1.0, 1.0)
    await trouble(True)
    with deadline_scope(DEADLINE_S):
        for place in (2, 3):
            await features.take(await features.click(place))
            assert (await features.clicks(), await clicks_elsewhere()) == (float(place), float(place))
        assert remaining_s()
    assert Alarm.CACHE_TAKES_NO_WRITES in standing()
    await trouble(False)
    assert (await features.clicks(), await clicks_elsewhere()) == (3.0, 3.0)

    async def in_the_cache() -> bool:
        assert (await features.clicks(), await clicks_elsewhere()) == (3.0, 3.0)
        stored, layout = await server.get(f"features:{cache_key(MEMBER)}"), features.books.book.member_layout
        cached = isinstance(stored, bytes) and decode(layout, split_version(stored)[1], MEMBER).counts.sum() == 3.0
        return cached and Alarm.CACHE_TAKES_NO_WRITES not in standing()

    await eventually(in_the_cache)


async def test_a_cache_that_a_bug_left_behind_is_passed_over(
    features: Features, other: MemberStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no time mends holds up nobody, and no replica reads what was there before."""
    await features.take(await features.click(1))
    assert await features.clicks() == 1.0
    with monkeypatch.context() as broken:
        broken.setattr(RedisCache, "set_newer_many", _raising(RuntimeError("a bug")))
        await features.take(await features.click(2))
    await features.settled.wait(0.0)
    await other.refresh()
    book = features.books.book
    assert (await features.clicks(), (await other.read(book, [MEMBER]))[MEMBER].counts.sum()) == (2.0, 2.0)


@pytest.mark.parametrize("takes_writes", [True, False])
async def test_lost_generation_brings_back_no_older_state(
    features: Features, other: MemberStates, monkeypatch: pytest.MonkeyPatch, takes_writes: bool
) -> None:
    """Whoever knew a generation goes on above it, though the table that it stood in was emptied."""
    await features.pool.execute("UPDATE cache_generation SET generation = 7")
    await features.take(await features.click(1))
    await other.refresh()
    await features.pool.execute("DELETE FROM cache_generation")
    with monkeypatch.context() as outage:
        if not takes_writes:
            failure = ServiceError(Kind.UNAVAILABLE, "DOWN", "nobody answers")
            outage.setattr(RedisCache, "set_newer_many", _raising(failure))
        await features.take(await features.click(2))
    await other.refresh()
    book = features.books.book
    assert (await features.clicks(), (await other.read(book, [MEMBER]))[MEMBER].counts.sum()) == (2.0, 2.0)


async def test_an_effect_whose_end_fails_for_good_is_waited_for_by_nobody(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That no cache can be told is a bug's doing here; an outage is waited out, because the message comes again."""
    for failure, is_over in ((ServiceError(Kind.UNAVAILABLE, "DOWN", "nobody answers"), False), (ValueError(), True)):
        with monkeypatch.context() as broken:
            broken.setattr(features.states, "write_through", _raising(failure))
            with pytest.raises(type(failure)):
                await features.take(await features.click(1 + is_over))
        with nullcontext() if is_over else pytest.raises(ServiceError, match="has not caught up"):
            await features.settled.wait(0.0)


async def test_who_did_nothing_leaves_no_key(features: Features, server: Server) -> None:
    """A visitor without behavior, who may have refused everything, is asked about and nothing of them is kept."""
    assert np.isnan(await features.clicks())
    await features.states.close()
    assert await server.dbsize() == 0


async def test_a_cached_state_expires(features: Features, server: Server) -> None:
    """Filled by a fold or by a read, a key has a time to live."""
    await features.take(await features.click(1))
    assert 0 < await server.ttl(f"features:{cache_key(MEMBER)}") <= CACHE_TTL_S
    await server.flushall()
    assert await features.clicks() == 1.0

    async def filled() -> bool:
        return 0 < await server.ttl(f"features:{cache_key(MEMBER)}") <= CACHE_TTL_S

    await eventually(filled)


async def test_a_hung_database_hides_no_cached_state(features: Features) -> None:
    """While nobody can read the states' table, whoever is in the cache is known all the same."""
    await features.take(await features.click(1))
    async with features.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE member_states IN ACCESS EXCLUSIVE MODE")
        assert await features.clicks() == 1.0
