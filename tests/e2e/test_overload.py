"""A burst of Decides, and streams that do nothing: everybody is answered in time, and afterwards it is as before."""

import asyncio

import grpc
from comity.decision.v1 import decision_service_pb2 as decision_pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.connections import Services
from cli.stack import Stack
from services.chassis.rpc_client import connect
from tests.e2e.people import DEFAULTS, Person, item_ids, ranked_person, reason, until_well

BURST = 64
IDLE_STREAMS = 50
# Far more than the server's own time for one.
DEADLINE_S = 60.0
PAUSE_S = 0.05


async def _answer(person: Person) -> decision_pb.PlacementDecision | None:
    """The decision; None where it was refused, with when to come again."""
    try:
        return (await person.decide(timeout_s=DEADLINE_S)).decisions[0]
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return None


async def test_burst_beside_idle_streams_is_answered_and_passes(stack: Stack, services: Services) -> None:
    """What is shed is the default, without anything that would prove it; health is answered all the while."""
    person = await ranked_person(services)
    beside = connect(stack.address("decision"))
    idle = [services.release.RegisterModel() for _ in range(IDLE_STREAMS)]
    try:
        asking = asyncio.gather(*(_answer(person) for _ in range(BURST)))
        check = health_pb2.HealthCheckRequest()
        health = health_pb2_grpc.HealthStub(beside)
        while not asking.done():
            answer = await health.Check(check, timeout=DEADLINE_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await asyncio.sleep(PAUSE_S)
        answers = [answer for answer in await asking if answer is not None]
    finally:
        for stream in idle:
            stream.cancel()
        await beside.close()
    shed = [answer for answer in answers if reason(answer) == "DEFAULT/OVERLOADED"]
    assert answers
    assert {reason(answer) for answer in answers if answer.fallback_reason} <= {"DEFAULT/OVERLOADED"}
    assert all(item_ids(answer) == DEFAULTS["home_hero"] for answer in shed)
    assert not any(answer.decision_id or answer.exposure_token or answer.learnable for answer in shed)
    assert all(answer.exposure_token for answer in answers if reason(answer) == "RANKED")
    await until_well(services)
