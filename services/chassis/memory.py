"""The ports in memory, honest enough to pass the same contract suites as the real adapters: for tests.

Nothing here outlives the process, and nothing is shared between processes.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.chassis.clock import Clock, SystemClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, Appended, LogPosition, RecordedEvent
from services.chassis.ports import Delivery, Message
from services.chassis.sealing import DataKey

VERSION_BYTES = 8


class MemoryEventStore:
    """ports.EventStore in a list; every append is a transaction of its own."""

    def __init__(self) -> None:
        self._log: list[RecordedEvent] = []
        self._streams: dict[str, list[RecordedEvent]] = {}
        self._event_ids: set[str] = set()
        self._commands: dict[str, tuple[bytes, Appended]] = {}
        self._erased: set[str] = set()
        self._xid = 0

    def suppress(self, member_ids: Iterable[str]) -> None:
        """Take nothing about these members any more: they were erased."""
        self._erased.update(member_ids)

    async def append(self, append: Append) -> Appended:
        """See ports.EventStore."""
        result = self._append(append)
        if isinstance(result, ServiceError):
            raise result
        return result

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | ServiceError]:
        """See ports.EventStore."""
        return [self._append(append) for append in appends]

    async def read_stream(self, stream_id: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """See ports.EventStore."""
        return self._streams.get(stream_id, [])[after_version:]

    async def read_log(self, after: LogPosition, *, limit: int) -> list[RecordedEvent]:
        """See ports.EventStore."""
        return [event for event in self._log if event.position > after][:limit]

    async def head(self) -> LogPosition:
        """See ports.EventStore."""
        return self._log[-1].position if self._log else ORIGIN

    def _append(self, append: Append) -> Appended | ServiceError:
        assert append.events, "an append has events"
        if append.request_id is not None and append.request_id in self._commands:
            digest, done = self._commands[append.request_id]
            if digest != append.request_digest:
                return ServiceError(Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED", "Use a new request_id.")
            return Appended(done.version, done.position, duplicate=True)
        if append.events[0].subject_id in self._erased:
            return ServiceError(Kind.FAILED_PRECONDITION, "SUBJECT_ERASED", "The subject was erased.")
        stream = self._streams.setdefault(append.stream_id, [])
        if len(stream) != append.expected_version or append.events[0].event_id in self._event_ids:
            return ServiceError(Kind.CONFLICT, "VERSION_CONFLICT", "Read the stream again.")
        self._xid += 1
        for event in append.events:
            recorded = RecordedEvent(
                event_id=event.event_id,
                type=event.type,
                payload=event.payload,
                occurred_at=event.occurred_at,
                subject_id=event.subject_id,
                traceparent=event.traceparent,
                stream_id=append.stream_id,
                version=len(stream) + 1,
                position=LogPosition(1, self._xid, len(self._log) + 1),
            )
            stream.append(recorded)
            self._log.append(recorded)
            self._event_ids.add(event.event_id)
        done = Appended(len(stream), self._log[-1].position)
        if append.request_id is not None:
            self._commands[append.request_id] = (append.request_digest, done)
        return done


@dataclass(slots=True)
class _Durable:
    """Where a durable consumer stands."""

    pattern: re.Pattern[str]
    next_index: int = 0
    deliveries_count: int = 0
    not_before_s: float = 0.0
    # Held from a delivery to its verdict: consumers of one durable take turns.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryBus:
    """ports.Bus in lists: what is published stays, each durable has its own place in it."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stored_s: list[float] = []
        self._message_ids: set[str] = set()
        self._durables: dict[str, _Durable] = {}
        self._published = asyncio.Event()

    async def publish(self, channel: str, payload: bytes, *, message_id: str, headers: Mapping[str, str]) -> None:
        """See ports.Bus."""
        if message_id in self._message_ids:
            return
        self._message_ids.add(message_id)
        self._messages.append(Message(channel, payload, dict(headers), 0))
        self._stored_s.append(time.monotonic())
        self._published.set()
        self._published = asyncio.Event()

    async def consume(self, channels: str, *, durable: str) -> AsyncGenerator[Delivery, None]:
        """See ports.Bus."""
        place = self._durables.setdefault(durable, _Durable(_pattern(channels)))
        while True:
            async with place.turn:
                published = self._published
                index = self._next(place)
                if index is not None:
                    await self._wait_until(place.not_before_s)
                    # Until there is a verdict the same one comes again.
                    yield self._delivery(place, index)
                    continue
            await published.wait()

    async def oldest_age_s(self, channels: str, *, durable: str) -> float:
        """See ports.Bus."""
        if durable not in self._durables:
            raise ServiceError(Kind.UNAVAILABLE, "BUS_UNAVAILABLE", "Nobody consumes under this name.")
        index = self._next(self._durables[durable])
        return 0.0 if index is None else time.monotonic() - self._stored_s[index]

    def _next(self, place: _Durable) -> int | None:
        for index in range(place.next_index, len(self._messages)):
            if place.pattern.fullmatch(self._messages[index].channel):
                return index
        place.next_index = len(self._messages)
        return None

    async def _wait_until(self, at_s: float) -> None:
        delay_s = at_s - asyncio.get_running_loop().time()
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def _delivery(self, place: _Durable, index: int) -> "_MemoryDelivery":
        place.next_index = index
        place.deliveries_count += 1
        stored = self._messages[index]
        message = Message(stored.channel, stored.payload, stored.headers, place.deliveries_count)
        return _MemoryDelivery(message, place)


