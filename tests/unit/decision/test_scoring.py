"""Where a ranker is run: on the loop while it is quick, in the thread once it held the loop up; when it goes off."""

import asyncio
import gc
import itertools
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import numpy as np
import pytest

from services.decision.domain.layout import Floats
from services.decision.domain.vocabulary import StageOutcome
from services.decision.handlers import scoring as scoring_module
from services.decision.handlers.scoring import HANGS, RAISES, SLOW, SLOW_FACTOR, STRIKE, STRIKES_MAX, WRONG, Scoring
from tests.waiting import eventually

INLINE_COST_S = 0.0005
SLOW_S = 2 * SLOW_FACTOR * INLINE_COST_S
MATRIX = np.zeros((3, 2), dtype=np.float32)


class Ranker:
    """Quick in its trials; slow for as many calls as it is told to be. Remembers where it ran."""

    version = "ranker@1"
    feature_set_version = "features-1"

    def __init__(self, *, cost_s: float = 0.0, slow_calls: float = 0) -> None:
        self.ran_in: list[threading.Thread] = []
        self._cost_s = cost_s
        self.slow_calls = slow_calls

    def score(self, matrix: Floats) -> Floats:
        if len(self.ran_in) < self.slow_calls:
            compute(SLOW_S)
        self.ran_in.append(threading.current_thread())
        return np.zeros(len(matrix), dtype=np.float32)

    def cost_s(self, rows_count: int) -> float:
        return self._cost_s

    def stop(self) -> None:
        return None


class Endless(Ranker):
    """Computes until it is told to stop."""

    def __init__(self, *, cost_s: float) -> None:
        super().__init__(cost_s=cost_s)
        self.began, self.may_end = threading.Event(), threading.Event()

    def score(self, matrix: Floats) -> Floats:
        self.began.set()
        while not self.may_end.is_set():
            compute(0.001)
        raise RuntimeError("was told to stop")

    def stop(self) -> None:
        self.may_end.set()


class Stuck(Endless):
    """Waits for ever, whatever it is told; a thread that computed for ever would keep the test from going on."""

    def score(self, matrix: Floats) -> Floats:
        self.began.set()
        self.may_end.wait()
        raise RuntimeError("the test is over")

    def stop(self) -> None:
        return None


class Returning(Endless):
    """Computes until it is told to stop, and then gives scores all the same: it was in its last operator."""

    def score(self, matrix: Floats) -> Floats:
        with suppress(RuntimeError):
            super().score(matrix)
        return np.zeros(len(matrix), dtype=np.float32)


class Wrong(Ranker):
    """Gives what it is told to in turn; None: raises."""

    def __init__(self, *scores: float | None, cost_s: float = 0.0) -> None:
        super().__init__(cost_s=cost_s)
        self._scores = itertools.cycle(scores)

    def score(self, matrix: Floats) -> Floats:
        if (value := next(self._scores)) is None:
            raise RuntimeError("broken model")
        return np.full(len(matrix), value, dtype=np.float32)


TakenOff = list[tuple[Ranker, str]]


