"""Who is who, over gRPC and Postgres: what a caller sees and what is recorded."""

import asyncio
from typing import Any

import grpc
import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as common_pb
from comity.identity.v1 import identity_events_pb2 as events_pb
from comity.identity.v1 import identity_service_pb2 as pb

from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error


async def refusal(call: Any) -> ServiceError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


def who(subject: pb.ResolvedSubject) -> tuple[object, ...]:
    """What says who somebody is, apart from how they were asked for."""
    return (subject.subject_id, subject.holdout_bucket, tuple(one.SerializeToString() for one in subject.members))


async def test_resolve_writes_nothing_and_answers_each_query_for_itself(identity: Any) -> None:
    """In one call unknown people are people, and a contradiction costs the others nothing."""
    queries = [
        pb.ResolveQuery(identities=[common_pb.Identity(namespace="user_id", value="1")]),
        pb.ResolveQuery(identities=[common_pb.Identity(namespace="fax", value="1")]),
        pb.ResolveQuery(
            identities=[
                common_pb.Identity(namespace="user_id", value="1"),
                common_pb.Identity(namespace="user_id", value="2"),
            ]
        ),
        pb.ResolveQuery(subject_id="a" * 26),
        pb.ResolveQuery(),
    ]
    found = (await identity.service.Resolve(pb.ResolveRequest(queries=queries), timeout=10)).subjects
    assert found[0].subject_id == found[0].member_id == found[0].members[0].subject_id
    assert found[0].level == common_pb.SUBJECT_LEVEL_KNOWN
    assert "namespace is unknown" in found[1].error
    assert not found[1].subject_id
    assert "two different values of user_id" in found[2].error
    assert found[3].subject_id == "a" * 26
    assert found[3].level == common_pb.SUBJECT_LEVEL_UNSPECIFIED
    assert "give identities or subject_id" in found[4].error
    for table in ("events", "links", "subject_members", "data_keys", "commands"):
        assert await identity.pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_batch_of_resolves_is_one_query(identity: Any) -> None:
    """However many are asked for, Postgres is asked once."""
    await identity.link("r1", "user_id:1", "anonymous_id:a")
    asked: list[str] = []
    async with identity.pool.acquire() as connection:
        pass
    connections = [holder._con for holder in identity.pool._holders if holder._con is not None]
    for connection in connections:
        connection.add_query_logger(lambda record: asked.append(record.query))
    queries = [
        pb.ResolveQuery(identities=[common_pb.Identity(namespace="anonymous_id", value=value)]) for value in "abcdefgh"
    ]
    found = (await identity.service.Resolve(pb.ResolveRequest(queries=queries), timeout=10)).subjects
    assert len(found[0].members) == 2
    assert [len(one.members) for one in found[1:]] == [1] * 7
    assert len(asked) == 1


async def test_resolve_needs_a_deadline(identity: Any) -> None:
    """The hot path is never asked without one."""
    request = pb.ResolveRequest(queries=[pb.ResolveQuery(subject_id="a" * 26)])
    assert (await refusal(identity.service.Resolve(request))).kind is Kind.INVALID


async def test_login_merges_and_unlink_restores_each_side(identity: Any) -> None:
    """After Unlink everybody is exactly who they were, bucket and members included."""
    visitor, user = await identity.resolve("anonymous_id:a"), await identity.resolve("user_id:1")
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    assert linked.merged
    assert linked.subject.subject_id == visitor.subject_id
    assert linked.subject.holdout_bucket == visitor.holdout_bucket
    assert linked.subject.member_id == user.member_id
    assert [one.subject_id for one in linked.subject.members] == [visitor.member_id, user.member_id]
    assert not linked.subject.members[0].HasField("merged_at")
    assert linked.subject.members[1].HasField("merged_at")
    assert await identity.resolve("anonymous_id:a", "user_id:1") == linked.subject
    apart = await identity.unlink("r2", linked.link_id)
    assert {one.subject_id for one in apart.subjects} == {visitor.subject_id, user.subject_id}
    assert await identity.resolve("anonymous_id:a") == visitor
    assert await identity.resolve("user_id:1") == user
    assert await identity.pool.fetchval("SELECT count(*) FROM subject_members") == 0
    stream = f"link-{linked.link_id}"
    assert await identity.events(stream) == ["IdentityLinked", "SubjectsMerged", "IdentityUnlinked", "SubjectsUnmerged"]


