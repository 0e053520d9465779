"""Erased members leave nothing behind that says who they were, and whoever comes back is somebody new."""

import asyncio
from itertools import permutations
from typing import Any

import grpc
import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as common_pb
from comity.identity.v1 import identity_service_pb2 as pb

from services.chassis.dead_letters import Letter, put_aside
from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error
from services.identity.domain.identities import Identity as IdentityValue
from services.identity.domain.identities import Pseudonym, next_generation, pseudonym
from services.identity.store import links
from tests.integration.identity.conftest import PEPPER

STEPS = ("SUPPRESS", "WITHDRAW", "DESTROY_KEYS", "DELETE")


async def refusal(call: Any) -> ServiceError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


def first(presented: str) -> Pseudonym:
    """The first generation of an identity."""
    return pseudonym(PEPPER, IdentityValue(*presented.split(":")))


async def erase(identity: Any, member_ids: list[str], *steps: str, erasure_id: str = "e1") -> dict[str, int]:
    """Take the steps; the counts of the last."""
    for step in steps:
        request = holdings_pb.EraseHoldingsRequest(
            erasure_id=erasure_id,
            member_ids=member_ids,
            step=holdings_pb.ErasureStep.Value(f"ERASURE_STEP_{step}"),
        )
        response = await identity.holdings.EraseHoldings(request, timeout=20)
    return {one.name: one.count for one in response.counts}


async def key(identity: Any, member_id: str, *, mint: bool) -> pb.DataKey:
    """The member's data key."""
    response: pb.GetDataKeysResponse = await identity.keys.GetDataKeys(
        pb.GetDataKeysRequest(member_ids=[member_id], mint=mint), timeout=10
    )
    return response.keys[0]


async def places(identity: Any, needle: bytes) -> set[str]:
    """The tables that hold these bytes, as text or in a bytea."""
    tables = await identity.pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    found = set()
    for (table,) in tables:
        texts = [row[0] for row in await identity.pool.fetch(f"SELECT t::text FROM {table} t")]
        if any(needle.decode("latin1") in text or needle.hex() in text for text in texts):
            found.add(table)
    return found


def who(subject: pb.ResolvedSubject) -> tuple[object, ...]:
    """What says who somebody is, apart from how they were asked for."""
    return (subject.subject_id, subject.holdout_bucket, tuple(one.SerializeToString() for one in subject.members))


async def test_whoever_comes_back_is_somebody_new(identity: Any) -> None:
    """From SUPPRESS on the same identities name another member, alone; the old pseudonym is refused with the remedy."""
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    members = [one.subject_id for one in linked.subject.members]
    await erase(identity, members, "SUPPRESS")
    for presented in ("anonymous_id:a", "user_id:1"):
        again = await identity.resolve(presented)
        assert again.member_id == next_generation(PEPPER, first(presented), 1).member_id
        assert [one.subject_id for one in again.members] == [again.subject_id] == [again.member_id]
    request = pb.ResolveRequest(queries=[pb.ResolveQuery(subject_id=one) for one in members])
    for found in (await identity.service.Resolve(request, timeout=10)).subjects:
        assert (found.error_reason, found.subject_id) == ("SUBJECT_ERASED", "")
        assert "erased" in found.error
    described = pb.DescribeSubjectRequest(subject=common_pb.SubjectRef(subject_id=members[0]))
    error = await refusal(identity.service.DescribeSubject(described, timeout=10))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "SUBJECT_ERASED")
    # Not even in one of many at once, and erased twice is the third.
    second = (await identity.resolve("user_id:1")).member_id
    await erase(identity, [second], *STEPS, erasure_id="e2")
    assert (await identity.resolve("user_id:1")).member_id == next_generation(PEPPER, first("user_id:1"), 2).member_id


