"""Scores within the budget: cheap ones on the loop, dear ones in one bounded thread."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from services.chassis import tracing
from services.decision.domain.layout import Floats
from services.decision.domain.serving import Ranker
from services.decision.domain.vocabulary import StageOutcome
from services.decision.handlers.stages import tell_later

# Below this a hop to a thread and back costs about as much as it frees the loop for.
INLINE_COST_S = 0.0005
# Work that waits behind these would be late anyway: it is refused instead of queued.
QUEUED_MAX = 16


class Scoring:
    """Runs rankers; one a process, because its thread is the process's second core at most."""

    def __init__(self, *, inline_cost_s: float = INLINE_COST_S) -> None:
        self._inline_cost_s = inline_cost_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._queued_count = 0

    async def score(self, ranker: Ranker, matrix: Floats, until_s: float) -> tuple[StageOutcome, Floats | None]:
        """One finite score a row, if they are ready by *until_s* on the loop's clock."""
        with tracing.span("decision.score", {tracing.COMITY_ELIGIBLE_COUNT: len(matrix)}):
            try:
                if ranker.cost_s(len(matrix)) <= self._inline_cost_s:
                    scores: Floats | None = ranker.score(matrix)
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

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _score_in_thread(self, ranker: Ranker, matrix: Floats, until_s: float) -> Floats | None:
        """The scores; None when too many wait already."""
        if self._queued_count >= QUEUED_MAX:
            return None
        self._queued_count += 1
        future = self._thread.submit(ranker.score, matrix)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._dequeue))
        async with asyncio.timeout_at(until_s):
            return await asyncio.wrap_future(future)

    def _dequeue(self) -> None:
        self._queued_count -= 1
