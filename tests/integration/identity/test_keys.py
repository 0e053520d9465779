"""Data keys: one a member, for ever the same, gone when destroyed, and never in plain where they are kept."""

import asyncio
from typing import Any

import grpc
import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.identity.v1 import identity_service_pb2 as pb

from services.chassis.access import PERSONAL_DATA_ACCESSED, PostgresAccessLog
from services.chassis.clock import SystemClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.ports import Access
from services.chassis.postgres import create_pool
from services.chassis.reads import UNSTATED, new_operation, operation_to_pb
from services.chassis.status import from_call_error
from services.identity.handlers import KeyHandlers
from services.identity.store.keys import PostgresKeys, Wrapping
from services.identity.store.secrets import require_same_secrets
from tests.integration.identity.conftest import KEK
from tests.waiting import eventually

WAITING_SQL = """
SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'data_keys'::regclass
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
MEMBERS = ["a" * 26, "b" * 26, "c" * 26]


async def keys(identity: Any, member_ids: list[str], *, mint: bool) -> list[pb.DataKey]:
    request = pb.GetDataKeysRequest(member_ids=member_ids, mint=mint)
    return list((await identity.keys.GetDataKeys(request, timeout=10)).keys)


async def test_a_read_makes_no_key(identity: Any) -> None:
    """Who only looks gets nothing where nothing is."""
    assert [(key.key_id, key.key, key.destroyed) for key in await keys(identity, MEMBERS, mint=False)] == [
        ("", b"", False)
    ] * 3
    assert await identity.pool.fetchval("SELECT count(*) FROM data_keys") == 0


async def test_a_minted_key_stays(identity: Any) -> None:
    """Keys are 32 bytes, of one member each, in the order asked for, and the same for ever; the minting is recorded."""
    minted = await keys(identity, [MEMBERS[2], MEMBERS[0], MEMBERS[2]], mint=True)
    assert [key.member_id for key in minted] == [MEMBERS[2], MEMBERS[0], MEMBERS[2]]
    assert minted[0] == minted[2]
    assert {len(key.key) for key in minted} == {32}
    assert minted[0].key != minted[1].key
    assert await keys(identity, [MEMBERS[0]], mint=True) == [minted[1]]
    assert await keys(identity, [MEMBERS[0]], mint=False) == [minted[1]]
    assert await identity.events(f"key-{MEMBERS[0]}") == ["DataKeyMinted"]


async def test_minters_that_race_get_the_same_key(identity: Any) -> None:
    """Sixteen mint overlapping members at once: whoever seals, everybody can open."""
    orders = [MEMBERS, MEMBERS[::-1], MEMBERS[1:], MEMBERS[:2]] * 4
    answers = await asyncio.gather(*(keys(identity, order, mint=True) for order in orders))
    by_member = {
        member: {key.key for answer in answers for key in answer if key.member_id == member} for member in MEMBERS
    }
    assert [len(found) for found in by_member.values()] == [1, 1, 1]
    assert await identity.pool.fetchval("SELECT count(*) FROM events") == 3


async def test_a_key_is_minted_although_its_caller_left(identity: Any) -> None:
    """A Decide waits for milliseconds: where minting takes longer the next one finds the key."""
    accesses = PostgresAccessLog(identity.pool, SystemClock())
    handlers = KeyHandlers(PostgresKeys(identity.pool, Wrapping(KEK), SystemClock()), accesses)
    async with identity.pool.acquire() as blocker, blocker.transaction():
        # Reads go on, writes wait.
        await blocker.execute("LOCK TABLE data_keys IN SHARE ROW EXCLUSIVE MODE")
        minting = asyncio.create_task(handlers.data_keys(MEMBERS[:1], mint=True, operations=()))

        async def waits() -> bool:
            return bool(await identity.pool.fetchval(WAITING_SQL))

        await eventually(waits)
        minting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await minting
    assert (await keys(identity, MEMBERS[:1], mint=False))[0].key


async def test_a_destroyed_key_is_not_made_again(identity: Any) -> None:
    """The tombstone of an erased member refuses, and says so."""
    await keys(identity, MEMBERS, mint=True)
    await identity.pool.execute(
        "UPDATE data_keys SET wrapped = NULL, destroyed_at = now() WHERE member_id = $1", MEMBERS[1]
    )
    for mint in (True, False):
        found = await keys(identity, MEMBERS, mint=mint)
        assert [(bool(key.key), key.destroyed) for key in found] == [(True, False), (False, True), (True, False)]


async def test_only_wrapped_keys_are_kept(identity: Any) -> None:
    """No byte of the key is in the row, and the row opens for no other member and under no other KEK."""
    (key,) = await keys(identity, MEMBERS[:1], mint=True)
    row = await identity.pool.fetchrow("SELECT member_id, key_id, wrapped FROM data_keys")
    assert key.key not in row["wrapped"]
    wrapping = Wrapping(b"key that wraps keys, 32 bytes long")
    assert wrapping.unwrap(MEMBERS[0], row["key_id"], row["wrapped"]) == key.key
    for other, member in ((wrapping, MEMBERS[1]), (Wrapping(b"another key, also 32 bytes long!"), MEMBERS[0])):
        with pytest.raises(ServiceError) as caught:
            other.unwrap(member, row["key_id"], row["wrapped"])
        assert caught.value.reason == "DATA_KEY_BROKEN"


async def test_what_is_no_member_id_gets_no_key(identity: Any) -> None:
    """A key for a raw identifier by mistake would be a fact about it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await keys(identity, [MEMBERS[0], "canary@example.org"], mint=True)
    error = from_call_error(caught.value)
    assert error.kind is Kind.INVALID
    assert error.problems[0].field == "member_ids[1]"
    assert "canary" not in error.message
    assert await identity.pool.fetchval("SELECT count(*) FROM data_keys") == 0


