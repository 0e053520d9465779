"""Where a ranker is run: on the loop while it is quick, in the thread once it held the loop up."""

import asyncio
import gc
import math
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.decision.domain.layout import Floats
from services.decision.domain.vocabulary import StageOutcome
from services.decision.handlers.scoring import SLOW_FACTOR, Scoring
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


def compute(seconds: float) -> None:
    """Keep the processor busy for that long; what others do on the machine does not count."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


@pytest.fixture
async def scoring() -> AsyncIterator[Scoring]:
    """Without garbage collections: one that falls into a run counts as time of the ranker."""
    gc.disable()
    scoring = Scoring(inline_cost_s=INLINE_COST_S)
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