async def test_more_returns_than_are_looked_for_at_once(identity: Any) -> None:
    """Whoever was erased twelve times is found in their thirteenth generation, beside people who never were."""
    gone = [first("user_id:1").member_id]
    gone += [next_generation(PEPPER, first("user_id:1"), number).member_id for number in range(1, 12)]
    await erase(identity, gone, "SUPPRESS")
    queries = [
        pb.ResolveQuery(identities=[common_pb.Identity(namespace="user_id", value=value)]) for value in ("1", "2", "1")
    ]
    found = (await identity.service.Resolve(pb.ResolveRequest(queries=queries), timeout=10)).subjects
    thirteenth = next_generation(PEPPER, first("user_id:1"), 12).member_id
    assert [one.member_id for one in found] == [thirteenth, first("user_id:2").member_id, thirteenth]


async def test_keys_of_the_suppressed_are_read_until_they_are_destroyed(identity: Any) -> None:
    """WITHDRAW still has to open what is taken back; nothing is minted any more, and a tombstone stays one."""
    held, bare = first("user_id:1").member_id, first("user_id:2").member_id
    before = await key(identity, held, mint=True)
    await erase(identity, [held, bare], "SUPPRESS")
    assert await key(identity, held, mint=False) == before
    for mint in (False, True):
        assert (await key(identity, bare, mint=mint)).destroyed
    wrapped = await identity.pool.fetchval("SELECT wrapped FROM data_keys")
    file = await identity.pool.fetchval("SELECT pg_relation_filenode('data_keys')")
    counts = await erase(identity, [held, bare], "WITHDRAW", "DESTROY_KEYS")
    assert counts == {"data_keys": 1}
    assert await erase(identity, [held, bare], "DESTROY_KEYS") == counts
    for mint in (False, True):
        assert await key(identity, held, mint=mint) == pb.DataKey(member_id=held, destroyed=True)
    assert await places(identity, wrapped) == set()
    # The file was written anew: no dead row keeps the bytes.
    assert await identity.pool.fetchval("SELECT pg_relation_filenode('data_keys')") != file
    assert await identity.events(f"erased-key-{held}") == ["DataKeyDestroyed"]


async def test_whoever_gave_way_is_erased_without_a_trace(identity: Any) -> None:
    """Also out of the link that made them leave; the person whom they left stays as they were."""
    for n in range(32):
        linked = await identity.link(f"r{n}", "user_id:1", f"anonymous_id:a{n}")
    (left,) = linked.gave_way_member_ids
    before = await identity.resolve("user_id:1")
    await erase(identity, [left], *STEPS)
    assert await places(identity, left.encode()) <= {"erased_members", "data_keys", "events"}
    named = "SELECT stream_id FROM events WHERE position(convert_to($1, 'UTF8') IN payload) > 0"
    rows = await identity.pool.fetch(named, left)
    assert {row["stream_id"].partition("-")[0] for row in rows} <= {"erased", "erasure"}
    assert await identity.resolve("user_id:1") == before
    await erase(identity, [one.subject_id for one in before.members], *STEPS)
    assert await identity.pool.fetchval("SELECT count(*) FROM link_members") == 0


