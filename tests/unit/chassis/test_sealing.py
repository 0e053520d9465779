"""Sealed payloads: they open as what they were, for whom they were, and not after the key is gone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition, RecordedEvent, Sealed
from services.chassis.memory import MemoryKeys
from services.chassis.sealing import DataKey, Sealer, ToSeal
from tests.contract.samples import START
from tests.waiting import eventually

ALICE, BOB = "a" * 26, "b" * 26
TYPE = "comity.test.v1.Happened"


def recorded(payload: bytes | Sealed, *, member_id: str = ALICE, type_name: str = TYPE) -> RecordedEvent:
    return RecordedEvent("id", type_name, payload, START, member_id, "", "s", 1, LogPosition(1, 1, 1))


@pytest.fixture
def keys() -> MemoryKeys:
    return MemoryKeys()


@pytest.fixture
def sealer(keys: MemoryKeys) -> Sealer:
    return Sealer(keys)


@given(plaintext=st.binary(max_size=1000))
async def test_what_was_sealed_opens(plaintext: bytes) -> None:
    """Any payload comes back, and never lies in its ciphertext."""
    sealer = Sealer(MemoryKeys())
    sealed = await sealer.seal(ALICE, TYPE, plaintext)
    assert await sealer.open(recorded(sealed)) == plaintext
    assert len(plaintext) < 4 or plaintext not in sealed.ciphertext


async def test_unsealed_payload_is_what_it_is(sealer: Sealer, keys: MemoryKeys) -> None:
    """An event about nobody is read without a key."""
    assert await sealer.open(recorded(b"plain", member_id="")) == b"plain"
    assert keys.asked == []


async def test_same_payload_seals_differently_each_time(sealer: Sealer) -> None:
    """Nonces are never used twice, so equal payloads cannot be told to be equal."""
    sealed = [await sealer.seal(ALICE, TYPE, b"same") for _ in range(100)]
    assert len({one.nonce for one in sealed}) == len({one.ciphertext for one in sealed}) == 100
    assert len({one.key_id for one in sealed}) == 1
    assert all(len(one.nonce) == 12 for one in sealed)


@pytest.mark.parametrize("part", ["ciphertext", "nonce", "type"])
async def test_changed_seal_does_not_open(sealer: Sealer, part: str) -> None:
    """A flipped bit, another nonce or another event type breaks the seal."""
    sealed = await sealer.seal(ALICE, TYPE, b"secret")
    event = {
        "ciphertext": recorded(replace(sealed, ciphertext=bytes([sealed.ciphertext[0] ^ 1]) + sealed.ciphertext[1:])),
        "nonce": recorded(replace(sealed, nonce=bytes(12))),
        "type": recorded(sealed, type_name=TYPE + "Else"),
    }[part]
    with pytest.raises(ServiceError) as refusal:
        await sealer.open(event)
    assert (refusal.value.kind, refusal.value.reason) == (Kind.INVALID, "SEAL_BROKEN")


async def test_one_members_payload_does_not_open_as_anothers(sealer: Sealer, keys: MemoryKeys) -> None:
    """A payload moved to another member is refused, also when both have the same key id."""
    sealed = await sealer.seal(ALICE, TYPE, b"secret")
    await sealer.seal(BOB, TYPE, b"other")
    with pytest.raises(ServiceError) as refusal:
        await sealer.open(recorded(sealed, member_id=BOB))
    assert refusal.value.reason == "DATA_KEY_UNKNOWN"

    class SameKey:
        async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
            return {member_id: DataKey(member_id, "one", bytes(32)) for member_id in member_ids}

    same = Sealer(SameKey())
    sealed = await same.seal(ALICE, TYPE, b"secret")
    with pytest.raises(ServiceError) as refusal:
        await same.open(recorded(sealed, member_id=BOB))
    assert refusal.value.reason == "SEAL_BROKEN"


async def test_a_key_is_at_hand_although_its_first_reader_left(sealer: Sealer, keys: MemoryKeys) -> None:
    """Where reading takes longer than a caller waits, the next one finds the key instead of beginning again."""
    read, may_answer, asked = keys.keys, asyncio.Event(), asyncio.Event()

    async def slow(member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        asked.set()
        await may_answer.wait()
        return await read(member_ids, mint=mint)

    keys.keys = slow  # type: ignore[method-assign]
    first = asyncio.create_task(sealer.prepare(ALICE))
    await asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not sealer.holds(ALICE)
    may_answer.set()

    async def is_held() -> bool:
        return sealer.holds(ALICE)

    await eventually(is_held)
    await sealer.seal(ALICE, TYPE, b"secret")
    assert keys.asked == [(ALICE,)]


async def test_destroyed_key_opens_and_seals_nothing(sealer: Sealer, keys: MemoryKeys) -> None:
    """After erasure what was sealed is unreadable, no new payload is sealed, and no new key is made."""
    sealed = await sealer.seal(ALICE, TYPE, b"secret")
    keys.destroy([ALICE])
    sealer.forget([ALICE])
    for attempt in (sealer.open(recorded(sealed)), sealer.seal(ALICE, TYPE, b"more")):
        with pytest.raises(ServiceError) as refusal:
            await attempt
        assert (refusal.value.kind, refusal.value.reason) == (Kind.NOT_FOUND, "SUBJECT_ERASED")


async def test_destroyed_key_is_honored_without_being_told_within_its_time(keys: MemoryKeys) -> None:
    """A key that is kept goes stale after its time, and the next use finds that it is destroyed."""
    now_s = 0.0
    sealer = Sealer(keys, ttl_s=60.0, now=lambda: now_s)
    sealed = await sealer.seal(ALICE, TYPE, b"secret")
    keys.destroy([ALICE])
    now_s = 59.0
    assert await sealer.open(recorded(sealed)) == b"secret"
    now_s = 61.0
    with pytest.raises(ServiceError) as refusal:
        await sealer.open(recorded(sealed))
    assert refusal.value.reason == "SUBJECT_ERASED"


async def test_opening_mints_no_key(sealer: Sealer, keys: MemoryKeys) -> None:
    """A payload whose key nobody has cannot be opened, and looking does not make a key."""
    for _ in range(2):
        with pytest.raises(ServiceError) as refusal:
            await sealer.open(recorded(Sealed("lost", bytes(12), b"x" * 20)))
        assert refusal.value.reason == "DATA_KEY_UNKNOWN"
    assert (await keys.keys([ALICE], mint=False))[ALICE].key_id == ""


async def test_batch_reads_each_key_once(sealer: Sealer, keys: MemoryKeys) -> None:
    """A batch of payloads of few members costs one read of keys, and the next batch none."""
    items = [ToSeal((ALICE, BOB)[number % 2], TYPE, str(number).encode()) for number in range(50)]
    sealed = await sealer.seal_many(items)
    assert all(isinstance(one, Sealed) for one in sealed)
    events = [
        recorded(one, member_id=item.member_id)
        for item, one in zip(items, sealed, strict=True)
        if isinstance(one, Sealed)
    ]
    assert await sealer.open_many(events) == [item.plaintext for item in items]
    assert keys.asked == [(ALICE, BOB)]


async def test_batch_is_judged_item_by_item(sealer: Sealer, keys: MemoryKeys) -> None:
    """An erased member in a batch refuses its own items only."""
    keys.destroy([BOB])
    first, second = await sealer.seal_many([ToSeal(BOB, TYPE, b"1"), ToSeal(ALICE, TYPE, b"2")])
    assert isinstance(first, ServiceError)
    assert isinstance(second, Sealed)
    opened = await sealer.open_many([recorded(second, member_id=BOB), recorded(second), recorded(b"plain")])
    assert [one if isinstance(one, bytes) else one.reason for one in opened] == ["SUBJECT_ERASED", b"2", b"plain"]


async def test_keys_kept_are_bounded(keys: MemoryKeys) -> None:
    """The key used longest ago is dropped first."""
    sealer = Sealer(keys, keys_max=2)
    for member_id in ("x" * 26, "y" * 26, "x" * 26, "z" * 26, "x" * 26, "y" * 26):
        await sealer.seal(member_id, TYPE, b"1")
    assert keys.asked == [("x" * 26,), ("y" * 26,), ("z" * 26,), ("y" * 26,)]


async def test_key_read_before_an_erasure_is_not_kept_after_it(keys: MemoryKeys) -> None:
    """A key that was being read while its member was forgotten does not stay."""

    class Erasing:
        sealer: Sealer

        async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
            found = await keys.keys(member_ids, mint=mint)
            keys.destroy(member_ids)
            self.sealer.forget(member_ids)
            return found

    reader = Erasing()
    reader.sealer = Sealer(reader)
    await reader.sealer.seal(ALICE, TYPE, b"just before")
    with pytest.raises(ServiceError) as refusal:
        await reader.sealer.seal(ALICE, TYPE, b"after")
    assert refusal.value.reason == "SUBJECT_ERASED"


async def test_key_is_not_shown() -> None:
    """A key in a log line or a traceback would outlive its destruction."""
    assert "secretsecret" not in repr(DataKey(ALICE, "id", b"secretsecret"))
    assert "secretsecret" not in repr(ToSeal(ALICE, TYPE, b"secretsecret"))


async def test_long_page_is_opened_in_turns_of_the_loop(sealer: Sealer) -> None:
    """A replay's page of a thousand rows does not make the calls beside it wait for all of it."""
    sealed = await sealer.seal(ALICE, TYPE, b"one of many")
    await sealer.prepare(ALICE)
    opening = asyncio.ensure_future(sealer.open_many([recorded(sealed)] * 1_000))
    turns = 0
    while not opening.done():
        await asyncio.sleep(0)
        turns += 1
    assert await opening == [b"one of many"] * 1_000
    assert turns > 30
