"""Whether a service answers, asked the way a balancer asks: gRPC health; and what it tells of itself."""

import asyncio
from dataclasses import dataclass

import grpc
from comity.common.v1 import operations_pb2, operations_pb2_grpc
from comity.consent.v1 import consent_service_pb2, consent_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

POLL_S = 0.05
CHANNEL_OPTIONS = (
    # The default waits a second and more between tries, which is most of a start.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
    # A new channel must not share a connection, and its backoff, with an old one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class StandingAlarm:
    """An alarm that stands in a process, as it tells it.

    Args:
        since: UTC, ISO 8601.
    """

    name: str
    sentence: str
    remedy: str
    since: str


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """Consent's journal of refusals and erasures.

    Args:
        lag_s: age of the oldest one that is not in it; 0: all are.
    """

    entries: int
    lag_s: float


async def is_serving(address: str, *, timeout_s: float = 1.0) -> bool:
    """Whether the service at the address says that it is SERVING."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        return await _serving(health_pb2_grpc.HealthStub(channel), timeout_s)


async def wait_serving(address: str, *, timeout_s: float) -> None:
    """Returns once the service is SERVING.

    Raises:
        TimeoutError: it was not, in *timeout_s*.
    """
    async with asyncio.timeout(timeout_s), grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            if await _serving(stub, 1.0):
                return
            await asyncio.sleep(POLL_S)


async def standing_alarms(address: str, *, timeout_s: float = 1.0) -> tuple[StandingAlarm, ...]:
    """The alarms that stand in the process at the address; none where it knows none (an older release) or is silent."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = operations_pb2_grpc.OperationsServiceStub(channel)
        try:
            answer = await stub.ListAlarms(operations_pb2.ListAlarmsRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return ()
    return tuple(
        StandingAlarm(alarm.name, alarm.sentence, alarm.remedy, alarm.since.ToJsonString()) for alarm in answer.alarms
    )


async def journal_status(address: str, *, timeout_s: float = 1.0) -> JournalStatus | None:
    """How consent's journal stands; None where none is kept, or nobody answers."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = consent_service_pb2_grpc.ConsentServiceStub(channel)
        try:
            answer = await stub.DescribeConsent(consent_service_pb2.DescribeConsentRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return None
    return JournalStatus(answer.journal.entries, answer.journal.lag_s) if answer.HasField("journal") else None


async def _serving(stub: health_pb2_grpc.HealthStub, timeout_s: float) -> bool:
    request = health_pb2.HealthCheckRequest()
    try:
        answer: health_pb2.HealthCheckResponse = await stub.Check(request, timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
