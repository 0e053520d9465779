"""Data keys over gRPC: few calls, every key its own member's."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from comity.identity.v1 import identity_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2_grpc as pb_grpc

from services.chassis.errors import ServiceError
from services.chassis.key_client import GrpcKeyReader
from services.chassis.memory import MemoryKeys
from services.chassis.ports import Access
from services.chassis.reads import begin
from services.chassis.rpc_client import connect, warm


class Keys(pb_grpc.KeyServiceServicer):
    """Identity's KeyService over keys in memory."""

    def __init__(self) -> None:
        self.memory = MemoryKeys()
        self.requests: list[pb.GetDataKeysRequest] = []
        self.mix_up = False
        self.nobody = ""

    async def GetDataKeys(  # noqa: N802
        self, request: pb.GetDataKeysRequest, context: Any
    ) -> pb.GetDataKeysResponse:
        self.requests.append(request)
        if self.nobody in request.member_ids:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "is no pseudonym")
        found = await self.memory.keys(request.member_ids, mint=request.mint)
        keys = [
            pb.DataKey(member_id=key.member_id, key_id=key.key_id, key=key.key, destroyed=key.destroyed)
            for key in found.values()
        ]
        return pb.GetDataKeysResponse(keys=reversed(keys) if self.mix_up else keys)


@pytest.fixture
async def service() -> AsyncIterator[tuple[Keys, GrpcKeyReader]]:
    keys = Keys()
    server = grpc.aio.server()
    pb_grpc.add_KeyServiceServicer_to_server(keys, server)  # type: ignore[no-untyped-call,unused-ignore]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = connect(f"127.0.0.1:{port}")
    await warm(channel)
    yield keys, GrpcKeyReader(channel, "features", timeout_s=10.0)
    await channel.close()
    await server.stop(None)


async def test_reads_that_wait_leave_together(service: tuple[Keys, GrpcKeyReader]) -> None:
    """Many readers at once cost few calls, and each gets the keys of the members that it asked for."""
    keys, reader = service
    members = [f"{number:026}" for number in range(60)]
    minted = await asyncio.gather(*(reader.keys([member], mint=True) for member in members))
    read = await reader.keys(members, mint=False)
    assert [found[member] for found, member in zip(minted, members, strict=True)] == [read[m] for m in members]
    assert all(len(read[member].key) == 32 for member in members)
    assert len(keys.requests) < 20


async def test_looking_does_not_mint(service: tuple[Keys, GrpcKeyReader]) -> None:
    """A read beside a mint stays a read; a destroyed key arrives as destroyed."""
    keys, reader = service
    keys.memory.destroy(["gone"])
    looked, minted = await asyncio.gather(reader.keys(["a", "gone"], mint=False), reader.keys(["b"], mint=True))
    assert looked["a"].key_id == ""
    assert looked["gone"].destroyed
    assert minted["b"].key_id
    assert (await reader.keys(["a"], mint=False))["a"].key_id == ""


async def test_keys_of_other_members_are_refused(service: tuple[Keys, GrpcKeyReader]) -> None:
    """An answer in another order is a fault, not keys for the wrong members."""
    keys, reader = service
    keys.mix_up = True
    with pytest.raises(ServiceError) as fault:
        await reader.keys(["a", "b"], mint=True)
    assert fault.value.reason == "KEYS_MIXED_UP"


async def test_who_is_no_member_costs_the_others_no_key(service: tuple[Keys, GrpcKeyReader]) -> None:
    """Asked for together with somebody whom identity takes for nobody, members get their keys."""
    keys, reader = service
    keys.nobody = "not a member"
    found = await reader.keys(["a", "not a member", "b"], mint=True)
    assert found.keys() == {"a", "b"}


async def test_what_keys_are_opened_for_is_told_beside_a_refusal(service: tuple[Keys, GrpcKeyReader]) -> None:
    """A batch that is refused leaves in parts, each with the operations of its own keys."""
    keys, reader = service
    keys.nobody = "not a member"

    async def opened_for(member_id: str) -> str:
        operation = begin(Access("officer", member_id))
        await reader.keys([member_id, "not a member"], mint=False)
        return operation.id

    one, two = await asyncio.gather(*(asyncio.create_task(opened_for(member_id)) for member_id in ("a", "b")))
    told = {tuple(request.member_ids): {operation.id for operation in request.operations} for request in keys.requests}
    assert {members: told[members] for members in (("a",), ("b",))} == {("a",): {one}, ("b",): {two}}


async def test_what_keys_are_opened_for_is_told(service: tuple[Keys, GrpcKeyReader]) -> None:
    """An operation by its own name, also where several leave together; the rest as the service's own, all its life."""
    keys, reader = service

    async def opened_for(reason: str) -> str:
        operation = begin(Access("officer", reason))
        await reader.keys([reason], mint=False)
        return operation.id

    began = await asyncio.gather(*(asyncio.create_task(opened_for(reason)) for reason in ("one", "two")))
    told = {one.id: one.access.accessor for request in keys.requests for one in request.operations}
    assert told == dict.fromkeys(began, "officer")
    keys.requests.clear()
    for member in ("a", "b"):
        await reader.keys([member], mint=False)
    await reader.keys(["c"], mint=True)
    (first,), (second,), sealing = (request.operations for request in keys.requests)
    assert (first.id, first.access.accessor) == (second.id, "features")
    assert not sealing