async def test_nothing_says_who_the_erased_were(identity: Any) -> None:
    """No table holds a keyed hash of theirs, of links that were taken back neither; pseudonyms only where declared."""
    names = ("anonymous_id:a", "user_id:1")
    linked = await identity.link("r1", *names)
    taken_back = await identity.link("r2", "user_id:1", "device_id:d")
    await identity.unlink("r3", taken_back.link_id)
    members = [one.subject_id for one in linked.subject.members]
    await key(identity, members[0], mint=True)
    assert await places(identity, first("user_id:1").identity_hash) == {"events"}
    counts = await erase(identity, members, *STEPS)
    assert await erase(identity, members, *STEPS) == counts
    assert counts["links"] == 1
    assert counts["subject_members"] == 2
    for name in names:
        assert await places(identity, first(name).identity_hash) == set()
    for member_id in members:
        assert await places(identity, member_id.encode()) <= {"erased_members", "data_keys", "events"}
    rows = await identity.pool.fetch("SELECT stream_id, type FROM events ORDER BY stream_id")
    assert [(row["stream_id"], row["type"].rpartition(".")[2]) for row in rows] == [
        (f"erased-key-{members[0]}", "DataKeyDestroyed"),
        ("erasure-e1", "SubjectErased"),
    ]
    for table in ("links", "link_members", "link_streams", "subject_members", "commands"):
        assert await identity.pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_who_shared_a_device_with_the_erased_is_who_they_were(identity: Any) -> None:
    """The other person's links stand without the device, are stated again, and can be taken back."""
    gone = await identity.link("r1", "user_id:1", "device_id:d")
    kept = await identity.link("r2", "user_id:2", "anonymous_id:b", "device_id:d")
    before = await identity.resolve("user_id:2")
    await erase(identity, [one.subject_id for one in gone.subject.members], *STEPS)
    assert await identity.resolve("user_id:2") == before
    assert await places(identity, first("device_id:d").identity_hash) == set()
    assert await identity.events(f"link-{kept.link_id}") == ["IdentityLinked"]
    # The device is a new one, and joins whoever is linked to it next.
    again = await identity.link("r3", "user_id:2", "anonymous_id:b", "device_id:d")
    assert again.link_id != kept.link_id
    assert len(again.subject.members) == 3
    assert who(await identity.resolve("device_id:d")) == who(again.subject)
    await identity.unlink("r4", again.link_id)
    assert await identity.resolve("user_id:2") == before
    await identity.unlink("r5", kept.link_id)
    assert [len((await identity.resolve(name)).members) for name in ("user_id:2", "anonymous_id:b")] == [1, 1]


@pytest.mark.parametrize("order", list(permutations(("e1", "e2", "e3"))))
async def test_people_who_shared_devices_are_erased_at_once(identity: Any, order: tuple[str, ...]) -> None:
    """Whoever is deleted first, while all are suppressed: no erasure waits for another, and nothing of them is left."""
    linked = {
        "e1": await identity.link("r1", "user_id:1", "device_id:d"),
        "e3": await identity.link("r3", "user_id:3", "device_id:f"),
        "e2": await identity.link("r2", "user_id:2", "anonymous_id:b", "device_id:d", "device_id:f"),
    }
    kept = await identity.link("r4", "user_id:4", "device_id:d")
    before = await identity.resolve("user_id:4")
    for step in STEPS:
        for erasure_id in order:
            members = [each.subject_id for each in linked[erasure_id].subject.members]
            await erase(identity, members, step, erasure_id=erasure_id)
    for presented in ("user_id:1", "user_id:2", "user_id:3", "anonymous_id:b", "device_id:d", "device_id:f"):
        assert await places(identity, first(presented).identity_hash) == set()
    assert await identity.resolve("user_id:4") == before
    assert await identity.events(f"link-{kept.link_id}") == ["IdentityLinked"]
    for table in ("links", "link_members", "link_streams", "subject_members"):
        assert await identity.pool.fetchval(f"SELECT count(*) FROM {table}") == 1


