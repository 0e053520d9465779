"""An erasure as a privacy officer asks for it, and the wait for its end."""

import uuid

import grpc
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import privacy_service_pb2 as privacy_pb

from cli.connections import Services
from tests.e2e.people import AWAY, CALL_S, Person
from tests.waiting import eventually

OFFICER = types_pb.Access(accessor="officer", reason="the person asked")
# With a service killed in the middle, on a busy machine.
ERASED_S = 90.0


async def begin_erasure(person: Person) -> str:
    """The id of the erasure that now goes on by itself."""
    request = privacy_pb.EraseRequest(request_id=uuid.uuid4().hex, subject=person.subject, access=OFFICER)
    response: privacy_pb.EraseResponse = await person.services.privacy.Erase(request, timeout=CALL_S)
    return response.erasure_id


async def completed_erasure(services: Services, erasure_id: str) -> privacy_pb.GetErasureResponse:
    """The erasure once every service has taken every step."""
    asked = privacy_pb.GetErasureRequest(erasure_id=erasure_id)
    found = privacy_pb.GetErasureResponse()

    async def completed() -> bool:
        nonlocal found
        try:
            found = await services.privacy.GetErasure(asked, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            # Whoever was killed is not back yet.
            if error.code() not in AWAY:
                raise
            return False
        return bool(found.state == privacy_pb.ERASURE_STATE_COMPLETED)

    await eventually(completed, within_s=ERASED_S)
    return found


async def erase(person: Person) -> privacy_pb.GetErasureResponse:
    """Erase the person in every service."""
    return await completed_erasure(person.services, await begin_erasure(person))
