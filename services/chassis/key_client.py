"""Data keys from identity's KeyService; reads that wait leave as one call."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import grpc
from comity.identity.v1 import identity_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2_grpc as pb_grpc

from services.chassis.errors import Kind, ServiceError
from services.chassis.gather import Gatherer, Load
from services.chassis.ports import Access, Operation
from services.chassis.reads import new_operation, operation_to_pb, running
from services.chassis.rpc_client import call
from services.chassis.sealing import DataKey

# What one request may ask for (identity_service.proto).
MEMBERS_MAX = 512


class GrpcKeyReader:
    """sealing.KeyReader over identity.

    Args:
        channel: of rpc_client.connect(identity's address).
        service: whose work keys are opened for, where it is no operation that somebody began.
        load: the process's load; see chassis.gather.
        timeout_s: of one call.
    """

    def __init__(
        self, channel: grpc.aio.Channel, service: str, load: Load | None = None, *, timeout_s: float = 1.0
    ) -> None:
        # What a process does by itself is one operation for as long as it runs.
        self._own = new_operation(Access(service, "what the service does by itself"))
        self._stub = pb_grpc.KeyServiceStub(channel)
        self._timeout_s = timeout_s
        load = load or Load()
        # Apart, because a read that mints writes: it must not make keys for those that only wanted to look.
        self._reads = Gatherer[tuple[str, Operation], DataKey](
            self._read, load, batch_max=MEMBERS_MAX, name="data_keys"
        )
        self._mints = Gatherer[str, DataKey](self._mint, load, batch_max=MEMBERS_MAX, name="data_keys_minted")

    async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        """See sealing.KeyReader."""
        operation = running() or self._own
        asked = (self._mints(one) if mint else self._reads((one, operation)) for one in member_ids)
        found = await asyncio.gather(*asked, return_exceptions=True)
        keys = {member_id: key for member_id, key in zip(member_ids, found, strict=True) if isinstance(key, DataKey)}
        for error in found:
            # Who is refused alone has no key, and that is no reason to withhold the others'. A fault that everybody
            # meets is identity's.
            if isinstance(error, BaseException) and not _is_of_one(error, some_were_told=bool(keys)):
                raise error
        return keys

    async def _read(self, asked: list[tuple[str, Operation]]) -> Sequence[DataKey]:
        operations = {operation.id: operation for _, operation in asked}
        return await self._ask([member_id for member_id, _ in asked], operations.values(), mint=False)

    async def _mint(self, member_ids: list[str]) -> Sequence[DataKey]:
        return await self._ask(member_ids, (), mint=True)

    async def _ask(self, member_ids: list[str], operations: Iterable[Operation], *, mint: bool) -> Sequence[DataKey]:
        # Several callers may want the same member's key at once.
        distinct = list(dict.fromkeys(member_ids))
        stated = map(operation_to_pb, operations)
        request = pb.GetDataKeysRequest(member_ids=distinct, mint=mint, operations=stated)
        response = await call(self._stub.GetDataKeys, request, self._timeout_s)
        keys = {key.member_id: DataKey(key.member_id, key.key_id, key.key, key.destroyed) for key in response.keys}
        if list(keys) != distinct:
            # Sealing with another member's key would survive that member's erasure.
            # Nobody's own fault, so an outage: it is waited out.
            raise ServiceError(Kind.UNAVAILABLE, "KEYS_MIXED_UP", "Identity answered with keys of other members.")
        return [keys[member_id] for member_id in member_ids]


def _is_of_one(error: BaseException, *, some_were_told: bool) -> bool:
    return isinstance(error, ServiceError) and (error.kind is Kind.INVALID or (some_were_told and not error.passes))
