"""Values that name nobody, over gRPC: every call of identity that takes identities, and the list that a site adds."""

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as common_pb
from comity.identity.v1 import identity_service_pb2 as pb
from prometheus_client import REGISTRY

from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error
from services.identity.domain.identities import NAMESPACES
from services.identity.store.placeholders import PostgresPlaceholders
from tests.integration.identity.conftest import Identity, identities

ACCESS = common_pb.Access(accessor="officer")


async def refusal(call: Awaitable[Any]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


def counted(namespace: str) -> float:
    return REGISTRY.get_sample_value("comity_identity_placeholders_total", {"namespace": namespace}) or 0.0


@pytest.mark.parametrize("namespace", NAMESPACES)
async def test_two_visitors_with_a_placeholder_are_two(identity: Identity, namespace: str) -> None:
    """Linked to the same placeholder, nobody becomes somebody else; the placeholder is counted and names nobody."""
    before = counted(namespace)
    empty = common_pb.Identity(namespace=namespace, value="undefined")
    for n in (1, 2):
        named = [*identities(f"device_id:{n}", f"session_id:{n}"), empty]
        await identity.service.Link(pb.LinkRequest(request_id=f"r{n}", identities=named), timeout=10)
    first, second = [await identity.resolve(f"device_id:{n}") for n in (1, 2)]
    assert first.subject_id != second.subject_id
    assert len(first.members) == len(second.members) == 2
    query = pb.ResolveQuery(identities=[empty])
    (nobody,) = (await identity.service.Resolve(pb.ResolveRequest(queries=[query]), timeout=10)).subjects
    assert (nobody.error_reason, nobody.subject_id, nobody.member_id) == ("NOBODY_NAMED", "", "")
    assert counted(namespace) == before + 3


async def test_whoever_is_named_by_a_placeholder_alone_is_refused_where_nobody_will_not_do(identity: Identity) -> None:
    """A link and a description are somebody's: the refusal has a word of its own and names the field."""
    empty = [common_pb.Identity(namespace="user_id", value="undefined"), common_pb.Identity(namespace="device_id")]
    calls: dict[str, Awaitable[Any]] = {
        "identities": identity.service.Link(pb.LinkRequest(request_id="r1", identities=empty), timeout=10),
        "subject": identity.service.DescribeSubject(
            pb.DescribeSubjectRequest(subject=common_pb.SubjectRef(identities=empty), access=ACCESS), timeout=10
        ),
    }
    for field, call in calls.items():
        error = await refusal(call)
        assert (error.kind, error.reason, error.problems[0].field) == (Kind.INVALID, "NOBODY_NAMED", field)


async def test_a_site_adds_placeholders_and_every_replica_learns_of_them(identity: Identity) -> None:
    """Published with the bundle; what is published next takes their place, and a trial changes nothing."""
    publish = identity.service.PublishPlaceholders
    other_replica = PostgresPlaceholders(identity.pool)
    tried = await publish(pb.PublishPlaceholdersRequest(values=["Kiosk"], validate_only=True), timeout=10)
    assert (await identity.resolve("user_id:kiosk")).subject_id
    added = await publish(pb.PublishPlaceholdersRequest(values=["Kiosk"]), timeout=10)
    assert (added.version, added.changed, tried.changed) == (tried.version, True, False)
    assert (await identity.resolve("user_id:kiosk")).error_reason == "NOBODY_NAMED"
    await other_replica.load()
    assert "kiosk" in other_replica.known.texts
    assert not (await publish(pb.PublishPlaceholdersRequest(values=["Kiosk"]), timeout=10)).changed
    assert (await publish(pb.PublishPlaceholdersRequest(), timeout=10)).changed
    assert (await identity.resolve("user_id:kiosk")).subject_id


async def test_an_address_in_either_case_of_its_hash_is_one_person(identity: Identity) -> None:
    """And one that was not hashed is refused without being repeated."""
    (lower,) = identities("email_sha256:ann")
    found = [
        (await identity.service.Resolve(pb.ResolveRequest(queries=[pb.ResolveQuery(identities=[one])]), timeout=10))
        for one in (lower, common_pb.Identity(namespace="email_sha256", value=lower.value.upper()))
    ]
    assert found[0] == found[1]
    plain = common_pb.Identity(namespace="email_sha256", value="canary@example.com")
    (one,) = (
        await identity.service.Resolve(pb.ResolveRequest(queries=[pb.ResolveQuery(identities=[plain])]), timeout=10)
    ).subjects
    assert one.error_reason == "IDENTITIES_INVALID"
    assert "canary" not in str(one)