async def test_the_merge_is_recorded_as_it_is_answered(identity: Any) -> None:
    """The fact carries the members and the time that readers combine by, and keyed hashes only."""
    linked = await identity.link("r1", "anonymous_id:canary-a", "user_id:canary-1")
    rows = await identity.pool.fetch("SELECT subject_id, payload FROM events ORDER BY version")
    stated = events_pb.IdentityLinked.FromString(rows[0]["payload"])
    assert [len(one.identity_hash) for one in stated.identities] == [32, 32]
    merged = events_pb.SubjectsMerged.FromString(rows[1]["payload"])
    assert merged.subject_id == rows[1]["subject_id"] == linked.subject.subject_id
    assert list(merged.member_ids) == [linked.subject.members[1].subject_id]
    assert merged.merged_at == linked.subject.members[1].merged_at
    assert not any(b"canary" in row["payload"] for row in rows)


async def test_an_unlinked_login_is_not_stitched(identity: Any) -> None:
    """Resolve follows the strongest identity and links nothing."""
    await identity.link("r1", "anonymous_id:a", "user_id:1")
    stranger = await identity.resolve("anonymous_id:a", "user_id:2")
    assert stranger.subject_id == stranger.member_id
    assert who(stranger) == who(await identity.resolve("user_id:2"))


async def test_a_shared_device_never_makes_two_people_one(identity: Any) -> None:
    """The second user's login is answered, stands, and moves nothing."""
    first = await identity.link("r1", "user_id:1", "device_id:d")
    second = await identity.link("r2", "user_id:2", "device_id:d")
    assert first.merged
    assert not second.merged
    assert who(await identity.resolve("device_id:d")) == who(first.subject)
    assert who(await identity.resolve("user_id:2")) == who(second.subject)
    assert len(second.subject.members) == 1
    # It takes effect when the first is taken back.
    await identity.unlink("r3", first.link_id)
    assert who(await identity.resolve("device_id:d")) == who(await identity.resolve("user_id:2"))
    assert len((await identity.resolve("user_id:1")).members) == 1


async def test_linking_again_changes_nothing(identity: Any) -> None:
    """A retry gets the first answer; the same statement under another id finds the link that stands."""
    first = await identity.link("r1", "anonymous_id:a", "user_id:1")
    assert await identity.link("r1", "user_id:1", "anonymous_id:a") == first
    again = await identity.link("r2", "user_id:1", "anonymous_id:a")
    assert again.link_id == first.link_id
    assert not again.merged
    assert await identity.pool.fetchval("SELECT count(*) FROM events") == 2


async def test_a_late_retry_of_unlink_takes_back_nothing_new(identity: Any) -> None:
    """The link made after it stands."""
    first = await identity.link("r1", "anonymous_id:a", "user_id:1")
    apart = await identity.unlink("r2", first.link_id)
    second = await identity.link("r3", "anonymous_id:a", "user_id:1")
    assert second.link_id != first.link_id
    assert second.merged
    retried = await identity.unlink("r2", first.link_id)
    assert len(apart.subjects) == 2
    assert [who(one) for one in retried.subjects] == [who(await identity.resolve("user_id:1"))]


async def test_a_request_id_is_its_persons_own(identity: Any) -> None:
    """Two people may use the same one, for Link and for Unlink, and each retry is answered with its own."""
    made = [await identity.link("r1", f"user_id:u{n}", f"anonymous_id:a{n}") for n in range(2)]
    assert made[0].link_id != made[1].link_id
    assert [await identity.link("r1", f"user_id:u{n}", f"anonymous_id:a{n}") for n in range(2)] == made
    for _ in range(2):
        for n, link in enumerate(made):
            apart = await identity.unlink("r2", link.link_id)
            assert who(await identity.resolve(f"user_id:u{n}")) in {who(one) for one in apart.subjects}
    assert await identity.pool.fetchval("SELECT count(*) FROM links") == 0


