"""G8: what is more than can be done costs nobody the answer that could be given.

How many Decides a second are answered as they should is measured at the capacity, then with two and four times as many
arriving, and at the capacity beside clients that hold thousands of streams open and read the log. Each figure is for a
second of CPU that the clients and all else on the machine leave over, and each ratio is taken within a lap.
"""

import asyncio
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.prove.hostile import beside
from bench.prove.open_loop import GOOD_ALONE_MIN, Clients, Seen, Spared, clients
from bench.prove.proof import Proof
from bench.ranker import activate_noise
from bench.world import Requests, World, world
from cli.stack import SERVICES
from cli.stack.ports import free_port
from cli.stack.servers import SERVERS

# Budgets of the stack, and what the way there and back may take beside.
DEADLINE_S = 0.5
BACKENDS = 4
# The peak is the best of these; more at once gather better, and fewer are in time on a slower machine.
IN_FLIGHT = (4, 8, 16, 32)
PEOPLE_COUNT = 200
TREES_COUNT = 50
RATIOS_MIN = {"2x": 0.80, "4x": 0.50, "beside": 0.50}
SEED = 8
# A call that was to end with its Decide has ended by now.
ORPHANS_WITHIN_S = 3.0
POLL_S = 0.02
CALLS = re.compile(r"^comity_rpc_server_calls\S* ([\d.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lap:
    """One time each.

    Args:
        peak: closed loop, as much as can be done.
        capacity_per_s: good answers then.
        orphans: calls between the services that went on when no Decide did any more.
    """

    peak: Seen
    capacity_per_s: float
    loaded: Mapping[str, Seen]
    orphans: int

    def ratio(self, name: str) -> float:
        """Good answers for a second of CPU, by those at the peak."""
        peak = self.peak.good_per_cpu_s
        return self.loaded[name].good_per_cpu_s / peak if peak else 0.0

    @property
    def wrong(self) -> int:
        """What must not be in any lap."""
        every = (self.peak, *self.loaded.values())
        return sum(seen.overdue + seen.unhealthy for seen in every) + self.orphans


async def prove(folder: Path, *, laps: int, duration_s: float) -> Proof:
    """The ratios of so many laps, and what a decision without a limiter makes of the same load."""
    ports = {name: free_port() for name in SERVICES}
    env = {name: _settings(name, port) for name, port in ports.items()}
    async with world(folder, people_count=PEOPLE_COUNT, env=env, disposable=True, holdout_share=0.0) as ready:
        await activate_noise(ready.services, trees_count=TREES_COUNT)
        trial = _Trial(ready, ports, random.Random(SEED))
        found = [await trial.lap(duration_s) for _ in range(laps)]
        await ready.stack.become("decision", "unlimited")
        capacity = statistics.median(lap.capacity_per_s for lap in found)
        async with trial.clients() as backends:
            alone = await backends.closed(IN_FLIGHT[0], duration_s / 2)
            unlimited = await trial.loaded(partial(backends.poisson, 4 * capacity, duration_s, trial.rng), backends)
        peak = statistics.median(lap.peak.good_per_cpu_s for lap in found)
    ratios = {name: statistics.median(lap.ratio(name) for lap in found) for name in RATIOS_MIN}
    # What answers nobody is caught by anything, and would show nothing.
    caught = int(alone.good_share > GOOD_ALONE_MIN and unlimited.good_per_cpu_s < RATIOS_MIN["4x"] * peak)
    return Proof(
        trials=sum(seen.sent for lap in found for seen in (lap.peak, *lap.loaded.values())),
        failures=sum(lap.wrong for lap in found) + sum(ratios[name] < least for name, least in RATIOS_MIN.items()),
        teeth={"without_limiter": caught},
        facts={
            "decides_per_s_at_peak": round(capacity, 1),
            **{f"ratio_{name}": round(ratio, 3) for name, ratio in ratios.items()},
            "ratio_4x_without_limiter": round(unlimited.good_per_cpu_s / peak if peak else 0.0, 3),
            "overdue": sum(seen.overdue for lap in found for seen in (lap.peak, *lap.loaded.values())),
            "unhealthy": sum(seen.unhealthy for lap in found for seen in (lap.peak, *lap.loaded.values())),
            "orphans": sum(lap.orphans for lap in found),
            **_shares(found),
        },
    )


class _Trial:
    """Laps on one stack."""

    def __init__(self, ready: World, ports: Mapping[str, int], rng: random.Random) -> None:
        self.ready = ready
        self.rng = rng
        self._ports = ports
        self._requests = Requests(ready.people, seed=SEED)

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[Clients]:
        """Backends, warmed up."""
        address = self.ready.stack.address("decision")
        async with clients(address, self._requests, count=BACKENDS, deadline_s=DEADLINE_S) as backends:
            await backends.closed(IN_FLIGHT[0], 2.0)
            yield backends

    async def lap(self, duration_s: float) -> Lap:
        """The peak, and each kind of load."""
        async with self.clients() as backends:
            peaks = [
                await self.loaded(partial(backends.closed, count, duration_s / 2), backends) for count in IN_FLIGHT
            ]
            peak = max(peaks, key=lambda seen: seen.good_per_cpu_s)
            capacity, loaded = 2 * max(seen.good for seen in peaks) / duration_s, {}
            for name, times in (("2x", 2), ("4x", 4)):
                loaded[name] = await self.loaded(
                    partial(backends.poisson, times * capacity, duration_s, self.rng), backends
                )
            orphans = await self._orphans()
            stack = self.ready.stack
            async with beside("idle_and_replays", stack.addresses, stack.command("decision").cwd):
                loaded["beside"] = await self.loaded(
                    partial(backends.poisson, capacity, duration_s, self.rng), backends
                )
        lap = Lap(peak, capacity, loaded, orphans)
        told = ", ".join(f"{name} {lap.ratio(name):.2f} {seen.answers}" for name, seen in loaded.items())
        print(f"overload: peak {capacity:.0f}/s {peak.answers}, {told}", file=sys.stderr, flush=True)
        return lap

    async def loaded(self, load: Callable[[], Awaitable[Seen]], backends: Clients) -> Seen:
        """What was seen of this load, with health asked beside it."""
        stack, health = self.ready.stack, Seen()
        spared = Spared({name: stack.pid(name) for name in (*SERVICES, *SERVERS)})
        watching = asyncio.create_task(backends.watch_health(health))
        seen = await load()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        seen.unhealthy, seen.cpu_left_s = health.unhealthy, spared.so_far_s()
        return seen

    async def _orphans(self) -> int:
        """Calls of services that go on; the services' own questions end and others begin, so the least counts."""
        least = dict.fromkeys(SERVICES, sys.maxsize)
        until_s = time.monotonic() + ORPHANS_WITHIN_S
        while any(least.values()) and time.monotonic() < until_s:
            for name, port in self._ports.items():
                text = await _metrics(port)
                found = CALLS.search(text)
                assert found is not None, f"{name} does not tell how many calls it answers"
                least[name] = min(least[name], int(float(found[1])))
            await asyncio.sleep(POLL_S)
        return sum(least.values())


def _settings(name: str, port: int) -> dict[str, str]:
    prefix = f"COMITY_{name.upper()}"
    return {f"{prefix}_TRACE_RATIO": "0.01", f"{prefix}_METRICS_PORT": str(port)}


async def _metrics(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        return (await asyncio.wait_for(reader.read(), timeout=5)).decode()
    finally:
        writer.close()


def _shares(laps: list[Lap]) -> dict[str, float]:
    """Of the calls of each load, how many were shed, refused, and without an answer in time."""
    told: dict[str, float] = {}
    for name in RATIOS_MIN:
        seen = [lap.loaded[name] for lap in laps]
        sent = sum(one.sent for one in seen) or 1
        for label in ("OVERLOADED", "RESOURCE_EXHAUSTED"):
            told[f"{label.lower()}_{name}"] = round(sum(one.answers.get(label, 0) for one in seen) / sent, 3)
        # gRPC's own DEADLINE_EXCEEDED comes at the deadline or after it.
        in_time = sum(count for one in seen for label, count in one.answers.items() if label != "DEADLINE_EXCEEDED")
        told[f"unanswered_{name}"] = round(1 - in_time / sent, 3)
    return told
