"""Data keys from identity's KeyService; reads that wait leave as one call."""

from collections.abc import Mapping, Sequence

import grpc

from services.chassis.gather import Load
from services.chassis.sealing import DataKey


class GrpcKeyReader:
    """sealing.KeyReader over identity.

    Args:
        channel: of rpc_client.connect(identity's address).
        load: the process's load; see chassis.gather.
        timeout_s: of one call.
    """

    def __init__(self, channel: grpc.aio.Channel, load: Load | None = None, *, timeout_s: float = 1.0) -> None:
        raise NotImplementedError

    async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        """See sealing.KeyReader."""
        raise NotImplementedError
