"""The fixtures that every other test stands on."""

import nats
import redis.asyncio

from cli.stack.servers import Servers


async def test_servers_answer(servers: Servers, nats_url: str, redis_url: str) -> None:
    """All three embedded servers answer on their own addresses."""
    assert await servers.postgres.ready()
    connection = await nats.connect(nats_url)
    await connection.jetstream().add_stream(name="EV_TEST", subjects=["ev.v1.*.test.>"])
    await connection.close()
    client = redis.asyncio.Redis.from_url(redis_url)
    assert await client.set("key", b"value")
    await client.aclose()


async def test_next_test_starts_empty(nats_url: str, redis_url: str) -> None:
    """What a test left in NATS and Valkey is gone for the next one."""
    connection = await nats.connect(nats_url)
    assert await connection.jetstream().streams_info() == []
    await connection.close()
    client = redis.asyncio.Redis.from_url(redis_url)
    assert await client.dbsize() == 0
    await client.aclose()
