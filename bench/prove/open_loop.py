"""Decides that arrive whether or not earlier ones were answered, each judged from when it was meant to be sent."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.load import cpu_seconds
from bench.prove.hostile import own_channel
from bench.world import answer_label

# A call has ended this long after its deadline at the latest: what takes longer was not ended by it.
OVERDUE_S = 1.0
HEALTH_EVERY_S = 0.2
HEALTH_TIMEOUT_S = 2.0
# Of psutil's, where the system has them.
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
GOOD = ("RANKED", "EXPLORED")
# A wrong variant answers more of the calls well that it gets alone: else nothing is learned from it beside others.
GOOD_ALONE_MIN = 0.5

RequestOf = Callable[[int], decision_pb.DecideRequest]


@dataclass(slots=True)
class Seen:
    """What became of the calls of a while.

    Args:
        sent: how many.
        answers: by reason, or by status where there was no answer; of those in time.
        overdue: calls that went on after their deadline.
        latencies_s: of good answers in time, from when each was meant to be sent.
        unhealthy: questions for health without the right answer.
        cpu_left_s: CPU that the machine had for the stack: all of it, less what others used.
    """

    sent: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    overdue: int = 0
    latencies_s: list[float] = field(default_factory=list)
    unhealthy: int = 0
    cpu_left_s: float = 0.0

    @property
    def good(self) -> int:
        """Answers in time that were aimed for."""
        return sum(self.answers.get(label, 0) for label in GOOD)

    @property
    def good_share(self) -> float:
        """The same of all calls."""
        return self.good / self.sent if self.sent else 0.0

    @property
    def good_per_cpu_s(self) -> float:
        """The same for each second of CPU that was there for it."""
        return self.good / self.cpu_left_s if self.cpu_left_s > 0 else 0.0


class Clients:
    """Backends: connections that requests go out over in turn."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], request_of: RequestOf, deadline_s: float) -> None:
        self._stubs = [decision_grpc.DecisionServiceStub(channel) for channel in channels]
        self._health: Any = health_pb2_grpc.HealthStub(channels[0])
        self._request_of = request_of
        self._deadline_s = deadline_s
        self._numbers = itertools.count()

    async def poisson(self, per_s: float, duration_s: float, rng: random.Random) -> Seen:
        """Calls at random moments, so many a second on average."""
        seen, calls, began_s = Seen(), set[asyncio.Task[None]](), time.monotonic()
        at_s = rng.expovariate(per_s)
        while at_s < duration_s:
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            calls.add(task := asyncio.create_task(self._ask(seen, began_s + at_s)))
            task.add_done_callback(calls.discard)
            at_s += rng.expovariate(per_s)
        await asyncio.gather(*calls)
        return seen

    async def closed(self, in_flight: int, duration_s: float) -> Seen:
        """As many calls as can be answered, so many at once."""
        seen, ends_s = Seen(), time.monotonic() + duration_s

        async def ask() -> None:
            while time.monotonic() < ends_s:
                await self._ask(seen, time.monotonic())

        await asyncio.gather(*(ask() for _ in range(in_flight)))
        return seen

    async def watch_health(self, seen: Seen) -> None:
        """Ask for it until cancelled, as an orchestrator does."""
        while True:
            try:
                answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
                seen.unhealthy += answer.status != health_pb2.HealthCheckResponse.SERVING
            except grpc.aio.AioRpcError:
                seen.unhealthy += 1
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _ask(self, seen: Seen, meant_s: float) -> None:
        number, until_s = next(self._numbers), meant_s + self._deadline_s
        seen.sent += 1
        stub = self._stubs[number % len(self._stubs)]
        left_s = until_s - time.monotonic()
        try:
            answer = await stub.Decide(self._request_of(number), timeout=max(0.001, left_s))
            label = answer_label(answer.decisions[0])
        except grpc.aio.AioRpcError as error:
            label = error.code().name
        ended_s = time.monotonic()
        if ended_s > until_s + OVERDUE_S:
            seen.overdue += 1
        if ended_s <= until_s:
            seen.answers[label] = seen.answers.get(label, 0) + 1
            if label in GOOD:
                seen.latencies_s.append(ended_s - meant_s)


@asynccontextmanager
async def clients(address: str, request_of: RequestOf, *, count: int, deadline_s: float) -> AsyncIterator[Clients]:
    """Backends that are connected."""
    channels = [own_channel(address) for _ in range(count)]
    try:
        yield Clients(channels, request_of, deadline_s)
    finally:
        for channel in channels:
            await channel.close()


class Spared:
    """What CPU is left to the stack: that of the machine, less what everybody else uses of it."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._began_s, self._others_s = time.monotonic(), self._others()

    def so_far_s(self) -> float:
        """Seconds of CPU since this was made."""
        all_s = (psutil.cpu_count() or 1) * (time.monotonic() - self._began_s)
        return max(0.0, all_s - (self._others() - self._others_s))

    def _others(self) -> float:
        times = psutil.cpu_times()
        busy_s = sum(getattr(times, name, 0.0) for name in BUSY)
        return busy_s - sum(map(cpu_seconds, self._pids.values()))
