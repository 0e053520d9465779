"""Nobody is linked against their consent, over gRPC and Postgres."""

from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as common_pb
from comity.identity.v1 import identity_service_pb2 as pb

from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error
from services.identity.domain.identities import Identity as IdentityValue
from services.identity.domain.identities import pseudonym
from tests.integration.identity.conftest import PEPPER


async def refusal(call: Any) -> ServiceError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


async def written(identity: Any) -> int:
    """How many rows say who is who."""
    total = 0
    for table in ("links", "link_members", "subject_members", "events", "commands"):
        total += await identity.pool.fetchval(f"SELECT count(*) FROM {table}")
    return total


async def member(identity: Any, presented: str) -> str:
    """The pseudonym of an identity."""
    return str((await identity.resolve(presented)).member_id)


@pytest.mark.parametrize(
    ("visitor", "user", "is_made"),
    [
        ("GRANTED", "GRANTED", True),
        ("UNSPECIFIED", "GRANTED", True),
        ("GRANTED", "UNSPECIFIED", True),
        ("EXPIRED", "GRANTED", True),
        ("UNSPECIFIED", "UNSPECIFIED", False),
        ("EXPIRED", "UNSPECIFIED", False),
        ("DENIED", "GRANTED", False),
        ("GRANTED", "DENIED", False),
        ("GRANTED", "REVOKED", False),
        ("OBJECTED", "GRANTED", False),
    ],
)
async def test_one_side_allows_and_none_refuses(identity: Any, visitor: str, user: str, is_made: bool) -> None:
    """A link needs a yes, and every no is a veto; one that is refused writes nothing."""
    identity.consent.says(await member(identity, "anonymous_id:a"), visitor)
    identity.consent.says(await member(identity, "user_id:1"), user)
    if is_made:
        assert (await identity.link("r1", "anonymous_id:a", "user_id:1")).merged
        return
    error = await refusal(identity.link("r1", "anonymous_id:a", "user_id:1"))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "IDENTITY_LINKING_NOT_ALLOWED")
    assert "identity_linking" in error.message
    assert await written(identity) == 0


async def test_without_consent_nobody_is_linked(identity: Any) -> None:
    """While consent is away a link is unavailable, nothing is half applied, and later it goes through."""
    await identity.consent_server.stop()
    error = await refusal(identity.link("r1", "anonymous_id:a", "user_id:1"))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "CONSENT_UNAVAILABLE")
    assert await written(identity) == 0
    assert (await identity.resolve("user_id:1")).subject_id


async def test_a_link_that_was_made_is_answered_without_asking_again(identity: Any) -> None:
    """A retry gets its answer, also when consent was taken back or is away by now."""
    first = await identity.link("r1", "anonymous_id:a", "user_id:1")
    asked = len(identity.consent.asked)
    identity.consent.says(await member(identity, "user_id:1"), "REVOKED")
    assert await identity.link("r1", "anonymous_id:a", "user_id:1") == first
    assert (await identity.link("r2", "anonymous_id:a", "user_id:1")).link_id == first.link_id
    assert len(identity.consent.asked) == asked
    assert (await refusal(identity.link("r3", "anonymous_id:b", "user_id:1"))).kind is Kind.FAILED_PRECONDITION


async def test_a_signal_of_the_moment_counts_and_is_kept_nowhere(identity: Any) -> None:
    """Whoever logs in with an objection is not linked, whatever the ledger says; a retry brings its own signals."""
    objects = common_pb.ConsentSignals(gpc="1")
    error = await refusal(identity.link("r1", "anonymous_id:a", "user_id:1", signals=objects))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "IDENTITY_LINKING_NOT_ALLOWED")
    assert [query.signals for query in identity.consent.asked] == [objects, objects]
    assert await written(identity) == 0
    made = await identity.link("r1", "anonymous_id:a", "user_id:1")
    assert not identity.consent.asked[-1].HasField("signals")
    assert await identity.link("r1", "anonymous_id:a", "user_id:1", signals=objects) == made


async def test_a_link_of_gated_identities_that_was_taken_back_names_nobody(identity: Any) -> None:
    """A late retry finds that it was made; that they name nobody again is a typed error and no breakdown."""
    names = ("device_fingerprint:f", "third_party_id:t")
    linked = await identity.link("r1", *names)
    await identity.unlink("u1", linked.link_id)
    error = await refusal(identity.link("r1", *names))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "NAMESPACE_NOT_ALLOWED")