async def test_an_erasure_does_not_hang_on_how_many_hang_together(
    identity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where links are too many to be folded again nobody is unlinked, and whoever wants to be gone is gone."""
    gone = await identity.link("r1", "user_id:1", "device_id:d")
    kept = await identity.link("r2", "user_id:2", "device_id:d", "anonymous_id:b")
    before = await identity.resolve("user_id:2")
    monkeypatch.setattr(links, "LINKS_FOLDED_MAX", 1)
    error = await refusal(identity.unlink("u1", kept.link_id))
    assert (error.kind, error.reason) == (Kind.EXHAUSTED, "LINKS_TANGLED")
    await erase(identity, [one.subject_id for one in gone.subject.members], *STEPS)
    assert await places(identity, first("device_id:d").identity_hash) == set()
    assert await identity.resolve("user_id:2") == before


async def test_a_link_of_the_erased_is_refused_or_begins_anew(identity: Any) -> None:
    """A retry of a link that named them is SUBJECT_ERASED while it is there; a new one links their next generation."""
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    members = [one.subject_id for one in linked.subject.members]
    await erase(identity, members, "SUPPRESS")
    error = await refusal(identity.link("r1", "anonymous_id:a", "user_id:1"))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "SUBJECT_ERASED")
    fresh = await identity.link("r2", "anonymous_id:a", "user_id:1")
    assert fresh.link_id != linked.link_id
    assert not {one.subject_id for one in fresh.subject.members} & set(members)
    await erase(identity, members, *STEPS[1:])
    assert who(await identity.resolve("user_id:1")) == who(fresh.subject)


async def test_links_that_race_with_an_erasure_name_nobody_who_is_erased(identity: Any) -> None:
    """Whatever the order was: after DELETE no link and no subject holds an erased member."""
    first_link = await identity.link("r0", "user_id:1", "anonymous_id:0")
    members = [one.subject_id for one in first_link.subject.members]
    racing = [identity.link(f"r{n}", "user_id:1", f"anonymous_id:{n}") for n in range(1, 7)]
    done = await asyncio.gather(*racing, erase(identity, members, *STEPS), return_exceptions=True)
    assert all(
        not isinstance(one, Exception) or from_call_error(one).reason in ("SUBJECT_ERASED", "PEOPLE_MOVED")  # type: ignore[arg-type]
        for one in done
    )
    await erase(identity, members, "DELETE")
    for table in ("link_members", "subject_members", "link_streams"):
        rows = await identity.pool.fetch(f"SELECT DISTINCT member_id FROM {table}")
        assert not {row["member_id"] for row in rows} & set(members)
    subjects = {who(await identity.resolve(f"anonymous_id:{n}")) for n in range(1, 7)}
    assert not {name for name, *_ in subjects} & set(members)


async def test_key_that_cannot_be_opened_is_told_and_its_letter_erased(identity: Any) -> None:
    """What was put aside about a person is theirs to see, and goes with them."""
    member_id = (await identity.resolve("user_id:1")).member_id
    await put_aside(identity.pool, [Letter("identity", "data keys", "KEY_UNREADABLE", subject_id=member_id)])
    request = holdings_pb.ExportHoldingsRequest(member_ids=[member_id])
    records = [one async for page in identity.holdings.ExportHoldings(request, timeout=10) for one in page.records]
    assert [one.name for one in records] == ["dead_letters"]
    described = await identity.holdings.DescribeHoldings(holdings_pb.DescribeHoldingsRequest(), timeout=10)
    assert "dead_letters" in {one.name for one in described.holdings}
    assert (await erase(identity, [member_id], *STEPS))["dead_letters"] == 1


async def test_holdings_are_described_and_given_out_without_hashes(identity: Any) -> None:
    """Namespaces and times of links; every table that holds something about people is in the description."""
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    members = [one.subject_id for one in linked.subject.members]
    await key(identity, members[0], mint=True)
    described = await identity.holdings.DescribeHoldings(holdings_pb.DescribeHoldingsRequest(), timeout=10)
    names = {one.name for one in described.holdings}
    assert names >= {"links", "subject_members", "data_keys", "events", "commands", "erased_members"}
    request = holdings_pb.ExportHoldingsRequest(member_ids=members)
    records = [one async for page in identity.holdings.ExportHoldings(request, timeout=10) for one in page.records]
    (link,) = [one for one in records if one.name == "links"]
    assert list(link.content["namespaces"]) == ["anonymous_id", "user_id"]
    assert {one.name for one in records} == {"links", "subject_members", "data_keys", "events"}
    text = b"".join(one.SerializeToString() for one in records)
    assert first("user_id:1").identity_hash.hex().encode() not in text
    assert first("user_id:1").identity_hash not in text
