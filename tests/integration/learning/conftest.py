"""The stand-in platform, serving."""

from collections.abc import AsyncIterator

import grpc
import pytest
from comity.consent.v1.consent_service_pb2_grpc import add_ConsentServiceServicer_to_server
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from comity.features.v1.features_service_pb2_grpc import add_FeatureServiceServicer_to_server
from comity.feedback.v1.feedback_service_pb2_grpc import add_FeedbackServiceServicer_to_server

from services.chassis.rpc_client import connect
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from tests.integration.learning.platform import Platform


@pytest.fixture
def platform() -> Platform:
    """What stands in for the services."""
    return Platform()


@pytest.fixture
async def channels(platform: Platform) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """A channel to each service of the platform."""
    server = RpcServer(ServiceSettings(database_url="", nats_url="", drain_s=0.0))  # type: ignore[arg-type]
    for registrar in (
        add_ConsentServiceServicer_to_server,
        decision_grpc.add_DecisionServiceServicer_to_server,
        decision_grpc.add_CatalogServiceServicer_to_server,
        decision_grpc.add_ReleaseServiceServicer_to_server,
        add_FeatureServiceServicer_to_server,
        add_FeedbackServiceServicer_to_server,
    ):
        server.add(registrar, platform)
    channel = connect(f"127.0.0.1:{await server.start()}")
    yield dict.fromkeys(("consent", "decision", "features", "feedback"), channel)
    await channel.close()
    await server.stop()
