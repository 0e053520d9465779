"""The ports in memory, honest enough to pass the same contract suites as the real adapters: for tests and demos."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.chassis.events import Append, Appended, LogPosition, RecordedEvent
from services.chassis.ports import Delivery
from services.chassis.sealing import DataKey


class MemoryEventStore:
    """ports.EventStore in a list."""

    async def append(self, append: Append) -> Appended:
        """See ports.EventStore."""
        raise NotImplementedError

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | ServiceError]:
        """See ports.EventStore."""
        raise NotImplementedError

    async def read_stream(self, stream_id: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """See ports.EventStore."""
        raise NotImplementedError

    async def read_log(self, after: LogPosition, *, limit: int) -> list[RecordedEvent]:
        """See ports.EventStore."""
        raise NotImplementedError

    async def head(self) -> LogPosition:
        """See ports.EventStore."""
        raise NotImplementedError


class MemoryBus:
    """ports.Bus in lists: what is published stays, each durable has its own place in it."""

    async def publish(self, channel: str, payload: bytes, *, message_id: str, headers: Mapping[str, str]) -> None:
        """See ports.Bus."""
        raise NotImplementedError

    def consume(self, channels: str, *, durable: str) -> AsyncIterator[Delivery]:
        """See ports.Bus."""
        raise NotImplementedError


class MemoryCache:
    """ports.Cache in a dict."""

    def __init__(self, clock: Clock | None = None) -> None:
        raise NotImplementedError

    async def get(self, key: str) -> bytes | None:
        """See ports.Cache."""
        raise NotImplementedError

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See ports.Cache."""
        raise NotImplementedError

    async def set_many(self, values: Mapping[str, bytes], *, ttl_s: float | None = None) -> None:
        """See ports.Cache."""
        raise NotImplementedError

    async def set_newer_many(self, values: Mapping[str, tuple[int, bytes]]) -> None:
        """See ports.Cache."""
        raise NotImplementedError

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ports.Cache."""
        raise NotImplementedError


class MemoryKeys:
    """sealing.KeyReader in a dict; destroy() makes an erased subject."""

    async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        """See sealing.KeyReader."""
        raise NotImplementedError

    def destroy(self, member_ids: Iterable[str]) -> None:
        """Erase these members: their keys are gone and are not minted again."""
        raise NotImplementedError
