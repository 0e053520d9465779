"""Adaptive gathering, on a loop whose time passes only when everybody waits."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from services.chassis.deadline import current_deadline, deadline_scope, remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.gather import WINDOW_S_MAX, Gatherer, Load
from tests.virtual_time import run

T = TypeVar("T")


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Downstream:
    """Answers a query with itself, after a while, and remembers what was sent when."""

    def __init__(self, takes_s: float = 0.001) -> None:
        self.batches: list[list[int]] = []
        self.sent_s: list[float] = []
        self.takes_s = takes_s
        self.in_flight = 0
        self.in_flight_most = 0

    async def send(self, queries: list[int]) -> Sequence[int | Exception]:
        self.batches.append(queries)
        self.sent_s.append(now_s())
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.in_flight -= 1
        return queries


def busy(count: int, latency_s: float) -> Load:
    """A load of that many active requests which take that long."""
    load = Load()
    load.active_count, load.latency_s = count, latency_s
    return load


def test_a_lone_request_leaves_at_the_end_of_the_turn() -> None:
    """Idle costs nothing: no timer, no waiting."""
    down = Downstream()

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(1, 1.0), name="t")
        assert await gatherer(7) == 7
        assert down.sent_s == [0.0]

    run(main())


def test_what_comes_in_one_turn_leaves_together() -> None:
    """The end of the turn, not the first item, sends."""
    down = Downstream()

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(4, 1.0), name="t")
        assert await asyncio.gather(*(gatherer(n) for n in range(4))) == [0, 1, 2, 3]
        assert down.batches == [[0, 1, 2, 3]]

    run(main())


def test_under_load_the_window_is_a_quarter_of_the_latency() -> None:
    """It is counted from the first waiting item."""
    down = Downstream()

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(100, 0.020), name="t")
        first = asyncio.ensure_future(gatherer(1))
        await asyncio.sleep(0.003)
        assert down.batches == []
        second = asyncio.ensure_future(gatherer(2))
        await asyncio.gather(first, second)
        assert down.batches == [[1, 2]]
        assert down.sent_s == [pytest.approx(0.005)]

    run(main())


def test_the_window_is_never_longer_than_its_cap() -> None:
    """It feeds back on the latency that it is taken from."""
    down = Downstream()

    async def main() -> None:
        await Gatherer(down.send, busy(100, 60.0), name="t")(1)
        assert down.sent_s == [pytest.approx(WINDOW_S_MAX)]

    run(main())


def test_half_of_the_active_requests_cut_the_window_short() -> None:
    """Who waits here knows that as many others are elsewhere."""
    down = Downstream()

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(10, 0.040), name="t")
        waiting = [asyncio.ensure_future(gatherer(n)) for n in range(4)]
        await asyncio.sleep(0.002)
        assert down.batches == []
        waiting.append(asyncio.ensure_future(gatherer(4)))
        await asyncio.gather(*waiting)
        assert down.batches == [[0, 1, 2, 3, 4]]
        assert down.sent_s == [pytest.approx(0.002)]

    run(main())


def test_a_full_batch_leaves_and_none_is_larger() -> None:
    """batch_max cuts the window short and splits what is more."""
    down = Downstream()

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(1000, 0.040), batch_max=8, name="t")
        assert await asyncio.gather(*(gatherer(n) for n in range(20))) == list(range(20))
        assert [len(batch) for batch in down.batches] == [8, 8, 4]
        assert down.sent_s == [0.0, 0.0, 0.0]

    run(main())


def test_an_item_never_joins_a_batch_that_was_sent() -> None:
    """A Decide that begins after a consent read has left is answered by a later read."""
    down = Downstream(takes_s=1.0)

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(1, 0.0), name="t")
        first = asyncio.ensure_future(gatherer(1))
        await asyncio.sleep(0.5)
        second = asyncio.ensure_future(gatherer(2))
        assert (await first, await second) == (1, 2)
        assert down.batches == [[1], [2]]
        assert down.sent_s == [0.0, 0.5]

    run(main())


def test_batches_in_flight_are_limited_and_the_overdue_leave_with_a_completion() -> None:
    """What falls due at the limit waits together and leaves at once when one ends."""
    down = Downstream(takes_s=1.0)

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(1, 0.0), in_flight_max=2, name="t")
        waiting = []
        for n in range(6):
            waiting.append(asyncio.ensure_future(gatherer(n)))
            await asyncio.sleep(0.1)
        assert await asyncio.gather(*waiting) == list(range(6))
        assert down.in_flight_most == 2
        assert down.batches == [[0], [1], [2, 3, 4, 5]]
        assert down.sent_s == [0.0, pytest.approx(0.1), pytest.approx(1.0)]

    run(main())


def test_a_completion_alone_sends_nothing() -> None:
    """What is not due yet waits for its own window."""
    down = Downstream(takes_s=0.002)

    async def main() -> None:
        load = busy(1, 0.040)
        gatherer = Gatherer(down.send, load, name="t")
        first = asyncio.ensure_future(gatherer(1))
        await asyncio.sleep(0.001)
        load.active_count = 100
        second = asyncio.ensure_future(gatherer(2))
        await asyncio.gather(first, second)
        assert down.sent_s == [0.0, pytest.approx(0.011)]

    run(main())


def test_an_exception_result_is_raised_at_its_own_waiter_only() -> None:
    """One query that cannot be answered costs no other."""

    async def send(queries: list[int]) -> Sequence[int | Exception]:
        return [ServiceError(Kind.NOT_FOUND, "ODD", "odd") if query % 2 else query for query in queries]

    async def main() -> None:
        gatherer = Gatherer(send, busy(4, 0.0), name="t")
        results = await asyncio.gather(*(gatherer(n) for n in range(4)), return_exceptions=True)
        assert [results[0], results[2]] == [0, 2]
        assert all(isinstance(results[n], ServiceError) for n in (1, 3))

    run(main())


@pytest.mark.parametrize("error", [ServiceError(Kind.UNAVAILABLE, "AWAY", "away"), ValueError("a bug")])
def test_a_failed_send_reaches_every_waiter(error: Exception) -> None:
    """Nobody is left waiting, and the next batch is sent as if nothing had been."""
    failures = [error]

    async def send(queries: list[int]) -> Sequence[int | Exception]:
        if failures:
            raise failures.pop()
        return queries

    async def main() -> None:
        gatherer = Gatherer(send, busy(3, 0.0), name="t")
        results = await asyncio.gather(*(gatherer(n) for n in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [type(error)] * 3
        assert [str(result) for result in results] == [str(error)] * 3
        assert await gatherer(9) == 9

    run(main())


def test_a_result_too_few_is_a_bug_and_gives_nobody_anothers() -> None:
    """Where results and queries cannot be matched, all fail."""

    async def send(queries: list[int]) -> Sequence[int | Exception]:
        return queries[1:]

    async def main() -> None:
        gatherer = Gatherer(send, busy(3, 0.0), name="t")
        results = await asyncio.gather(*(gatherer(n) for n in range(3)), return_exceptions=True)
        assert all(isinstance(result, RuntimeError) for result in results)

    run(main())


def test_a_cancelled_waiter_is_not_sent() -> None:
    """What nobody waits for any more is not asked; a batch without anybody is none."""
    down = Downstream()

    async def main() -> None:
        gatherer = Gatherer(down.send, busy(100, 0.040), name="t")
        waiting = [asyncio.ensure_future(gatherer(n)) for n in range(3)]
        await asyncio.sleep(0.001)
        waiting[1].cancel()
        assert (await waiting[0], await waiting[2]) == (0, 2)
        assert down.batches == [[0, 2]]
        alone = asyncio.ensure_future(gatherer(4))
        await asyncio.sleep(0.001)
        alone.cancel()
        await asyncio.sleep(1.0)
        assert down.batches == [[0, 2]]

    run(main())


async def _storm(rng: random.Random, send: Callable[[list[int]], Any], count: int) -> tuple[int, int, int]:
    """Thousands of callers of whom many are cancelled at random moments; (answered, cancelled, mixed)."""
    load = Load(now_s)
    gatherer: Gatherer[int, tuple[str, int]] = Gatherer(send, load, batch_max=16, in_flight_max=3, name="storm")
    outcome = {"answered": 0, "cancelled": 0, "mixed": 0}

    async def caller(key: int, starts_s: float) -> None:
        await asyncio.sleep(starts_s)
        with load.active():
            try:
                value = await gatherer(key)
            except asyncio.CancelledError:
                outcome["cancelled"] += 1
                raise
            except ServiceError as error:
                value = ("error", int(error.message))
        outcome["answered"] += 1
        outcome["mixed"] += value[1] != key

    async def cancel(task: "asyncio.Task[None]", at_s: float) -> None:
        await asyncio.sleep(at_s)
        task.cancel()

    starts = [rng.uniform(0.0, 2.0) for _ in range(count)]
    callers = [asyncio.ensure_future(caller(key, starts_s)) for key, starts_s in enumerate(starts)]
    # Around the time that an answer takes: before the batch is sent, while it is under way, and just after it.
    await asyncio.gather(
        *(
            cancel(task, starts_s + rng.uniform(0.0, 0.05))
            for task, starts_s in zip(callers, starts, strict=True)
            if rng.random() < 0.5
        )
    )
    await asyncio.gather(*callers, return_exceptions=True)
    assert load.active_count == 0
    return outcome["answered"], outcome["cancelled"], outcome["mixed"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_storm_of_cancelled_callers_mixes_no_results(seed: int) -> None:
    """Every answer carries the key that was asked for, whoever was cancelled beside it."""
    rng, count = random.Random(seed), 4000

    async def send(queries: list[int]) -> Sequence[tuple[str, int] | Exception]:
        await asyncio.sleep(rng.uniform(0.0, 0.03))
        return [
            ServiceError(Kind.NOT_FOUND, "NONE", str(query)) if query % 7 == 0 else ("ok", query) for query in queries
        ]

    answered, cancelled, mixed = run(_storm(rng, send, count))
    assert mixed == 0
    assert answered > count / 3
    assert cancelled > count / 10


def test_results_that_are_shifted_are_caught_by_the_storm() -> None:
    """The storm has teeth: a downstream that answers one place off is seen."""

    async def send(queries: list[int]) -> Sequence[tuple[str, int] | Exception]:
        await asyncio.sleep(0.01)
        return [("ok", query) for query in (*queries[1:], queries[0])]

    _, _, mixed = run(_storm(random.Random(4), send, 1000))
    assert mixed > 0


def test_a_batch_has_the_last_deadline_of_its_waiters() -> None:
    """A caller that is short of time does not take it from the others, nor one without a deadline its patience."""
    seen: list[float | None] = []

    async def send(queries: list[int]) -> Sequence[int | Exception]:
        seen.append(remaining_s())
        return queries

    async def ask(gatherer: Gatherer[int, int], seconds: float | None) -> int:
        if seconds is None:
            return await gatherer(0)
        with deadline_scope(seconds, now_s):
            return await gatherer(0)

    async def main() -> None:
        gatherer = Gatherer(send, busy(2, 0.0), name="t")
        await asyncio.gather(ask(gatherer, 1.0), ask(gatherer, 3.0), ask(gatherer, 2.0))
        await asyncio.gather(ask(gatherer, 1.0), ask(gatherer, None))
        assert seen == [3.0, None]
        assert current_deadline() is None

    run(main())


def test_load_counts_and_averages() -> None:
    """The average follows what requests take; the first one sets it."""
    clock = [0.0]
    load = Load(lambda: clock[0])
    with load.active(), load.active():
        assert load.active_count == 2
        clock[0] = 1.0
    assert (load.active_count, load.latency_s) == (0, 1.0)
    with load.active():
        clock[0] = 3.0
    assert load.latency_s == pytest.approx(1.1)


@pytest.mark.parametrize("bad", [{3}, {0, 7}, set(range(8))])
def test_what_is_refused_costs_the_rest_of_its_batch_nothing(bad: set[int]) -> None:
    """A batch that is refused is sent again in halves, until only what is refused fails."""

    async def send(queries: list[int]) -> Sequence[int]:
        if bad.intersection(queries):
            raise ServiceError(Kind.INVALID, "INVALID_FIELD", "one of them is none")
        return queries

    async def main() -> None:
        gatherer = Gatherer(send, Load(), name="t")
        results = await asyncio.gather(*(gatherer(number) for number in range(8)), return_exceptions=True)
        assert {number for number, result in enumerate(results) if isinstance(result, ServiceError)} == bad
        assert [result for result in results if isinstance(result, int)] == [k for k in range(8) if k not in bad]

    run(main())


def test_outage_is_asked_about_once() -> None:
    """What fails for everybody is not sent again in halves: an overloaded service would get twice the calls."""
    calls: list[int] = []

    async def send(queries: list[int]) -> Sequence[int]:
        calls.append(len(queries))
        raise ServiceError(Kind.UNAVAILABLE, "AWAY", "away")

    async def main() -> None:
        gatherer = Gatherer(send, Load(), name="t")
        results = await asyncio.gather(*(gatherer(number) for number in range(8)), return_exceptions=True)
        assert all(isinstance(result, ServiceError) for result in results)

    run(main())
    assert calls == [8]