async def test_other_secrets_than_those_of_the_data_are_refused(identity: Any) -> None:
    """With another pepper everybody would silently be somebody else."""
    pool = await create_pool(identity.url, size=1)
    try:
        await require_same_secrets(pool, {"pepper": b"p" * 32, "kek": b"k" * 32})
        await require_same_secrets(pool, {"pepper": b"p" * 32, "kek": b"k" * 32})
        with pytest.raises(ServiceError, match="pepper is not the one"):
            await require_same_secrets(pool, {"pepper": b"q" * 32, "kek": b"k" * 32})
    finally:
        await pool.close()


async def test_key_that_does_not_open_costs_the_others_nothing(identity: Any) -> None:
    """A row that was changed has no key, and is put aside once; whoever is asked for with it keeps theirs."""
    minted = await keys(identity, MEMBERS, mint=True)
    await identity.pool.execute("UPDATE data_keys SET wrapped = 'x' WHERE member_id = $1", MEMBERS[1])
    for _ in range(2):
        found = await keys(identity, MEMBERS, mint=True)
        assert [one.key for one in found] == [minted[0].key, b"", minted[2].key]
    letters = await identity.pool.fetch("SELECT subject_id, reason FROM dead_letters")
    assert [tuple(letter) for letter in letters] == [(MEMBERS[1], "DATA_KEY_BROKEN")]


async def test_keys_that_are_opened_leave_a_fact_and_those_to_seal_with_none(identity: Any) -> None:
    """Once an operation, not once a key; of a caller that names none, about each whose key it was given."""
    await keys(identity, MEMBERS, mint=True)
    await keys(identity, MEMBERS, mint=True)
    assert await accessed(identity) == {}
    operation = operation_to_pb(new_operation(Access("officer", "an export")))
    for some in (MEMBERS[:2], MEMBERS[2:]):
        await identity.keys.GetDataKeys(pb.GetDataKeysRequest(member_ids=some, operations=[operation]), timeout=10)
    assert await accessed(identity) == {f"access-op-{operation.id}": ("officer", "")}
    await keys(identity, [MEMBERS[0], "d" * 26], mint=False)
    about = f"access-{MEMBERS[0]}"
    assert (await accessed(identity))[about] == (UNSTATED, MEMBERS[0])
    assert len(await accessed(identity)) == 2


async def accessed(identity: Any) -> dict[str, tuple[str, str]]:
    """Who opened keys, and whom the fact is about, by its stream; one a stream."""
    rows = await identity.pool.fetch(
        "SELECT stream_id, subject_id, payload FROM events WHERE type = $1", PERSONAL_DATA_ACCESSED
    )
    found = {
        row["stream_id"]: (
            holdings_pb.PersonalDataAccessed.FromString(row["payload"]).access.accessor,
            row["subject_id"],
        )
        for row in rows
    }
    assert len(found) == len(rows)
    return found
