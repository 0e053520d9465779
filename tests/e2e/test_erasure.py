"""A person who is erased: gone from every service and from the counts, and somebody new when they come back."""

import uuid
from collections.abc import Mapping

import asyncpg
import grpc
import numpy as np
import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import privacy_service_pb2 as privacy_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.connections import Services
from cli.stack import Stack
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call
from tests.e2e.people import CALL_S, Person, item_ids, ranked_person, reason
from tests.waiting import eventually

OFFICER = types_pb.Access(accessor="officer", reason="the person asked")
# What keeps the person away names them for ever, by pseudonym alone; nothing else of these three services may.
LISTS = {"erased_members", "withdrawn_members"}
TEXTS_SQL = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'public' AND data_type IN ('text', 'bytea', 'ARRAY', 'jsonb') ORDER BY table_name, column_name
"""


async def subject_of(person: Person) -> str:
    request = identity_pb.ResolveRequest(queries=[identity_pb.ResolveQuery(identities=person.messages)])
    response = await call(person.services.identity.Resolve, request, CALL_S)
    return str(response.subjects[0].member_id)


async def click(person: Person, item_id: str, times: int = 3) -> None:
    """Click the item, within the hero's decision the first time."""
    answer = (await person.decide()).decisions[0]
    events = [
        feedback_pb.TrackedEvent(
            event_id=uuid.uuid4().hex,
            type="click",
            subject=person.subject,
            item_ids=[item_id],
            exposure_token=answer.exposure_token if number == 0 else b"",
        )
        for number in range(times)
    ]
    response = await call(person.services.feedback.Track, feedback_pb.TrackRequest(events=events), CALL_S)
    assert {result.status for result in response.results} == {feedback_pb.TRACK_STATUS_ACCEPTED}
    wait = features_pb.AwaitPositionRequest(source="feedback", position=response.position)
    await call(person.services.features.AwaitPosition, wait, CALL_S)


async def clicks_on(services: Services, item_id: str) -> float:
    """The item's recent clicks, out of the row that decision is given."""
    described = await call(services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest(), CALL_S)
    feature_set = described.feature_set
    offset = next(one.item.offset for one in feature_set.columns if one.feature == "item_clicks_recent")
    request = features_pb.GetItemColumnsRequest(feature_set_version=feature_set.version)
    values: dict[str, float] = {}
    async for chunk in services.features.GetItemColumns(request, timeout=CALL_S):
        rows = np.frombuffer(chunk.rows, dtype="<f4").reshape(-1, feature_set.item_width)
        values |= dict(zip(chunk.item_ids, map(float, rows[:, offset]), strict=True))
    return float(np.expm1(values[item_id]))


async def begin_erasure(person: Person) -> str:
    request = privacy_pb.EraseRequest(request_id=uuid.uuid4().hex, subject=person.subject, access=OFFICER)
    return str((await call(person.services.privacy.Erase, request, CALL_S)).erasure_id)


async def completed_erasure(services: Services, erasure_id: str) -> privacy_pb.GetErasureResponse:
    """The erasure once every service has taken every step."""
    asked = privacy_pb.GetErasureRequest(erasure_id=erasure_id)
    found = privacy_pb.GetErasureResponse()

    async def completed() -> bool:
        nonlocal found
        try:
            found = await call(services.privacy.GetErasure, asked, CALL_S)
        except ServiceError as outage:
            # Whoever was killed is not back yet.
            if outage.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE):
                raise
            return False
        return bool(found.state == privacy_pb.ERASURE_STATE_COMPLETED)

    await eventually(completed, within_s=90.0)
    return found


async def ranked_person_when_well(services: Services) -> Person:
    """A ranked person, as soon as the services have found each other again after a kill."""
    people: list[Person] = []

    async def found() -> bool:
        try:
            people.append(await ranked_person(services))
        except (ServiceError, grpc.aio.AioRpcError, AssertionError):
            return False
        return True

    await eventually(found, within_s=60.0)
    return people[0]


async def naming(url: str, member_id: str) -> dict[str, int]:
    """Rows of each table of a database in which a column names the member."""
    connection = await asyncpg.connect(url)
    found: dict[str, int] = {}
    try:
        for table, column in await connection.fetch(TEXTS_SQL):
            count = await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE position($1 IN {column}::text) > 0"
                f" OR position($2 IN {column}::text) > 0",
                member_id,
                member_id.encode().hex(),
            )
            if count:
                found[table] = found.get(table, 0) + count
    finally:
        await connection.close()
    return found


async def test_an_erased_person_is_gone_from_every_service_and_comes_back_as_somebody_new(
    stack: Stack, services: Services
) -> None:
    """No table names them, the counts of items are as though they had never been, others keep what is theirs."""
    other, somebody = await ranked_person(services), await ranked_person(services)
    await click(other, "kite")
    before = await clicks_on(services, "kite")
    await click(somebody, "kite")
    assert await clicks_on(services, "kite") > before + 2.5
    member_id, kept_id = await subject_of(somebody), await subject_of(other)
    urls: Mapping[str, str] = {name: stack.database_url(name) for name in ("features", "decision", "feedback")}
    assert all([await naming(url, member_id) for url in urls.values()])
    found = await completed_erasure(services, await begin_erasure(somebody))
    for name, url in urls.items():
        assert (await naming(url, member_id)).keys() <= LISTS, name
        assert (await naming(url, kept_id)).keys() - LISTS, name
    counts = {(step.service, count.name): count.count for step in found.steps for count in step.counts}
    assert counts["features", "member_states"] == 1
    assert counts["feedback", "events"] >= 3
    assert counts["decision", "events"] >= 1
    assert found.receipt
    assert abs(await clicks_on(services, "kite") - before) < 0.01
    assert await subject_of(somebody) != member_id
    assert reason((await somebody.decide()).decisions[0]) == "DEFAULT/NO_CONSENT"
    assert item_ids((await other.decide()).decisions[0])


@pytest.mark.parametrize("victim", ["consent", "identity", "features", "decision", "feedback", "postgres"])
async def test_an_erasure_survives_the_kill_of_whoever_takes_part(
    stack: Stack, services: Services, victim: str
) -> None:
    """Killed right after Erase was answered, while its steps are taken: the erasure is completed all the same."""
    somebody = await ranked_person_when_well(services)
    await click(somebody, "tote")
    member_id = await subject_of(somebody)
    erasure_id = await begin_erasure(somebody)
    await stack.kill(victim)
    await stack.restart(victim)
    found = await completed_erasure(services, erasure_id)
    counts = {(step.service, count.name): count.count for step in found.steps for count in step.counts}
    assert counts["feedback", "events"] >= 3
    assert counts["features", "member_states"] == 1
    for name in ("features", "decision", "feedback"):
        assert (await naming(stack.database_url(name), member_id)).keys() <= LISTS, name
    # Whoever is tested next finds a stack that is well.
    await ranked_person_when_well(services)