def compute(seconds: float) -> None:
    """Keep the processor busy for that long; what others do on the machine does not count."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


@pytest.fixture
def taken_off() -> TakenOff:
    """Rankers that were taken off, and why."""
    return []


@pytest.fixture
async def scoring(taken_off: TakenOff) -> AsyncIterator[Scoring]:
    """Without garbage collections: one that falls into a run counts as time of the ranker."""
    gc.disable()
    scoring = Scoring(inline_cost_s=INLINE_COST_S, take_off=lambda ranker, why: taken_off.append((ranker, why)))  # type: ignore[arg-type]
    yield scoring
    await scoring.close()
    gc.enable()


async def score(scoring: Scoring, ranker: Ranker) -> None:
    """Score without a bound, so that a busy machine is no reason to be late."""
    outcome, scores = await scoring.score(ranker, MATRIX, asyncio.get_running_loop().time() + 3600)
    assert outcome is StageOutcome.OK
    assert scores is not None


async def test_a_quick_ranker_runs_on_the_loop(scoring: Scoring) -> None:
    """A hop to a thread would cost more than the scoring."""
    ranker = Ranker()
    for _ in range(5):
        await score(scoring, ranker)
    assert set(ranker.ran_in) == {threading.current_thread()}


def test_watch_ends_with_the_loop_that_it_watches_for() -> None:
    """Whoever is not closed leaves no thread behind that looks again and again."""
    before = threading.enumerate()
    assert asyncio.run(Scoring().score(Ranker(), MATRIX, math.inf))[0] is StageOutcome.OK
    (watch,) = (one for one in threading.enumerate() if one.name == "scoring watch" and one not in before)
    watch.join(30)
    assert not watch.is_alive()


async def test_a_dear_ranker_never_runs_on_the_loop(scoring: Scoring) -> None:
    """Its estimate alone says so."""
    ranker = Ranker(cost_s=2 * INLINE_COST_S)
    await score(scoring, ranker)
    assert threading.current_thread() not in ranker.ran_in


async def test_a_ranker_that_held_the_loop_up_leaves_it(scoring: Scoring) -> None:
    """No trial saw the input that it is slow for; after such a run it computes in the thread, quick or not."""
    ranker, other = Ranker(slow_calls=math.inf), Ranker()
    await score(scoring, ranker)

    async def has_left() -> bool:
        await score(scoring, ranker)
        return ranker.ran_in[-1] is not threading.current_thread()

    await eventually(has_left)
    ranker.slow_calls = 0
    for _ in range(5):
        assert await has_left()
    await score(scoring, other)
    assert other.ran_in == [threading.current_thread()]


async def test_one_slow_run_for_another_reason_changes_nothing(scoring: Scoring) -> None:
    """A garbage collection falls into whatever runs: the ranker is tried again, and is quick."""
    ranker = Ranker(slow_calls=1)
    await score(scoring, ranker)

    async def was_tried_again() -> bool:
        return len(ranker.ran_in) == 2

    await eventually(was_tried_again)
    assert ranker.ran_in[1] is not threading.current_thread()
    # The thread does one thing after the other: when this has run, the verdict on the second try stands.
    await score(scoring, Ranker(cost_s=1.0))
    await score(scoring, ranker)
    assert ranker.ran_in[2] is threading.current_thread()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that waits for hundredths instead of seconds."""
    monkeypatch.setattr(scoring_module, "WATCHED_EVERY_S", 0.01)
    monkeypatch.setattr(scoring_module, "ENDED_AFTER_S", {True: 0.02, False: 0.05})
    monkeypatch.setattr(scoring_module, "ABANDONED_AFTER_S", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("cost_s", [0.0, 1.0])
async def test_a_ranker_that_does_not_come_back_is_ended_and_taken_off(
    scoring: Scoring, taken_off: TakenOff, cost_s: float
) -> None:
    """On the loop, which it would hold up for ever, and in the thread; another ranker goes on."""
    ranker = Endless(cost_s=cost_s)
    outcome, _ = await scoring.score(ranker, MATRIX, asyncio.get_running_loop().time() + 3600)
    assert outcome is StageOutcome.UNAVAILABLE

    async def is_off() -> bool:
        return taken_off == [(ranker, HANGS)]

    await eventually(is_off)
    assert (await scoring.score(ranker, MATRIX, 0.0))[0] is StageOutcome.UNAVAILABLE
    await score(scoring, Ranker(cost_s=cost_s))


@pytest.mark.usefixtures("impatient")
async def test_ranker_that_was_ended_is_off_though_it_came_back(scoring: Scoring, taken_off: TakenOff) -> None:
    """It will not score again: without this it would fail a hundred times before anybody is told."""
    ranker = Returning(cost_s=1.0)
    await score(scoring, ranker)

    async def is_off() -> bool:
        return taken_off == [(ranker, HANGS)]

    await eventually(is_off)


@pytest.mark.usefixtures("impatient")
async def test_six_stuck_rankers_leave_the_thread_to_the_others(scoring: Scoring, taken_off: TakenOff) -> None:
    """They do not even heed being told to stop: each is left to itself, and off; what waited behind it was late."""
    stuck = [Stuck(cost_s=1.0) for _ in range(6)]
    forever_s = asyncio.get_running_loop().time() + 3600
    try:
        for ranker in stuck:
            hanging = asyncio.create_task(scoring.score(ranker, MATRIX, forever_s))
            await asyncio.to_thread(ranker.began.wait)
            behind = Ranker(cost_s=1.0)
            assert (await scoring.score(behind, MATRIX, forever_s))[0] is StageOutcome.LATE
            assert taken_off[-1] == (ranker, HANGS)
            await score(scoring, behind)
            hanging.cancel()
            await asyncio.wait({hanging})
        assert len(taken_off) == 6
    finally:
        for ranker in stuck:
            ranker.may_end.set()


@pytest.mark.parametrize("cost_s", [0.0, 1.0])
@pytest.mark.parametrize(("scores", "why"), [(None, RAISES), (math.nan, WRONG), (math.inf, WRONG)])
async def test_a_ranker_that_is_wrong_again_and_again_is_taken_off(
    scoring: Scoring, taken_off: TakenOff, scores: float | None, why: str, cost_s: float
) -> None:
    """After some times, wherever it runs; once is not enough."""
    ranker = Wrong(scores, cost_s=cost_s)
    for _ in range(STRIKES_MAX // STRIKE):
        assert not taken_off
        outcome, _ = await scoring.score(ranker, MATRIX, asyncio.get_running_loop().time() + 3600)
        assert outcome in (StageOutcome.UNAVAILABLE, StageOutcome.REFUSED)

    async def is_off() -> bool:
        return taken_off == [(ranker, why)]

    await eventually(is_off)


@pytest.mark.parametrize(("goods", "goes"), [(4, True), (STRIKE, False)])
async def test_a_ranker_that_is_wrong_now_and_then_goes_by_how_often(
    scoring: Scoring, taken_off: TakenOff, goods: int, goes: bool
) -> None:
    """An input that somebody made up takes nothing off; what is wrong for one decision in five does not stay."""
    ranker = Wrong(math.nan, *[1.0] * goods)
    for _ in range(2 * STRIKES_MAX):
        await scoring.score(ranker, MATRIX, asyncio.get_running_loop().time() + 3600)
        await asyncio.sleep(0)
    assert bool(taken_off) is goes


async def test_a_ranker_that_takes_far_too_long_again_and_again_is_taken_off(
    scoring: Scoring, taken_off: TakenOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody waited for it: it keeps the thread from the others."""
    monkeypatch.setattr(scoring_module, "RUN_S_MAX", SLOW_S / 2)
    ranker = Ranker(cost_s=1.0, slow_calls=math.inf)

    async def is_off() -> bool:
        await scoring.score(ranker, MATRIX, asyncio.get_running_loop().time() + 3600)
        return taken_off == [(ranker, SLOW)]

    await eventually(is_off)