async def test_a_request_id_names_one_command_of_a_person(identity: Any) -> None:
    """The same id with other identities, or for Unlink, is refused."""
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    other = await refusal(identity.link("r1", "anonymous_id:b", "user_id:1"))
    assert (other.kind, other.reason) == (Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert (await refusal(identity.unlink("r1", linked.link_id))).reason == "REQUEST_ID_REUSED"


async def test_bad_commands_are_refused_with_the_remedy(identity: Any) -> None:
    """Two user ids, an unknown namespace and an unknown link are typed errors that change nothing."""
    contradiction = await refusal(identity.link("r1", "user_id:canary1", "user_id:canary2"))
    assert contradiction.kind is Kind.INVALID
    assert contradiction.problems[0].field == "identities"
    assert "canary" not in contradiction.message
    assert "use one of" in (await refusal(identity.link("r1", "fax:1", "user_id:1"))).message
    unknown = await refusal(identity.unlink("r1", "never-made"))
    assert (unknown.kind, unknown.reason) == (Kind.NOT_FOUND, "LINK_UNKNOWN")
    assert await identity.pool.fetchval("SELECT count(*) FROM events") == 0


async def crowded(identity: Any) -> list[str]:
    """A person of 32 members: the user id and the anonymous ids in the order in which they were linked; those ids."""
    names = [f"anonymous_id:a{n}" for n in range(31)]
    for n, name in enumerate(names):
        assert not (await identity.link(f"r{n}", "user_id:1", name)).gave_way_member_ids
    return names


async def members(identity: Any, name: str) -> set[str]:
    return {one.subject_id for one in (await identity.resolve(name)).members}


async def test_a_browser_that_forgets_its_cookie_is_linked_for_ever(identity: Any) -> None:
    """The anonymous id linked longest ago gives way, never the first, and is a person of its own; it is told."""
    names = await crowded(identity)
    first = (await identity.resolve("user_id:1")).subject_id
    alone = [(await identity.resolve(name)).member_id for name in names]
    assert first == alone[0]
    for week in range(31, 71):
        linked = await identity.link(f"r{week}", "user_id:1", f"anonymous_id:a{week}")
        assert len(linked.gave_way_member_ids) == 1
        assert linked.merged
        assert await identity.link(f"r{week}", "user_id:1", f"anonymous_id:a{week}") == linked
    person = await identity.resolve("user_id:1")
    assert (person.subject_id, len(person.members)) == (first, 32)
    for name, member_id in list(zip(names, alone, strict=True))[1:]:
        left = await identity.resolve(name)
        assert (left.subject_id, len(left.members)) == (member_id, 1)
    facts = await identity.events(f"link-{linked.link_id}")
    assert facts == ["IdentityLinked", "SubjectsUnmerged", "SubjectsMerged"]


async def test_whoever_gave_way_can_be_linked_again(identity: Any) -> None:
    """The same statement is a new link; the next one gives way, and taking that link back makes it as it was."""
    names = await crowded(identity)
    await identity.link("r31", "user_id:1", "anonymous_id:b")
    assert await members(identity, names[1]) != await members(identity, "user_id:1")
    before = await members(identity, "user_id:1")
    again = await identity.link("r32", "user_id:1", names[1])
    assert again.gave_way_member_ids == [(await identity.resolve(names[2])).member_id]
    assert await members(identity, names[1]) == await members(identity, "user_id:1")
    await identity.unlink("r33", again.link_id)
    assert await members(identity, "user_id:1") == before
    returned = common_pb.SubjectRef(subject_id=(await identity.resolve(names[1])).member_id)
    described = pb.DescribeSubjectRequest(subject=returned)
    links = (await identity.service.DescribeSubject(described, timeout=10)).links
    assert [list(one.namespaces) for one in links] == [["anonymous_id", "user_id"]]


@pytest.mark.parametrize("state", ["DENIED", "REVOKED", "OBJECTED"])
async def test_a_refusal_never_gives_way(identity: Any, state: str) -> None:
    """What a member refused goes on counting for the person; an answer that has run out is no refusal."""
    names = await crowded(identity)
    ids = [(await identity.resolve(name)).member_id for name in names]
    identity.consent.says(ids[1], state, "measurement")
    identity.consent.says(ids[2], "EXPIRED", "measurement")
    linked = await identity.link("r31", "user_id:1", "anonymous_id:b")
    assert linked.gave_way_member_ids == [ids[2]]
    assert ids[1] in await members(identity, "user_id:1")


async def test_a_person_of_whom_nobody_may_leave_is_full(identity: Any) -> None:
    """The link is refused as a whole, and says what to do; while consent is away nobody leaves."""
    names = await crowded(identity)
    for name in names[1:]:
        identity.consent.says((await identity.resolve(name)).member_id, "DENIED", "measurement")
    full = await refusal(identity.link("r31", "user_id:1", "anonymous_id:b"))
    assert (full.kind, full.reason) == (Kind.FAILED_PRECONDITION, "SUBJECT_FULL")
    assert len(await members(identity, "user_id:1")) == 32
    assert len(await members(identity, "anonymous_id:b")) == 1


async def test_two_persons_who_become_one_make_room(identity: Any) -> None:
    """As many leave as are too many; no strong identity does, and none that the link names."""
    for n in range(20):
        await identity.link(f"u{n}", "user_id:1", f"anonymous_id:a{n}")
        await identity.link(f"e{n}", "email_sha256:e", f"anonymous_id:b{n}")
    linked = await identity.link("r1", "user_id:1", "email_sha256:e")
    person = await members(identity, "user_id:1")
    assert (len(person), len(linked.gave_way_member_ids)) == (32, 10)
    assert {(await identity.resolve(name)).member_id for name in ("user_id:1", "email_sha256:e")} <= person
    assert person.isdisjoint(linked.gave_way_member_ids)


async def test_racing_links_of_one_person_all_take_effect(identity: Any) -> None:
    """Twelve logins at once, over shared and new identities: the people are those of some order of the links."""
    names = [f"anonymous_id:a{n}" for n in range(12)]
    await asyncio.gather(*(identity.link(f"r{n}", "user_id:1", name) for n, name in enumerate(names)))
    merged = await identity.resolve("user_id:1")
    assert len(merged.members) == 13
    assert {who(await identity.resolve(name)) for name in names} == {who(merged)}
    assert sum(not one.HasField("merged_at") for one in merged.members) == 1


async def test_racing_merges_make_one_person(identity: Any) -> None:
    """Four subjects, merged pairwise in a ring at the same time, end as one: nobody reads a subject that moves."""
    for n in range(4):
        await identity.link(f"s{n}", f"email_sha256:e{n}", f"anonymous_id:a{n}")
    ring = [(f"email_sha256:e{n}", f"email_sha256:e{(n + 1) % 4}") for n in range(4)]
    await asyncio.gather(*(identity.link(f"m{n}", *pair) for n, pair in enumerate(ring)))
    subjects = {who(await identity.resolve(f"anonymous_id:a{n}")) for n in range(4)}
    assert len(subjects) == 1
    assert len((await identity.resolve("anonymous_id:a0")).members) == 8


async def test_the_same_command_at_once_is_applied_once(identity: Any) -> None:
    """Retries that race with the first try get its answer."""
    answers = await asyncio.gather(*(identity.link("r1", "user_id:1", "anonymous_id:a") for _ in range(6)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert await identity.pool.fetchval("SELECT count(*) FROM links") == 1


async def test_links_and_unlinks_at_once_leave_the_fold_of_what_stands(identity: Any) -> None:
    """Whatever the order was, the table says what the standing links say."""
    made = [await identity.link(f"a{n}", f"user_id:u{n}", "device_id:d") for n in range(4)]
    await asyncio.gather(
        *(identity.unlink(f"u{n}", link.link_id) for n, link in enumerate(made[:3])),
        *(identity.link(f"b{n}", f"user_id:u{n}", f"anonymous_id:a{n}") for n in range(4)),
    )
    assert who(await identity.resolve("device_id:d")) == who(await identity.resolve("user_id:u3"))
    assert [len((await identity.resolve(f"user_id:u{n}")).members) for n in range(4)] == [2, 2, 2, 3]


async def test_a_subject_is_described_by_namespaces_only(identity: Any) -> None:
    """Its links say what kinds of identifiers it was linked by, and when; the values were never kept."""
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    for ref in (
        common_pb.SubjectRef(subject_id=linked.subject.members[1].subject_id),
        common_pb.SubjectRef(identities=[common_pb.Identity(namespace="anonymous_id", value="a")]),
    ):
        described = await identity.service.DescribeSubject(pb.DescribeSubjectRequest(subject=ref), timeout=10)
        assert who(described.subject) == who(linked.subject)
        assert [(one.link_id, list(one.namespaces)) for one in described.links] == [
            (linked.link_id, ["anonymous_id", "user_id"])
        ]


async def test_who_looks_up_a_subject_is_a_fact(identity: Any) -> None:
    """Who read, why and by which call; a caller that does not say is recorded as such."""
    linked = await identity.link("r1", "anonymous_id:a", "user_id:1")
    ref = common_pb.SubjectRef(identities=[common_pb.Identity(namespace="user_id", value="1")])
    access = common_pb.Access(accessor="ann@site", reason="ticket 7")
    for told in (access, common_pb.Access()):
        await identity.service.DescribeSubject(pb.DescribeSubjectRequest(subject=ref, access=told), timeout=10)
    query = pb.ResolveQuery(identities=ref.identities)
    for request in (pb.ResolveRequest(queries=[query, query], access=access), pb.ResolveRequest(queries=[query])):
        await identity.service.Resolve(request, timeout=10)
    stream = f"access-{linked.subject.subject_id}"
    rows = await identity.pool.fetch("SELECT payload, subject_id FROM events WHERE stream_id = $1", stream)
    facts = [holdings_pb.PersonalDataAccessed.FromString(row["payload"]) for row in rows]
    assert [(one.access.accessor, one.access.reason, one.method.rpartition("/")[2]) for one in facts] == [
        ("ann@site", "ticket 7", "DescribeSubject"),
        ("unstated", "unstated", "DescribeSubject"),
        # Once, however often one call asks for the person; never when a service asks.
        ("ann@site", "ticket 7", "Resolve"),
    ]
    assert {row["subject_id"] for row in rows} == {linked.subject.subject_id}