async def test_every_member_of_those_who_would_be_joined_is_asked_about(identity: Any) -> None:
    """Consent combines all members of a side, so all of them are in the question, and when they joined."""
    await identity.link("r1", "anonymous_id:a", "user_id:1")
    await identity.link("r2", "anonymous_id:b", "email_sha256:e")
    identity.consent.asked.clear()
    await identity.link("r3", "user_id:1", "email_sha256:e")
    sides = {tuple(one.subject_id for one in query.members) for query in identity.consent.asked}
    assert sides == {
        (await member(identity, "anonymous_id:a"), await member(identity, "user_id:1")),
        (await member(identity, "anonymous_id:b"), await member(identity, "email_sha256:e")),
    }
    assert all(
        [one.HasField("merged_at") for one in query.members] == [False, True] for query in identity.consent.asked
    )


async def test_the_owner_of_a_shared_device_is_not_asked(identity: Any) -> None:
    """A login on somebody's device joins nobody to them: what they said neither hinders it nor shows through it."""
    await identity.link("r1", "user_id:1", "device_id:d")
    identity.consent.says(await member(identity, "user_id:1"), "REVOKED")
    identity.consent.asked.clear()
    assert not (await identity.link("r2", "user_id:2", "device_id:d")).merged
    (query,) = identity.consent.asked
    assert [one.subject_id for one in query.members] == [await member(identity, "user_id:2")]


async def test_whoever_joins_while_consent_is_asked_is_asked_too(identity: Any) -> None:
    """The people under the link's locks are those who were asked, or it asks again: nobody slips in unasked."""
    refusing = await member(identity, "anonymous_id:late")
    raced: list[pb.LinkResponse] = []

    async def race() -> None:
        identity.consent.on_ask = None
        raced.append(await identity.link("r1", "anonymous_id:late", "user_id:1"))
        identity.consent.says(refusing, "DENIED")

    identity.consent.on_ask = race
    error = await refusal(identity.link("r2", "user_id:1", "email_sha256:e"))
    assert error.reason == "IDENTITY_LINKING_NOT_ALLOWED"
    assert raced[0].merged
    assert len((await identity.resolve("email_sha256:e")).members) == 1


async def test_a_fingerprint_is_linked_only_where_its_purpose_is_allowed(identity: Any) -> None:
    """identity_linking alone is not enough; with the purpose it recognizes the person, and says what that needs."""
    names = ("anonymous_id:a", "device_fingerprint:f")
    identity.consent.says(await member(identity, "anonymous_id:a"), "UNSPECIFIED", "device_recognition")
    fingerprint = pseudonym(PEPPER, IdentityValue("device_fingerprint", "f")).member_id
    identity.consent.says(fingerprint, "UNSPECIFIED", "device_recognition")
    error = await refusal(identity.link("r1", *names))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "NAMESPACE_NOT_ALLOWED")
    assert "device_recognition" in error.message
    assert await written(identity) == 0
    identity.consent.says(await member(identity, "anonymous_id:a"), "GRANTED", "device_recognition")
    linked = await identity.link("r1", *names)
    found = await identity.resolve("device_fingerprint:f")
    assert found.subject_id == linked.subject.subject_id
    assert list(found.required_purposes) == ["device_recognition"]
    assert list((await identity.resolve("anonymous_id:a")).required_purposes) == []


async def test_a_fingerprint_that_nobody_is_linked_to_is_nobody(identity: Any) -> None:
    """Resolve answers it with a typed error, and nobody is described or made up by it."""
    found = await identity.resolve("device_fingerprint:f")
    assert (found.error_reason, found.subject_id, found.member_id) == ("NAMESPACE_NOT_ALLOWED", "", "")
    assert "device_recognition" in found.error
    beside = await identity.resolve("device_fingerprint:f", "anonymous_id:a")
    assert beside == await identity.resolve("anonymous_id:a")


async def test_nobody_is_described_by_what_recognizes_them_without_their_help(identity: Any) -> None:
    """Whoever presents a fingerprint learns nothing of the person it is linked to."""
    await identity.link("r1", "anonymous_id:a", "third_party_id:t")
    for value in ("t", "unknown"):
        ref = common_pb.SubjectRef(identities=[common_pb.Identity(namespace="third_party_id", value=value)])
        request = pb.DescribeSubjectRequest(subject=ref)
        error = await refusal(identity.service.DescribeSubject(request, timeout=10))
        assert (error.kind, error.problems[0].field) == (Kind.INVALID, "subject")
