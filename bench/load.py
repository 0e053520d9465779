"""Closed-loop load on a gRPC method, and what it cost every process involved."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import numpy as np
import psutil


@dataclass(frozen=True, slots=True)
class Round:
    """One measured interval.

    Args:
        calls_per_s: completed calls a second.
        latency_ms_p50, latency_ms_p99: of completed calls.
        cpu_us: CPU µs a call, by process name.
        answers: completed calls by what the caller said of the answer.
    """

    calls_per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    cpu_us: dict[str, float]
    answers: dict[str, int]

    @property
    def cpu_us_total(self) -> float:
        """CPU µs a call on all measured processes."""
        return sum(self.cpu_us.values())


Call = Callable[[int], Awaitable[str]]


async def closed_loop(
    call: Call, *, in_flight: int, duration_s: float, pids: Mapping[str, int], first: int = 0
) -> Round:
    """Keep *in_flight* calls under way for *duration_s*.

    Args:
        call: makes the call with a running number, so that inputs rotate; gives a label for its answer.
        pids: processes whose CPU is counted, children included.
    """
    numbers = itertools.count(first)
    latencies_s: list[float] = []
    answers: dict[str, int] = {}
    ends_at = time.perf_counter() + duration_s

    async def caller() -> None:
        while time.perf_counter() < ends_at:
            began = time.perf_counter()
            answer = await call(next(numbers))
            latencies_s.append(time.perf_counter() - began)
            answers[answer] = answers.get(answer, 0) + 1

    cpu_before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    elapsed_s = time.perf_counter() - began
    cpu_us = {name: 1e6 * (cpu_seconds(pid) - cpu_before[name]) / len(latencies_s) for name, pid in pids.items()}
    p50, p99 = np.percentile(np.asarray(latencies_s) * 1e3, [50, 99])
    return Round(len(latencies_s) / elapsed_s, float(p50), float(p99), cpu_us, answers)


def cpu_seconds(pid: int) -> float:
    """User and system CPU that a process and its living children have used."""
    process = psutil.Process(pid)
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
