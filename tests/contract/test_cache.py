"""What every ports.Cache does; run against Valkey and against memory."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from services.chassis.cache import SET_NEWER_SHA, RedisCache, split_version
from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.memory import MemoryCache
from services.chassis.ports import Cache
from tests.waiting import eventually

TTL_S = 60.0


class CacheContract:
    """The promises; a subclass gives the cache."""

    async def test_values_come_back_in_the_order_asked(self, cache: Cache) -> None:
        """get_many gives one value or None a key, repeats included; nothing is nothing."""
        await cache.set_many({"a": b"1", "b": b"", "c": bytes(range(256))})
        assert await cache.get_many(["c", "nobody", "a", "b", "a"]) == [bytes(range(256)), None, b"1", b"", b"1"]
        assert await cache.get("a") == b"1"
        assert await cache.get("nobody") is None
        assert await cache.get_many([]) == []

    async def test_empty_writes_do_nothing(self, cache: Cache) -> None:
        """Writing or deleting nothing is no error."""
        await cache.set_many({})
        await cache.set_newer_many({}, ttl_s=TTL_S)
        await cache.delete_many([])

    async def test_values_are_replaced_and_removed(self, cache: Cache) -> None:
        """The last value set is the value; a deleted one is gone; deleting what is absent is no error."""
        await cache.set_many({"a": b"1"})
        await cache.set_many({"a": b"2"})
        assert await cache.get("a") == b"2"
        await cache.delete_many(["a", "nobody"])
        assert await cache.get("a") is None

    async def test_value_is_gone_after_its_time(self, cache: Cache) -> None:
        """A value with a time to live disappears, one without stays."""
        await cache.set_many({"short": b"1"}, ttl_s=0.02)
        await cache.set_many({"long": b"1"})

        async def gone() -> bool:
            return await cache.get("short") is None

        await eventually(gone)
        assert await cache.get("long") == b"1"
        await cache.set_newer_many({"short": (2, b"1")}, ttl_s=0.02)
        await cache.set_newer_many({"long": (1, b"1")}, ttl_s=TTL_S)
        await eventually(gone)
        assert split_version(await cache.get("long") or b"") == (1, b"1")

    @pytest.mark.parametrize("high", [1, 255, 256, 2**32 - 1, 2**32, 2**53, 2**63, 2**64 - 1])
    async def test_late_filler_never_wins(self, cache: Cache, high: int) -> None:
        """Versions compare as 64-bit numbers: a lower one never replaces a higher one, an equal or higher one does."""
        await cache.set_newer_many({"a": (high, b"new"), "b": (high - 1, b"old")}, ttl_s=TTL_S)
        await cache.set_newer_many({"a": (high - 1, b"late"), "b": (high, b"new")}, ttl_s=TTL_S)
        assert [split_version(value or b"") for value in await cache.get_many(["a", "b"])] == [(high, b"new")] * 2
        await cache.set_newer_many({"a": (high, b"equal")}, ttl_s=TTL_S)
        assert split_version(await cache.get("a") or b"") == (high, b"equal")

    async def test_racing_fillers_leave_the_newest(self, cache: Cache) -> None:
        """Whatever order fillers arrive in, the highest version remains."""
        versions = list(range(50))
        random.Random(7).shuffle(versions)
        puts: list[dict[str, tuple[int, bytes]]] = [{"a": (version, str(version).encode())} for version in versions]
        await asyncio.gather(*(cache.set_newer_many(put, ttl_s=TTL_S) for put in puts))
        assert split_version(await cache.get("a") or b"") == (49, b"49")

    async def test_cancelled_reads_never_mix_replies(self, cache: Cache) -> None:
        """In a storm of cancelled reads every reply that arrives is the value of the key that was asked for."""
        keys = [f"key-{number}" for number in range(200)]
        await cache.set_many({key: key.encode() for key in keys})
        chance = random.Random(11)
        replies_count = 0

        async def read(key: str) -> None:
            nonlocal replies_count
            assert await cache.get(key) == key.encode()
            replies_count += 1

        for _ in range(60):
            tasks = [asyncio.create_task(read(chance.choice(keys))) for _ in range(50)]
            for task in tasks:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        assert replies_count > 0


class TestMemoryCache(CacheContract):
    @pytest.fixture
    def cache(self) -> Cache:
        return MemoryCache()


class TestRedisCache(CacheContract):
    @pytest.fixture
    async def cache(self, redis_url: str) -> AsyncIterator[RedisCache]:
        # Patient, because the machine may be busy with other tests.
        cache = RedisCache(redis_url, prefix="test:", timeout_s=5.0)
        yield cache
        await cache.close()

    async def test_calls_that_wait_leave_together(self, cache: RedisCache, redis_url: str) -> None:
        """A hundred gets and sets of one loop turn reach the server as one MGET and one write each, in one pipeline."""
        await cache.get("warm")
        server = Redis.from_url(redis_url)
        before = await server.info("commandstats")
        await asyncio.gather(*(cache.get(f"key-{number}") for number in range(100)))
        after = await server.info("commandstats")
        await server.aclose()
        assert after["cmdstat_mget"]["calls"] - before["cmdstat_mget"]["calls"] == 1
        assert after.get("cmdstat_get") == before.get("cmdstat_get")

    async def test_keys_are_prefixed(self, cache: RedisCache, redis_url: str) -> None:
        """Two caches with different prefixes share nothing."""
        other = RedisCache(redis_url, prefix="other:", timeout_s=5.0)
        await cache.set_many({"a": b"1"})
        assert await other.get("a") is None
        await other.close()

    async def test_newer_values_are_set_after_the_server_forgot_its_scripts(
        self, cache: RedisCache, redis_url: str
    ) -> None:
        """A restarted server has no scripts; nobody notices."""
        await cache.set_newer_many({"a": (1, b"1")}, ttl_s=TTL_S)
        server = Redis.from_url(redis_url)
        await server.script_flush()
        await server.aclose()
        await cache.set_newer_many({"a": (2, b"2")}, ttl_s=TTL_S)
        assert split_version(await cache.get("a") or b"") == (2, b"2")

    async def test_stalled_server_is_an_outage_and_its_late_replies_reach_nobody(
        self, cache: RedisCache, redis_url: str
    ) -> None:
        """What is not answered in time is UNAVAILABLE, and reads after it get their own values."""
        await cache.set_many({key: key.encode() for key in ("a", "b", "c")})
        hasty = RedisCache(redis_url, prefix="test:", timeout_s=0.3, connections_max=1)
        server = Redis.from_url(redis_url)
        # Holds every command's reply for far longer than the cache waits.
        await server.client_pause(2000, all=True)
        with pytest.raises(ServiceError) as outage:
            await hasty.get("a")
        assert outage.value.kind is Kind.UNAVAILABLE
        keys = ["a", "b", "c"] * 20

        async def each_gets_its_own() -> bool:
            try:
                found = await asyncio.gather(*(hasty.get(key) for key in keys))
            except ServiceError:
                # Still held, or the machine is busy.
                return False
            assert found == [key.encode() for key in keys]
            return True

        await eventually(each_gets_its_own)
        await server.aclose()
        await hasty.close()

    async def test_a_server_that_hangs_is_waited_for_once(
        self, redis_url: str, hung_valkey: Callable[[bool], None]
    ) -> None:
        """After one batch that was not answered every call fails at once, until the server answers again."""
        hasty = RedisCache(redis_url, prefix="test:", timeout_s=0.3)

        async def answers() -> bool:
            try:
                await hasty.set_many({"a": b"1"})
                return await hasty.get("a") == b"1"
            except ServiceError:
                return False

        await eventually(answers)
        hung_valkey(True)
        with pytest.raises(ServiceError):
            await hasty.get("a")
        for call in (hasty.get("a"), hasty.set_many({"a": b"2"})):
            asked = asyncio.ensure_future(call)
            for _ in range(10):
                await asyncio.sleep(0)
            error = asked.exception()
            assert isinstance(error, ServiceError)
            assert error.kind is Kind.UNAVAILABLE
        hung_valkey(False)
        await eventually(answers)
        await hasty.close()

    async def test_a_read_takes_a_share_of_its_callers_time(
        self, redis_url: str, hung_valkey: Callable[[bool], None]
    ) -> None:
        """A hung server leaves the caller most of its time, also where the cache itself would wait for longer."""
        patient = RedisCache(redis_url, prefix="test:", timeout_s=600.0)
        await patient.set_many({"a": b"1"})
        hung_valkey(True)
        with deadline_scope(2.0):
            with pytest.raises(ServiceError) as outage:
                await patient.get("a")
            assert remaining_s()
        assert outage.value.kind is Kind.UNAVAILABLE
        hung_valkey(False)
        await patient.close()

    async def test_scripts_are_loaded_before_the_first_write(self, cache: RedisCache, redis_url: str) -> None:
        """An opened cache finds its script at the server, so that no write pays for loading it."""
        server = Redis.from_url(redis_url)
        await server.script_flush()
        await cache.open()
        assert await server.script_exists(SET_NEWER_SHA) == [True]
        await server.aclose()

    async def test_a_bug_of_the_client_leaves_nobody_waiting(
        self, cache: RedisCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever goes wrong in a batch, its callers are told; the next one is tried anew."""
        with monkeypatch.context() as patched:
            patched.setattr(Pipeline, "execute", _fails)
            for ask in (cache.get("a"), cache.set_many({"a": b"1"})):
                with pytest.raises(ServiceError) as outage:
                    await asyncio.wait_for(ask, 20)
                assert outage.value.kind is Kind.UNAVAILABLE
        await cache.set_many({"a": b"1"})
        assert await cache.get("a") == b"1"

    async def test_server_that_is_not_there_is_an_outage(self) -> None:
        """A refused connection is UNAVAILABLE, not a Redis error."""
        cache = RedisCache("redis://127.0.0.1:1/0", prefix="test:")
        with pytest.raises(ServiceError) as outage:
            await cache.set_many({"a": b"1"})
        assert outage.value.kind is Kind.UNAVAILABLE
        await cache.close()


async def _fails(*_: object, **__: object) -> None:
    raise AttributeError("the connection is gone")
