"""What services need from the outside, as shapes. tests/contract holds what every adapter must do."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.chassis.errors import ServiceError
from services.chassis.events import Append, Appended, LogPosition, RecordedEvent


class EventStore(Protocol):
    """The append-only log of one service."""

    async def append(self, append: Append) -> Appended:
        """Record events durably; waiting appends are committed together.

        Raises:
            ServiceError: CONFLICT (VERSION_CONFLICT) when the stream does not stand at the expected version;
                ALREADY_EXISTS (REQUEST_ID_REUSED) when the request id was used for another command;
                FAILED_PRECONDITION (SUBJECT_ERASED) when it is about a member who was erased;
                UNAVAILABLE when the outcome is unknown even after looking it up.
        """
        ...

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | ServiceError]:
        """Record each append on its own merits, all in one transaction; refusals are returned, not raised."""
        ...

    async def read_stream(self, stream_id: str, *, after_version: int = 0) -> list[RecordedEvent]:
        """The stream's events in order of version."""
        ...

    async def read_log(self, after: LogPosition, *, limit: int) -> list[RecordedEvent]:
        """Up to *limit* committed events after a position, in commit order; never skips one that commits later."""
        ...

    async def head(self) -> LogPosition:
        """Position of the newest event that read_log can return."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """A message taken from a channel."""

    channel: str
    payload: bytes
    headers: Mapping[str, str]
    deliveries_count: int


class Delivery(Protocol):
    """A message that waits for its verdict."""

    message: Message

    async def ack(self) -> None:
        """It had its effect; never deliver it again."""
        ...

    async def retry(self, *, delay_s: float) -> None:
        """Deliver it again after the delay; the ones behind it wait."""
        ...


class Bus(Protocol):
    """Durable channels between services: at least once, in order within a channel."""

    async def publish(self, channel: str, payload: bytes, *, message_id: str, headers: Mapping[str, str]) -> None:
        """Returns once the message is stored; the same id within the dedup window is stored once.

        Raises:
            ServiceError: UNAVAILABLE when it could not be stored in time; trying again is safe.
        """
        ...

    def consume(self, channels: str, *, durable: str) -> AsyncGenerator[Delivery, None]:
        """Deliveries on the channels (`*` one token, `>` the rest), one at a time, from where *durable* stands.

        A delivery that is left without a verdict when the generator is closed is delivered again.
        """
        ...

    async def oldest_age_s(self, channels: str, *, durable: str) -> float:
        """Seconds since the oldest message was stored that *durable* has not acknowledged; 0 where there is none.

        Raises:
            ServiceError: UNAVAILABLE, also where *durable* does not consume (yet).
        """
        ...


class Cache(Protocol):
    """Values that can all be rebuilt. Calls are coalesced: those that wait leave together."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """One value or None a key, in that order."""
        ...

    async def set_many(self, values: Mapping[str, bytes], *, ttl_s: float | None = None) -> None:
        """Set all of them."""
        ...

    async def set_newer_many(self, values: Mapping[str, tuple[int, bytes]], *, ttl_s: float) -> None:
        """Set each value, for this time, unless one with a higher version is there.

        The version is stored in front of the value as 8 bytes, big endian, so that a late filler never puts an old
        state over a new one.
        """
        ...

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Remove them; absent ones are no error."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """Who reads a person's data, and why.

    Args:
        accessor: the person or system that reads; never the subject.
        reason: on what ground; free text without personal data of the subject.
    """

    accessor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """What calls that read personal data are part of.

    Args:
        id: a UUID; empty: the call is an operation of its own.
    """

    id: str
    access: Access


class AccessLog(Protocol):
    """Reads of personal data by people, as facts of the service that gave the data out."""

    async def accessed(self, subject_id: str, access: Access, method: str) -> None:
        """Record that it was read, durably, before it is handed out: what cannot be recorded is not given.

        Args:
            subject_id: pseudonym (member or subject) whose data it is.
            method: the call, "comity.decision.v1.DecisionService/Explain".

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...

    async def operated(
        self, operation: Operation, method: str, *, member_ids: Sequence[str] = (), purpose: str = ""
    ) -> None:
        """Record that something was given out for an operation: once for one with an id, durably, before it is given.

        Args:
            member_ids: whose data it is, for a call that is part of none; empty: everybody's.
            purpose: that a replay named.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...
