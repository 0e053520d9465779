"""P1, P2 and the price of consent: Decide against an empty call, the naive design, and itself without consent's answer.

Rounds are interleaved — floor, Comity, naive, read, unread, then the other way round, … — and a ratio is taken within a
lap, so that a slow minute of the machine hits all of them and nobody is always the one behind another. The price of
consent is taken between two processes that are alike in all but that: both run beside the stack's own decision, which
also relays. Load: closed loop, 32 in flight, rotating subjects and candidates; 20 candidates, 300 trees of 31 leaves
over 40 or more columns; consent read for every Decide, every decision durably logged; spans at 1 %.
"""

import asyncio
import dataclasses
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc

from bench import floor
from bench.load import Call, Round, closed_loop
from bench.ranker import activate_noise
from bench.report import Figure
from bench.world import DECIDE_DEADLINE_S, Requests, World, answer_label, world
from cli.stack import SERVICES, budgets, temporary_folder
from cli.stack.ports import free_port
from cli.stack.probe import wait_serving
from cli.stack.servers import SERVERS
from services.chassis.rpc_client import CHANNEL_OPTIONS, connect, warm

IN_FLIGHT = 32
STANDARD_ERROR = 2
PEOPLE_COUNT = 2_000
# A Decide may take as long as the machine makes it: answers that fall back would not be measured as decisions.
BUDGET_MS = 1_000
ENV = {name: {f"COMITY_{name.upper()}_TRACE_RATIO": "0.01", **budgets(BUDGET_MS).get(name, {})} for name in SERVICES}

Progress = Callable[[str], None]
# Measures for so many seconds.
Contender = Callable[[float], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Lap:
    """One round of each, measured after one another.

    Args:
        read: the real decision service beside the stack's own, as unread is.
        unread: the same without consent's answer.
    """

    floor: Round
    comity: Round
    naive: Round
    read: Round
    unread: Round


async def measure(*, rounds: int, duration_s: float, progress: Progress) -> list[Lap]:
    """Start everything, warm it up, and measure *rounds* laps."""
    with temporary_folder() as folder:
        async with world(folder, people_count=PEOPLE_COUNT, env=ENV) as ready:
            progress("training and activating a ranker of full size")
            await activate_noise(ready.services)
            async with _floor() as empty, _comity(ready) as comity, _beside(ready) as beside:
                contenders = {"floor": empty, "comity": comity, **beside}
                progress("warming up")
                await _lap(contenders, contenders, duration_s / 2)
                laps = []
                for number in range(rounds):
                    order = reversed(contenders) if number % 2 else contenders
                    laps.append(await _lap(contenders, order, duration_s))
                    progress(f"round {number + 1} of {rounds}: {_line(laps[-1])}")
                return laps


async def _lap(contenders: Mapping[str, Contender], order: Iterable[str], duration_s: float) -> Lap:
    """A round of each, in this order."""
    return Lap(**{name: await contenders[name](duration_s) for name in order})


def figures(laps: list[Lap]) -> dict[str, Figure]:
    """P1, what P1 costs in CPU, P2, and the share of Decide/s that reading consent for each one takes."""
    return {
        "P1": Figure.of([t.comity.calls_per_s / t.floor.calls_per_s for t in laps]),
        "P1_cpu": Figure.of([t.comity.cpu_us_total / t.floor.cpu_us_total for t in laps]),
        "P2": Figure.of([t.comity.calls_per_s / t.naive.calls_per_s for t in laps]),
        "consent_read_cost": Figure.of([1 - t.read.calls_per_s / t.unread.calls_per_s for t in laps]),
    }


def table(laps: list[Lap]) -> str:
    """Figures, answers and CPU µs a call, for people."""
    found = figures(laps)
    names = laps[0].comity.cpu_us
    cpu = {name: statistics.median(t.comity.cpu_us[name] for t in laps) for name in names}
    answers: dict[str, int] = {}
    for lap in laps:
        for label, count in lap.comity.answers.items():
            answers[label] = answers.get(label, 0) + count
    lines = [
        f"P1  Decide/s ÷ empty calls/s            {found['P1']}   first aim 0.22, goal 0.40",
        f"    CPU a Decide ÷ CPU of an empty call  {found['P1_cpu']}   first aim 5, goal 2.8",
        f"P2  Decide/s ÷ naive Decide/s            {found['P2']}   first aim 2.0, goal 3.5",
        f"    share of Decide/s that reading consent for each takes  {found['consent_read_cost']}   at most 0.15",
        f"answers: {', '.join(f'{label} {count}' for label, count in sorted(answers.items()))}",
        "CPU µs a Decide by process (median): " + ", ".join(f"{name} {value:.0f}" for name, value in cpu.items()),
        f"CPU µs an empty call: {statistics.median(t.floor.cpu_us_total for t in laps):.0f}",
        f"latency of Decide, ms: p50 {statistics.median(t.comity.latency_ms_p50 for t in laps):.1f}, "
        f"p99 {statistics.median(t.comity.latency_ms_p99 for t in laps):.1f}",
    ]
    return "\n".join(lines)


@asynccontextmanager
async def _comity(ready: World) -> AsyncIterator[Contender]:
    pids = {name: ready.stack.pid(name) for name in (*SERVICES, *SERVERS)}
    async with _decider(ready.stack.address("decision"), ready, pids) as contender:
        yield contender


@asynccontextmanager
async def _beside(ready: World) -> AsyncIterator[dict[str, Contender]]:
    """Decision once more, and its variants, each over the same other services."""
    modules = {"naive": "bench.variants.naive", "read": "services.decision.main", "unread": "bench.variants.unread"}
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(_program(ready, name, modules[name])) for name in modules}


