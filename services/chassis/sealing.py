"""Payloads that only the holder of a subject's data key can read: AES-256-GCM, one key a member.

The key's destruction makes what was sealed with it unreadable for ever. Owns no keys: KeyReader gives them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.chassis.errors import ServiceError
from services.chassis.events import RecordedEvent, Sealed


@dataclass(frozen=True, slots=True)
class DataKey:
    """A member's data key.

    Args:
        key_id: empty where there is no key.
        key: 32 bytes; empty where there is none.
        destroyed: the subject was erased; the key never comes back.
    """

    member_id: str
    key_id: str = ""
    key: bytes = field(default=b"", repr=False)
    destroyed: bool = False


class KeyReader(Protocol):
    """Where data keys come from."""

    async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        """One key a member asked for; *mint* makes those that do not exist yet, never those destroyed.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class ToSeal:
    """A payload about a member, before it is stored."""

    member_id: str
    type: str
    plaintext: bytes = field(repr=False)


class Sealer:
    """Seals and opens payloads; keeps keys for a minute, so that a batch costs one read of them at most."""

    def __init__(self, keys: KeyReader, *, ttl_s: float = 60.0, keys_max: int = 50_000) -> None:
        raise NotImplementedError

    async def seal(self, member_id: str, event_type: str, plaintext: bytes) -> Sealed:
        """The payload, sealed for this member; mints the member's key if it has none.

        Raises:
            ServiceError: NOT_FOUND (SUBJECT_ERASED), UNAVAILABLE.
        """
        raise NotImplementedError

    async def open(self, event: RecordedEvent) -> bytes:
        """The event's payload in plain; of an event that was never sealed, as it is.

        Raises:
            ServiceError: NOT_FOUND (SUBJECT_ERASED, DATA_KEY_UNKNOWN), INVALID (SEAL_BROKEN), UNAVAILABLE.
        """
        raise NotImplementedError

    async def seal_many(self, items: Sequence[ToSeal]) -> list[Sealed | ServiceError]:
        """Each sealed on its own merits, in order; refusals are returned, an outage is raised."""
        raise NotImplementedError

    async def open_many(self, events: Sequence[RecordedEvent]) -> list[bytes | ServiceError]:
        """Each payload in plain, in order; refusals are returned, an outage is raised."""
        raise NotImplementedError

    def forget(self, member_ids: Iterable[str]) -> None:
        """Drop these members' keys now: they were erased."""
        raise NotImplementedError
