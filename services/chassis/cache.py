"""Redis or Valkey as a ports.Cache: calls that wait leave as one pipeline, replies never go astray.

A batch has a connection to itself from its first byte to its last reply, and belongs to no caller: a caller that is
cancelled leaves, its batch goes on. Only a timeout ends a batch early, and then the connection is closed with it, so
no later batch can read what an earlier one was sent.

A server that did not answer is remembered: until it answers a probe every call fails at once, because whoever asks has
somewhere else to ask and little time.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from services.chassis.deadline import remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.refused import by_redis

# The version in front of a value of set_newer_many.
VERSION_BYTES = 8
COMMANDS_MAX = 512
IN_FLIGHT_MAX = 4
WAITING_MAX = 20_000
# Of what its caller has left, how much a read may take: the rest is for whoever is asked instead.
READ_SHARE = 0.25
# How often a server that did not answer is asked whether it does again.
PROBE_EVERY_S = 0.25

_log = structlog.get_logger(__name__)

# Numbers in Lua are doubles and its string comparison follows a locale, so the versions are compared half by half.
SET_NEWER_LUA = """
for i, key in ipairs(KEYS) do
  local stored = redis.call('GETRANGE', key, 0, 7)
  local put = ARGV[i]
  local newer = #stored == 8
  if newer then
    local stored_high, stored_low = struct.unpack('>I4I4', stored)
    local high, low = struct.unpack('>I4I4', put)
    newer = stored_high > high or (stored_high == high and stored_low > low)
  end
  if not newer then redis.call('SET', key, put, 'PX', ARGV[#KEYS + 1]) end
end
return #KEYS
"""
SET_NEWER_SHA = hashlib.sha1(SET_NEWER_LUA.encode(), usedforsecurity=False).hexdigest()


def split_version(stored: bytes) -> tuple[int, bytes]:
    """Version and value of what set_newer_many stored and get returned."""
    return int.from_bytes(stored[:VERSION_BYTES], "big"), stored[VERSION_BYTES:]


async def try_cache(url: str, *, prefix: str, timeout_s: float = 5.0) -> None:
    """Do what a service does: log in, load the script, write, read and delete a key that lives for a millisecond.

    Args:
        prefix: as of RedisCache.

    Raises:
        ServiceError: UNAVAILABLE, with the setting to correct.
    """
    key, value = f"{prefix}connection-check", bytes(VERSION_BYTES)
    try:
        async with asyncio.timeout(timeout_s), _client(url, timeout_s=timeout_s, connections_max=1) as client:
            pipeline = client.pipeline(transaction=False)
            pipeline.script_load(SET_NEWER_LUA)
            pipeline.execute_command("EVALSHA", SET_NEWER_SHA, 1, key, value, 1)
            pipeline.mget([key])
            pipeline.delete(key)
            await pipeline.execute()
    except ReadOnlyError as error:
        sentence = "REDIS_URL names a replica, which takes no writes: name the primary."
        raise ServiceError(Kind.UNAVAILABLE, "CACHE_REFUSED", sentence) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise _unavailable(error) from error


def _client(url: str, *, timeout_s: float, connections_max: int) -> Redis:
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections_max,
            timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # What is tried again, and for how long, is the caller's business: it has a deadline.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError:
        # Without what the client says: it quotes a part of the address.
        sentence = "REDIS_URL is no address: correct it, and percent-encode what is special in its password."
        raise ServiceError(Kind.UNAVAILABLE, "CACHE_REFUSED", sentence) from None
    return Redis.from_pool(pool)


@dataclass(slots=True)
class _Call:
    """A command that waits, or the keys of one caller's part of an MGET."""

    done: "asyncio.Future[Any]"
    keys: Sequence[str] = ()
    command: tuple[Any, ...] = ()


@dataclass(slots=True)
class _Batch:
    calls: list[_Call] = field(default_factory=list)

    @property
    def reads(self) -> list[_Call]:
        """The calls that one MGET answers."""
        return [call for call in self.calls if call.keys]

    @property
    def writes(self) -> list[_Call]:
        """The calls that are commands of their own."""
        return [call for call in self.calls if call.command]


class RedisCache:
    """ports.Cache; get returns values of set_newer_many with their version in front (split_version).

    Args:
        url: redis:// address.
        prefix: put in front of every key, e.g. "features:"; no two services share one.
        timeout_s: after which a batch is given up, its connection closed, and the server taken for away.
        connections_max: of the pool.
    """

    def __init__(self, url: str, *, prefix: str, timeout_s: float = 0.25, connections_max: int = 8) -> None:
        self._redis = _client(url, timeout_s=timeout_s, connections_max=connections_max)
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._waiting: list[_Call] = []
        self._flush: asyncio.Handle | None = None
        self._batches: set[asyncio.Task[None]] = set()
        # Runs while the server is away: all calls fail at once.
        self._probe: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Load the scripts; a server that is away gets them once it is back."""
        try:
            await self._ask(command=("SCRIPT LOAD", SET_NEWER_LUA))
        except ServiceError as outage:
            _log.warning("cache not opened", reason=outage.reason, remedy=outage.message)

    async def get(self, key: str) -> bytes | None:
        """See ports.Cache."""
        return (await self.get_many((key,)))[0]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See ports.Cache."""
        if not keys:
            return []
        parts = [keys[start : start + COMMANDS_MAX] for start in range(0, len(keys), COMMANDS_MAX)]
        left_s = remaining_s()
        try:
            async with asyncio.timeout(None if left_s is None else READ_SHARE * left_s):
                found = await asyncio.gather(*(self._ask(keys=[self._prefix + key for key in part]) for part in parts))
        except TimeoutError as error:
            # Of one caller's time, which says nothing about the server: the batch goes on and tells.
            raise _unavailable(error) from None
        return [value for values in found for value in values]

    async def set_many(self, values: Mapping[str, bytes], *, ttl_s: float | None = None) -> None:
        """See ports.Cache."""
        expiry = () if ttl_s is None else ("PX", _milliseconds(ttl_s))
        await asyncio.gather(
            *(self._ask(command=("SET", self._prefix + key, value, *expiry)) for key, value in values.items())
        )

    async def set_newer_many(self, values: Mapping[str, tuple[int, bytes]], *, ttl_s: float) -> None:
        """See ports.Cache."""
        items = list(values.items())
        parts = [items[start : start + COMMANDS_MAX] for start in range(0, len(items), COMMANDS_MAX)]
        await asyncio.gather(*(self._set_newer(part, ttl_s) for part in parts))

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ports.Cache."""
        if keys:
            await self._ask(command=("DEL", *(self._prefix + key for key in keys)))

    async def close(self) -> None:
        """Wait for what is on its way, then close the connections."""
        while self._batches:
            await asyncio.wait(self._batches)
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        await self._redis.aclose()

    async def _set_newer(self, items: Sequence[tuple[str, tuple[int, bytes]]], ttl_s: float) -> None:
        keys = [self._prefix + key for key, _ in items]
        puts = [version.to_bytes(VERSION_BYTES, "big") + value for _, (version, value) in items]
        arguments = (len(keys), *keys, *puts, _milliseconds(ttl_s))
        try:
            await self._ask(command=("EVALSHA", SET_NEWER_SHA, *arguments))
        except NoScriptError:
            # The server was restarted, or somebody flushed its scripts.
            await self._ask(command=("EVAL", SET_NEWER_LUA, *arguments))

    async def _ask(self, *, keys: Sequence[str] = (), command: tuple[Any, ...] = ()) -> Any:
        """The reply to a command, or the values of keys; it leaves with all that waits at the end of this loop turn."""
        if self._probe is not None:
            raise _unavailable()
        if len(self._waiting) >= WAITING_MAX:
            raise ServiceError(Kind.EXHAUSTED, "CACHE_OVERLOADED", "Too many calls wait for the cache; try later.")
        loop = asyncio.get_running_loop()
        call = _Call(loop.create_future(), keys, command)
        self._waiting.append(call)
        if self._flush is None and len(self._batches) < IN_FLIGHT_MAX:
            self._flush = loop.call_soon(self._send)
        return await call.done

    def _send(self) -> None:
        self._flush = None
        if len(self._batches) >= IN_FLIGHT_MAX:
            return
        batch = self._take()
        if batch.calls:
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._ended)

    def _take(self) -> _Batch:
        """What leaves now: the first that wait, without those whose caller has gone."""
        batch, count, taken = _Batch(), 0, 0
        for call in self._waiting:
            size = len(call.keys) or 1
            if count and count + size > COMMANDS_MAX:
                break
            taken += 1
            if not call.done.done():
                batch.calls.append(call)
                count += size
        del self._waiting[:taken]
        return batch

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._batches.discard(task)
        self._send()

    async def _run(self, batch: _Batch) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._exchange(batch)
        except (RedisError, OSError, TimeoutError) as error:
            replies = [_unavailable(error) for _ in batch.calls]
            self._away(error)
        except Exception as error:
            # A bug, in the client as a rule: whoever waits must not wait for ever.
            _log.error("cache failed", exc_info=error)
            replies = [_unavailable(error) for _ in batch.calls]
        except asyncio.CancelledError:
            for call in batch.calls:
                call.done.cancel()
            raise
        for call, reply in zip((*batch.reads, *batch.writes), replies, strict=True):
            _settle(call, reply)

    def _away(self, error: Exception) -> None:
        """From now on until the server answers again nobody waits for it, those who do already included."""
        if self._probe is not None:
            return
        _log.warning("cache away", error=type(error).__name__, remedy=by_redis(error))
        self._probe = asyncio.get_running_loop().create_task(self._until_back())
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            _settle(call, _unavailable(error))

    async def _until_back(self) -> None:
        """Ask until the server answers; then it has the scripts, too."""
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._redis.script_load(SET_NEWER_LUA)
            except ResponseError:
                break
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(PROBE_EVERY_S)
            else:
                break
        self._probe = None
        _log.info("cache back")

    async def _exchange(self, batch: _Batch) -> list[Any]:
        """One reply a call: first those of the MGET, then the commands'."""
        reads, writes = batch.reads, batch.writes
        pipeline = self._redis.pipeline(transaction=False)
        keys = [key for call in reads for key in call.keys]
        if keys:
            pipeline.mget(keys)
        for call in writes:
            pipeline.execute_command(*call.command)
        replies = await pipeline.execute(raise_on_error=False)
        values = replies.pop(0) if keys else []
        found: list[Any] = []
        start = 0
        for call in reads:
            if isinstance(values, Exception):
                found.append(values)
                continue
            found.append(values[start : start + len(call.keys)])
            start += len(call.keys)
        return [*found, *replies]


def _settle(call: _Call, reply: Any) -> None:
    if call.done.done():
        return
    if not isinstance(reply, Exception):
        call.done.set_result(reply)
        return
    # The server's words may quote what was stored; only that it forgot a script is the caller's to know.
    hidden = isinstance(reply, RedisError) and not isinstance(reply, NoScriptError)
    call.done.set_exception(_unavailable(reply) if hidden else reply)
    # Seen, also where the caller is cancelled before its own next step.
    call.done.exception()


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _unavailable(cause: Exception | None = None) -> ServiceError:
    refusal = None if cause is None else by_redis(cause)
    outage = (
        ServiceError(Kind.UNAVAILABLE, "CACHE_REFUSED", refusal, retry_after_s=0.1)
        if refusal is not None
        else ServiceError(
            Kind.UNAVAILABLE, "CACHE_UNAVAILABLE", "The cache did not answer in time. Try again.", retry_after_s=0.1
        )
    )
    outage.__cause__ = cause
    return outage