@asynccontextmanager
async def _program(ready: World, name: str, module: str) -> AsyncIterator[Contender]:
    """A decision service beside the stack's own."""
    command = ready.stack.command("decision")
    port = free_port()
    env = {**command.env, "COMITY_DECISION_LISTEN": f"127.0.0.1:{port}"}
    with _process([sys.executable, "-m", module], env=env, cwd=command.cwd) as pid:
        pids = {one: ready.stack.pid(one) for one in (*SERVICES, *SERVERS)}
        async with _decider(f"127.0.0.1:{port}", ready, {**pids, name: pid}) as contender:
            yield contender


@asynccontextmanager
async def _decider(address: str, ready: World, pids: Mapping[str, int]) -> AsyncIterator[Contender]:
    """Measures Decide at an address."""
    channel = connect(address)
    stub: Any = decision_grpc.DecisionServiceStub(channel)
    requests = Requests(ready.people)
    done = 0

    async def decide(number: int) -> str:
        answer = await stub.Decide(requests(number), timeout=DECIDE_DEADLINE_S)
        return answer_label(answer.decisions[0])

    async def run(duration_s: float) -> Round:
        nonlocal done
        measured: Round = await _loop(decide, duration_s, pids, done)
        done += sum(measured.answers.values())
        return measured

    await wait_serving(address, timeout_s=30.0)
    await warm(channel)
    yield run
    await channel.close()


@asynccontextmanager
async def _floor() -> AsyncIterator[Contender]:
    port = free_port()
    with _process([sys.executable, "-m", "bench.floor", str(port)]) as pid:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
        await asyncio.wait_for(channel.channel_ready(), 30.0)
        empty: Any = channel.unary_unary(floor.METHOD)
        request = Requests(["person-1"])(1).SerializeToString()

        async def ask(_: int) -> str:
            await empty(request, timeout=DECIDE_DEADLINE_S)
            return "EMPTY"

        yield lambda duration_s: _loop(ask, duration_s, {"floor": pid}, 0)
        await channel.close()


def _loop(ask: Call, duration_s: float, pids: Mapping[str, int], first: int) -> Any:
    return closed_loop(ask, in_flight=IN_FLIGHT, duration_s=duration_s, pids=pids, first=first)


@contextmanager
def _process(argv: list[str], **more: Any) -> Any:
    """A process that ends with the block; what it says is not among the figures."""
    process = subprocess.Popen(argv, stdout=STANDARD_ERROR, **more)
    try:
        yield process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()


def _line(lap: Lap) -> str:
    comity = lap.comity
    return (
        f"empty {lap.floor.calls_per_s:.0f}/s, Decide {comity.calls_per_s:.0f}/s "
        f"(p50 {comity.latency_ms_p50:.1f} ms, {comity.cpu_us_total:.0f} CPU µs), "
        f"naive {lap.naive.calls_per_s:.0f}/s, "
        f"consent read {lap.read.calls_per_s:.0f}/s and unread {lap.unread.calls_per_s:.0f}/s"
    )
