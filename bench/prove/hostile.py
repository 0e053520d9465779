"""Clients that nobody wants beside them, each a process of its own: `python -m bench.prove.hostile KIND ADDRESS…`.

It says "ready" on standard output once it does its worst, and goes on until it is ended.
"""

import argparse
import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc

from bench.site import ITEMS_COUNT
from bench.world import Requests

PEOPLE = ("greedy",)
# Connections that idle streams are spread over: one alone holds no more than a server lets it.
CONNECTIONS = 16
IDLE_STREAMS = 2_050
REPLAYS = 64
IN_FLIGHT = 64
CANDIDATES_COUNT = ITEMS_COUNT
DEADLINE_S = 0.5
# Whoever is refused comes back after this, whatever it was told.
BACK_AFTER_S = 0.05
CANCELLED_WITHIN_S = 0.05
READY_WITHIN_S = 60.0

# Channels of one process share connections unless they are told otherwise.
OWN_CONNECTION = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))

Addresses = Mapping[str, str]


def own_channel(address: str) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(address, options=OWN_CONNECTION)


async def idle_streams(addresses: Addresses) -> None:
    """Uploads that send nothing, begun again as soon as they are ended."""
    stubs = [decision_grpc.ReleaseServiceStub(own_channel(addresses["decision"])) for _ in range(CONNECTIONS)]

    async def idle(number: int) -> None:
        stub: Any = stubs[number % CONNECTIONS]
        while True:
            with suppress(grpc.aio.AioRpcError):
                await stub.RegisterModel()
            # Thousands that come back at once would be a flood, and this is about those who do nothing.
            await asyncio.sleep(random.uniform(1, 2))

    await asyncio.gather(*(idle(number) for number in range(IDLE_STREAMS)))


async def replays(addresses: Addresses) -> None:
    """The whole log, read again and again, many times at once."""
    stub: Any = feedback_grpc.FeedbackServiceStub(own_channel(addresses["feedback"]))
    kinds = [feedback_pb.REPLAY_KIND_DECISION, feedback_pb.REPLAY_KIND_BEHAVIOR]

    async def read() -> None:
        while True:
            with suppress(grpc.aio.AioRpcError):
                async for _ in stub.ReplayEvents(feedback_pb.ReplayEventsRequest(kinds=kinds)):
                    pass
            await asyncio.sleep(BACK_AFTER_S)

    await asyncio.gather(*(read() for _ in range(REPLAYS)))


async def idle_and_replays(addresses: Addresses) -> None:
    """Both at once."""
    await asyncio.gather(idle_streams(addresses), replays(addresses))


async def unread(addresses: Addresses) -> None:
    """Replays of which nobody reads a message."""
    stub: Any = feedback_grpc.FeedbackServiceStub(own_channel(addresses["feedback"]))
    kinds = [feedback_pb.REPLAY_KIND_DECISION]
    while True:
        calls = [stub.ReplayEvents(feedback_pb.ReplayEventsRequest(kinds=kinds)) for _ in range(REPLAYS)]
        await asyncio.sleep(10 * BACK_AFTER_S)
        for call in calls:
            call.cancel()


async def greedy(addresses: Addresses) -> None:
    """Decides among a thousand candidates, as many at once as it can."""
    stub = decision_grpc.DecisionServiceStub(own_channel(addresses["decision"]))
    requests, numbers = Requests(PEOPLE, candidates_count=CANDIDATES_COUNT), itertools.count()

    async def ask() -> None:
        while True:
            with suppress(grpc.aio.AioRpcError):
                await stub.Decide(requests(next(numbers)), timeout=DEADLINE_S)
            await asyncio.sleep(BACK_AFTER_S)

    await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))


async def cancelling(addresses: Addresses) -> None:
    """Decides that are cancelled at any moment."""
    stub = decision_grpc.DecisionServiceStub(own_channel(addresses["decision"]))
    requests, numbers = Requests(PEOPLE), itertools.count()

    async def ask() -> None:
        while True:
            call = stub.Decide(requests(next(numbers)), timeout=DEADLINE_S)
            await asyncio.sleep(random.uniform(0, CANCELLED_WITHIN_S))
            call.cancel()
            await asyncio.sleep(BACK_AFTER_S)

    await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))


KINDS: Mapping[str, Callable[[Addresses], Awaitable[None]]] = {
    one.__name__: one for one in (greedy, cancelling, idle_streams, replays, unread, idle_and_replays)
}


@asynccontextmanager
async def beside(kind: str, addresses: Addresses, cwd: Path) -> AsyncIterator[int]:
    """Such a client, for as long as what runs inside; its pid."""
    given = [f"{name}={address}" for name, address in addresses.items()]
    command: Sequence[str] = (sys.executable, "-m", "bench.prove.hostile", kind, *given)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=cwd)
    try:
        assert process.stdout is not None, "it is a pipe"
        async with asyncio.timeout(READY_WITHIN_S):
            assert await process.stdout.readline() == b"ready\n", f"the {kind} client did not begin"
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _run(kind: str, addresses: Addresses) -> None:
    working = asyncio.ensure_future(KINDS[kind](addresses))
    # So long it takes until most of it has begun.
    await asyncio.wait({working}, timeout=1.0)
    print("ready", flush=True)
    await working


def main() -> None:
    """Be such a client until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.prove.hostile", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("addresses", nargs="+", metavar="SERVICE=HOST:PORT")
    asked = parser.parse_args()
    asyncio.run(_run(asked.kind, dict(one.split("=") for one in asked.addresses)))


if __name__ == "__main__":
    main()
