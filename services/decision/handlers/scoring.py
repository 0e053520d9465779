"""Scores within the budget: cheap ones on the loop, dear ones in one bounded thread.

What scoring costs is estimated from trials, and no trial sees an input that a model is slow for. So a ranker that held
the loop up once is kept off it from then on.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakSet

import numpy as np

from services.chassis import tracing
from services.decision.domain.layout import Floats
from services.decision.domain.serving import Ranker
from services.decision.domain.vocabulary import StageOutcome
from services.decision.handlers.stages import tell_later, tell_outcome

T = TypeVar("T")

# Below this a hop to a thread and back costs about as much as it frees the loop for.
INLINE_COST_S = 0.0005
# An estimate is the best of a few tries: slow is only what takes so many times longer than may run on the loop.
SLOW_FACTOR = 4
# Work that waits behind these would be late anyway: it is refused instead of queued.
QUEUED_MAX = 16


class Scoring:
    """Runs rankers; one a process, because its thread is the process's second core at most."""

    def __init__(self, *, inline_cost_s: float = INLINE_COST_S) -> None:
        self._inline_cost_s = inline_cost_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._queued_count = 0
        # Rankers that are dearer than their estimates say.
        self._slow: WeakSet[Ranker] = WeakSet()

    async def score(self, ranker: Ranker, matrix: Floats, until_s: float) -> tuple[StageOutcome, Floats | None]:
        """One finite score a row, if they are ready by *until_s* on the loop's clock."""
        with tracing.span("decision.score", {tracing.COMITY_ELIGIBLE_COUNT: len(matrix)}) as span:
            outcome, scores = await self._score(ranker, matrix, until_s)
            if span.is_recording():
                tell_outcome(span, outcome)
        return outcome, scores

    async def _score(self, ranker: Ranker, matrix: Floats, until_s: float) -> tuple[StageOutcome, Floats | None]:
        try:
            if ranker.cost_s(len(matrix)) <= self._inline_cost_s and ranker not in self._slow:
                scores: Floats | None = self._score_here(ranker, matrix)
            else:
                scores = await self._score_in_thread(ranker, matrix, until_s)
        except TimeoutError:
            return StageOutcome.LATE, None
        except Exception as error:
            # A model that breaks costs its decisions the ranking, never the answer.
            tell_later("model failed", error, stage="score")
            return StageOutcome.UNAVAILABLE, None
        if scores is None:
            return StageOutcome.LATE, None
        if len(scores) != len(matrix) or not np.isfinite(scores).all():
            return StageOutcome.REFUSED, None
        return StageOutcome.OK, scores

    async def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score_here(self, ranker: Ranker, matrix: Floats) -> Floats:
        """The scores, computed on the loop."""
        scores, took_s = _timed(ranker, matrix)
        if self._is_slow(took_s) and self._queued_count < QUEUED_MAX:
            self._submit(self._judge, ranker, matrix)
        return scores

    def _judge(self, ranker: Ranker, matrix: Floats) -> None:
        """Keep the ranker off the loop if it is slow again: a garbage collection in the middle does not come twice."""
        _, took_s = _timed(ranker, matrix)
        if self._is_slow(took_s):
            self._slow.add(ranker)

    def _is_slow(self, took_s: float) -> bool:
        return took_s > SLOW_FACTOR * self._inline_cost_s

    async def _score_in_thread(self, ranker: Ranker, matrix: Floats, until_s: float) -> Floats | None:
        """The scores; None when too many wait already."""
        if self._queued_count >= QUEUED_MAX:
            return None
        future = self._submit(ranker.score, matrix)
        async with asyncio.timeout_at(until_s):
            return await asyncio.wrap_future(future)

    def _submit(self, work: Callable[..., T], *arguments: object) -> "Future[T]":
        """Have the thread do this when it comes to it."""
        loop = asyncio.get_running_loop()
        future = self._thread.submit(work, *arguments)
        self._queued_count += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._dequeue))
        return future

    def _dequeue(self) -> None:
        self._queued_count -= 1


def _timed(ranker: Ranker, matrix: Floats) -> tuple[Floats, float]:
    """The scores, and for how long this thread computed: waiting for a busy machine's core says nothing of a model."""
    began_s = time.thread_time()
    scores = ranker.score(matrix)
    return scores, time.thread_time() - began_s
