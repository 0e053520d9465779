"""Services that run as several processes."""

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.stack import Stack, look
from cli.stack.probe import CHANNEL_OPTIONS, is_serving
from services.chassis.errors import ServiceError

TWO = ("identity", "decision")
THREE = ["decision", "decision-2", "decision-3"]


async def states(data_dir: Path) -> dict[str, str]:
    return {part.name: part.state for part in (await look(data_dir)).parts}


async def test_replicas_answer_each_and_together(data_dir: Path) -> None:
    """Each replica has an address of its own; the service's address reaches them all, and goes on without one."""
    async with Stack(data_dir, services=TWO, replicas={"decision": 3}, disposable=True) as stack:
        assert stack.replicas("decision") == THREE
        assert len({stack.address(name) for name in THREE}) == 3
        assert all([await is_serving(stack.address(name)) for name in THREE])
        together = stack.addresses["decision"]
        assert together.startswith("ipv4:")
        assert all(stack.address(name) in together for name in THREE)
        await stack.kill("decision")
        seen = await states(data_dir)
        assert (seen["decision"], seen["decision-2"]) == ("crashed", "up")
        async with grpc.aio.insecure_channel(together, options=CHANNEL_OPTIONS) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await stack.restart("decision")
        assert (await states(data_dir))["decision"] == "up"


async def test_replicas_that_are_no_longer_wanted_end(data_dir: Path) -> None:
    """A start with fewer replicas ends the others, and tells everybody where to call now; a stop ends all there are."""
    many = Stack(data_dir, services=TWO, replicas={"decision": 3}, tied=False, disposable=True)
    await many.start()
    told_many = many.pid("identity")
    await Stack(data_dir, services=TWO, replicas={"decision": 2}, tied=False, disposable=True).start()
    seen = await states(data_dir)
    assert (seen["decision"], seen["decision-2"], "decision-3" in seen) == ("up", "up", False)
    few = Stack(data_dir, services=TWO, replicas={"decision": 2}, tied=False, disposable=True)
    await few.start()
    assert few.pid("identity") != told_many, "it had been told of a replica that is gone"
    await Stack(data_dir, tied=False).stop()
    assert (await look(data_dir)).summary == "down"


@pytest.mark.parametrize("replicas", [{"decisions": 2}, {"decision": 0}, {"decision": 17}])
def test_replicas_that_cannot_be_are_refused(data_dir: Path, replicas: dict[str, int]) -> None:
    """A misspelled service or a silly count is named before anything is started."""
    with pytest.raises(ServiceError, match="replicas"):
        Stack(data_dir, replicas=replicas)
