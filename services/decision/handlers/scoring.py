"""Scores within the budget: cheap ones on the loop, dear ones in one bounded thread.

What scoring costs is estimated from trials, and no trial sees an input that a model is slow for. So a ranker that held
the loop up once is kept off it from then on, and one that goes on and on, or is wrong again and again, is taken off.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from services.chassis import tracing
from services.decision.domain.layout import Floats
from services.decision.domain.serving import Ranker
from services.decision.domain.vocabulary import StageOutcome
from services.decision.handlers.stages import tell_later, tell_outcome

T = TypeVar("T")

# The clock of a thread's CPU time, where the system has one.
_clock_of: Callable[[int], int] = getattr(time, "pthread_getcpuclockid", lambda _: time.CLOCK_MONOTONIC)

# Below this a hop to a thread and back costs about as much as it frees the loop for.
INLINE_COST_S = 0.0005
# An estimate is the best of a few tries: slow is only what takes so many times longer than may run on the loop.
SLOW_FACTOR = 4
# Work that waits behind these would be late anyway: it is refused instead of queued.
QUEUED_MAX = 16
# CPU time of one scoring; longer than any Decide may last.
RUN_S_MAX = 1.0
# After this it is ended: on the loop everything else waits for it, in the thread other models do.
ENDED_AFTER_S = {True: RUN_S_MAX, False: 4 * RUN_S_MAX}
# What does not end when it is told to, for so much longer, is left to itself, and another thread takes its place.
ABANDONED_AFTER_S = 2.0
WATCHED_EVERY_S = 0.25
# Of a scoring that does not compute, so many seconds count as one.
WAITING_SHARE = 15
# A wrong or slow scoring weighs as ten good ones; at a hundred the model is taken off. So one input that somebody made
# up takes nothing off, and a model that is wrong for more than one decision in ten does not stay.
STRIKE, STRIKES_MAX = 10, 100

HANGS = "did not come back from scoring"
SLOW = f"took more than {RUN_S_MAX:g} s to score, again and again"
RAISES = "failed to score, again and again"
WRONG = "gave scores that are no finite numbers, again and again"


class _WrongScoresError(Exception):
    """Another number of scores than rows, or scores that are no finite numbers."""


@dataclass(slots=True, eq=False)
class _Run:
    """A scoring that is under way.

    Args:
        clock_id: CPU time of the thread that computes it: a busy or a paused machine says nothing of a model.
    """

    ranker: Ranker
    is_inline: bool
    clock_id: int
    from_s: float = 0.0
    looks_count: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.from_s = time.clock_gettime(self.clock_id)

    def took_s(self) -> float:
        """CPU time so far."""
        return time.clock_gettime(self.clock_id) - self.from_s

    def seen_for_s(self) -> float:
        """CPU time so far, or where it waits instead of computing, a share of the time that it was looked at."""
        self.looks_count += 1
        try:
            return max(self.took_s(), self.looks_count * WATCHED_EVERY_S / WAITING_SHARE)
        except OSError:  # the thread has just ended
            return 0.0


class Scoring:
    """Runs rankers; one a process, because its thread is the process's second core at most.

    Args:
        take_off: called on the loop, with why, when a model is to decide no more.
    """

    def __init__(
        self,
        *,
        inline_cost_s: float = INLINE_COST_S,
        take_off: Callable[[Ranker, str], None] = lambda ranker, _: ranker.stop(),
    ) -> None:
        self._inline_cost_s = inline_cost_s
        self._take_off = take_off
        self._thread = _new_thread()
        self._queued: set[Future[Any]] = set()
        # Rankers that are dearer than their estimates say; strikes of those that were wrong.
        self._slow: WeakSet[Ranker] = WeakSet()
        self._strikes: WeakKeyDictionary[Ranker, int] = WeakKeyDictionary()
        self._off: WeakSet[Ranker] = WeakSet()
        self._runs: set[_Run] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = threading.Event()

    async def score(self, ranker: Ranker, matrix: Floats, until_s: float) -> tuple[StageOutcome, Floats | None]:
        """One finite score a row, if they are ready by *until_s* on the loop's clock."""
        with tracing.span("decision.score", {tracing.COMITY_ELIGIBLE_COUNT: len(matrix)}) as span:
            outcome, scores = await self._score(ranker, matrix, until_s)
            if span.is_recording():
                tell_outcome(span, outcome)
        return outcome, scores

    async def _score(self, ranker: Ranker, matrix: Floats, until_s: float) -> tuple[StageOutcome, Floats | None]:
        if ranker in self._off:
            return StageOutcome.UNAVAILABLE, None
        try:
            if ranker.cost_s(len(matrix)) <= self._inline_cost_s and ranker not in self._slow:
                scores: Floats | None = self._score_here(ranker, matrix)
            else:
                scores = await self._score_in_thread(ranker, matrix, until_s)
        except TimeoutError:
            return StageOutcome.LATE, None
        except _WrongScoresError:
            return StageOutcome.REFUSED, None
        except Exception as error:
            # A model that breaks costs its decisions the ranking, never the answer.
            tell_later("model failed", error, stage="score")
            return StageOutcome.UNAVAILABLE, None
        if scores is None:
            return StageOutcome.LATE, None
        return StageOutcome.OK, scores

    async def close(self) -> None:
        """Let the threads end. One that is stuck in a model cannot: Python waits for it when the process ends."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score_here(self, ranker: Ranker, matrix: Floats) -> Floats:
        """The scores, computed on the loop."""
        scores, took_s = self._judged(ranker, matrix, is_inline=True)
        if self._is_slow(took_s) and len(self._queued) < QUEUED_MAX:
            self._submit(self._keep_off_loop, ranker, matrix)
        return scores

    def _keep_off_loop(self, ranker: Ranker, matrix: Floats) -> None:
        """Keep the ranker off the loop if it is slow again: a garbage collection in the middle does not come twice."""
        _, took_s = self._judged(ranker, matrix, is_inline=False)
        if self._is_slow(took_s):
            self._slow.add(ranker)

    def _is_slow(self, took_s: float) -> bool:
        return took_s > SLOW_FACTOR * self._inline_cost_s

    async def _score_in_thread(self, ranker: Ranker, matrix: Floats, until_s: float) -> Floats | None:
        """The scores; None when too many wait already."""
        if len(self._queued) >= QUEUED_MAX:
            return None
        future = self._submit(partial(self._judged, is_inline=False), ranker, matrix)
        task = asyncio.current_task()
        assert task is not None, "this is awaited"
        async with asyncio.timeout_at(until_s):
            try:
                scores, _ = await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                if task.cancelling():
                    raise
                # It waited behind what did not end, and was given up with its thread.
                return None
        return scores

    def _judged(self, ranker: Ranker, matrix: Floats, *, is_inline: bool) -> tuple[Floats, float]:
        """The scores, and for how long this thread computed; whoever asked for them, what they are worth is counted."""
        self._begin()
        run = _Run(ranker, is_inline, _clock_of(threading.get_ident()))
        self._runs.add(run)
        try:
            scores, took_s = ranker.score(matrix), run.took_s()
        except Exception:
            self._tell(ranker, HANGS if run.ended else RAISES)
            raise
        finally:
            self._runs.discard(run)
        if _is_wrong(scores, matrix):
            self._tell(ranker, WRONG)
            raise _WrongScoresError
        # One that was ended may have come back all the same; it will not score again.
        self._tell(ranker, HANGS if run.ended else SLOW if took_s > RUN_S_MAX else "")
        return scores, took_s

    def _tell(self, ranker: Ranker, problem: str) -> None:
        """Have the loop count it; what is good is told only of a ranker that has strikes."""
        if problem or self._strikes.get(ranker):
            self._on_loop(self._judge, ranker, problem)

    def _judge(self, ranker: Ranker, problem: str) -> None:
        self._strikes[ranker] = strikes = max(0, self._strikes.get(ranker, 0) + (STRIKE if problem else -1))
        if problem and (strikes >= STRIKES_MAX or problem == HANGS) and ranker not in self._off:
            self._off.add(ranker)
            self._take_off(ranker, problem)

    def _begin(self) -> None:
        """Have scorings watched from the first one on."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._watch, name="scoring watch", daemon=True).start()

    def _watch(self) -> None:
        """End scorings that take too long; in a thread, because what they hold up may be the loop."""
        assert self._loop is not None, "it is watched from the first one on"
        while not self._loop.is_closed() and not self._closed.wait(WATCHED_EVERY_S):
            for run in list(self._runs):
                over_s = run.seen_for_s() - ENDED_AFTER_S[run.is_inline]
                if over_s > 0 and not run.ended:
                    run.ended = True
                    run.ranker.stop()
                elif over_s > ABANDONED_AFTER_S and not run.is_inline and run in self._runs:
                    self._runs.discard(run)
                    self._on_loop(self._abandon, run.ranker)

    def _on_loop(self, work: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None, "there is one since something runs"
        with suppress(RuntimeError):  # it was closed meanwhile
            self._loop.call_soon_threadsafe(work, *arguments)

    def _abandon(self, ranker: Ranker) -> None:
        """Leave the thread to what does not end, and take another one."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread = _new_thread()
        self._queued.clear()
        self._judge(ranker, HANGS)

    def _submit(self, work: Callable[..., T], *arguments: object) -> "Future[T]":
        """Have the thread do this when it comes to it."""
        self._begin()
        future = self._thread.submit(work, *arguments)
        self._queued.add(future)
        future.add_done_callback(partial(self._on_loop, self._queued.discard))
        return future


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")


def _is_wrong(scores: Floats, matrix: Floats) -> bool:
    return len(scores) != len(matrix) or not np.isfinite(scores).all()
