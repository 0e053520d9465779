"""Payloads that only the holder of a subject's data key can read: AES-256-GCM, one key a member.

The key's destruction makes what was sealed with it unreadable for ever. Owns no keys: KeyReader gives them.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.events import RecordedEvent, Sealed
from services.chassis.turns import TURN, in_turns
from services.chassis.uncancelled import Shared

T = TypeVar("T")

NONCE_BYTES = 12
# Version of the sealing itself; another one would be another way to seal.
SCHEMA = 1


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
        """The keys of the members asked for; *mint* makes those that do not exist yet, never those destroyed.

        What is no member is left out.

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


@dataclass(frozen=True, slots=True)
class _Held:
    """A key in the cache, with its cipher ready."""

    key_id: str
    cipher: AESGCM | None
    destroyed: bool
    until_s: float


class Sealer:
    """Seals and opens payloads; keeps keys for a minute, so that a batch costs one read of them at most.

    A key that was destroyed elsewhere may open payloads here for up to *ttl_s*; forget() ends that at once.
    """

    def __init__(
        self,
        keys: KeyReader,
        *,
        ttl_s: float = 60.0,
        keys_max: int = 50_000,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._ttl_s = ttl_s
        self._keys_max = keys_max
        self._now = now
        self._held: OrderedDict[str, _Held] = OrderedDict()
        # Raised by forget(): a read that was under way then may carry a key that is destroyed by now.
        self._forgotten_count = 0
        self._reads = Shared[tuple[tuple[str, ...], bool], dict[str, _Held]]()

    def holds(self, member_id: str) -> bool:
        """Whether sealing for this member now would ask nobody."""
        held = self._held.get(member_id)
        return held is not None and held.until_s > self._now() and (held.cipher is not None or held.destroyed)

    async def prepare(self, member_id: str) -> None:
        """Have this member's key at hand, minted if there is none, so that a seal later need not wait for it.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        await self._hold({member_id}, mint=True)

    async def seal(self, member_id: str, event_type: str, plaintext: bytes) -> Sealed:
        """The payload, sealed for this member; mints the member's key if it has none.

        Raises:
            ServiceError: NOT_FOUND (SUBJECT_ERASED), UNAVAILABLE.
        """
        return _or_raise((await self.seal_many([ToSeal(member_id, event_type, plaintext)]))[0])

    async def open(self, event: RecordedEvent) -> bytes:
        """The event's payload in plain; of an event that was never sealed, as it is.

        Raises:
            ServiceError: NOT_FOUND (SUBJECT_ERASED, DATA_KEY_UNKNOWN), INVALID (SEAL_BROKEN), UNAVAILABLE.
        """
        return _or_raise((await self.open_many([event]))[0])

    async def seal_many(self, items: Sequence[ToSeal]) -> list[Sealed | ServiceError]:
        """Each sealed on its own merits, in order; refusals are returned, an outage is raised."""
        held = await self._hold({item.member_id for item in items}, mint=True)
        return [_seal(held[item.member_id], item) for item in items]

    async def open_many(self, events: Sequence[RecordedEvent]) -> list[bytes | ServiceError]:
        """Each payload in plain, in order; refusals are returned, an outage is raised."""
        members = {event.subject_id for event in events if isinstance(event.payload, Sealed)}
        held = await self._hold(members, mint=False)
        opened: list[bytes | ServiceError] = []
        async for start in in_turns(len(events)):
            opened += [
                _open(held[event.subject_id], event, event.payload)
                if isinstance(event.payload, Sealed)
                else event.payload
                for event in events[start : start + TURN]
            ]
        return opened

    def forget(self, member_ids: Iterable[str]) -> None:
        """Drop these members' keys now: they were erased."""
        self._forgotten_count += 1
        self._reads.part()
        for member_id in member_ids:
            self._held.pop(member_id, None)

    async def _hold(self, member_ids: set[str], *, mint: bool) -> dict[str, _Held]:
        """The members' keys, from the cache or read now."""
        now_s = self._now()
        held: dict[str, _Held] = {}
        for member_id in member_ids:
            known = self._held.get(member_id)
            if known is not None and known.until_s > now_s and (known.cipher is not None or known.destroyed):
                self._held.move_to_end(member_id)
                held[member_id] = known
        missing = tuple(sorted(member_ids - held.keys()))
        if missing:
            held |= await self._reads((missing, mint), lambda: self._read(missing, mint=mint))
        return held

    async def _read(self, member_ids: Sequence[str], *, mint: bool) -> dict[str, _Held]:
        forgotten_before = self._forgotten_count
        read = await self._keys.keys(member_ids, mint=mint)
        held = {member_id: self._to_held(read.get(member_id, DataKey(member_id))) for member_id in member_ids}
        if self._forgotten_count == forgotten_before:
            for member_id, key in held.items():
                self._keep(member_id, key)
        return held

    def _to_held(self, key: DataKey) -> _Held:
        cipher = AESGCM(key.key) if key.key and not key.destroyed else None
        return _Held(key.key_id, cipher, key.destroyed, self._now() + self._ttl_s)

    def _keep(self, member_id: str, key: _Held) -> None:
        self._held[member_id] = key
        self._held.move_to_end(member_id)
        while len(self._held) > self._keys_max:
            self._held.popitem(last=False)


def _seal(held: _Held, item: ToSeal) -> Sealed | ServiceError:
    if held.cipher is None:
        return _no_key(held)
    # Random nonces are safe for 2^32 payloads of one key (NIST SP 800-38D, 8.3); no member comes near.
    nonce = os.urandom(NONCE_BYTES)
    return Sealed(held.key_id, nonce, held.cipher.encrypt(nonce, item.plaintext, _aad(item.member_id, item.type)))


def _open(held: _Held, event: RecordedEvent, sealed: Sealed) -> bytes | ServiceError:
    if held.cipher is None or held.key_id != sealed.key_id:
        return _no_key(held)
    try:
        return held.cipher.decrypt(sealed.nonce, sealed.ciphertext, _aad(event.subject_id, event.type))
    except (InvalidTag, ValueError):
        # Not chained: the cryptography error says nothing, and its frames hold the key.
        return invalid("payload", "its seal is broken: it was changed, or is another event's", reason="SEAL_BROKEN")


def _aad(member_id: str, type_name: str) -> bytes:
    """What a payload is bound to: it opens as nobody else's and as nothing else."""
    return f"{member_id}|{type_name}|{SCHEMA}".encode()


def _no_key(held: _Held) -> ServiceError:
    if held.destroyed:
        return ServiceError(Kind.NOT_FOUND, "SUBJECT_ERASED", "The subject was erased: its data is gone for ever.")
    return ServiceError(Kind.NOT_FOUND, "DATA_KEY_UNKNOWN", "There is no data key that this payload was sealed with.")


def _or_raise(result: T | ServiceError) -> T:
    if isinstance(result, ServiceError):
        raise result
    return result