class _MemoryDelivery:
    """ports.Delivery of a MemoryBus."""

    def __init__(self, message: Message, place: _Durable) -> None:
        self.message = message
        self._place = place

    async def ack(self) -> None:
        """See ports.Delivery."""
        self._place.next_index += 1
        self._place.deliveries_count = 0
        self._place.not_before_s = 0.0

    async def retry(self, *, delay_s: float) -> None:
        """See ports.Delivery."""
        self._place.not_before_s = asyncio.get_running_loop().time() + delay_s


def _pattern(channels: str) -> re.Pattern[str]:
    """NATS wildcards as a regular expression."""
    tokens = [{"*": r"[^.]+", ">": r".+"}.get(token, re.escape(token)) for token in channels.split(".")]
    return re.compile(r"\.".join(tokens))


class MemoryCache:
    """ports.Cache in a dict."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._values: dict[str, tuple[bytes, datetime | None]] = {}

    async def get(self, key: str) -> bytes | None:
        """See ports.Cache."""
        value, expires_at = self._values.get(key, (None, None))
        if expires_at is not None and expires_at <= self._clock.now():
            del self._values[key]
            return None
        return value

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See ports.Cache."""
        return [await self.get(key) for key in keys]

    async def set_many(self, values: Mapping[str, bytes], *, ttl_s: float | None = None) -> None:
        """See ports.Cache."""
        expires_at = None if ttl_s is None else self._clock.now() + timedelta(seconds=ttl_s)
        for key, value in values.items():
            self._values[key] = (value, expires_at)

    async def set_newer_many(self, values: Mapping[str, tuple[int, bytes]], *, ttl_s: float) -> None:
        """See ports.Cache."""
        expires_at = self._clock.now() + timedelta(seconds=ttl_s)
        for key, (version, value) in values.items():
            stored = await self.get(key)
            if (
                stored is None
                or len(stored) < VERSION_BYTES
                or int.from_bytes(stored[:VERSION_BYTES], "big") <= version
            ):
                self._values[key] = (version.to_bytes(VERSION_BYTES, "big") + value, expires_at)

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ports.Cache."""
        for key in keys:
            self._values.pop(key, None)


class MemoryKeys:
    """sealing.KeyReader in a dict; destroy() makes an erased subject."""

    def __init__(self) -> None:
        self._keys: dict[str, DataKey] = {}
        # What was asked for, in order: how often keys are read is part of what callers promise.
        self.asked: list[tuple[str, ...]] = []

    async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        """See sealing.KeyReader."""
        self.asked.append(tuple(member_ids))
        for member_id in member_ids:
            if mint and member_id not in self._keys:
                self._keys[member_id] = DataKey(member_id, os.urandom(8).hex(), os.urandom(32))
        return {member_id: self._keys.get(member_id, DataKey(member_id)) for member_id in member_ids}

    def destroy(self, member_ids: Iterable[str]) -> None:
        """Erase these members: their keys are gone and are not minted again."""
        for member_id in member_ids:
            self._keys[member_id] = DataKey(member_id, destroyed=True)
