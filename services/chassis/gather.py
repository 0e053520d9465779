"""Sends calls that wait together: one batch instead of many messages, without making a lone call wait.

Adaptive gathering, one Gatherer for each downstream. A fixed window is bistable (slow → small batches → slower) and
taxes the idle; "send when the previous returned" hardly batches at all; both were measured. So:

1. a request that is alone, or finds at least half of the active requests waiting here, sends at the end of the loop
   turn;
2. otherwise a timer is armed at a quarter of the moving average of request latency, at most 10 ms, from the first
   waiting item on;
3. it is cut short once half of the active requests, or batch_max, wait;
4. at most in_flight_max batches are under way; what falls due at that limit leaves with the next completion, and
   completions trigger nothing else;
5. an item joins only a batch that has not been sent;
6. a batch that is refused is sent again in halves, until only what is refused fails.

It knows nothing of what it sends, and makes no promise about batches: what two items of one batch may see is decided
by *send*.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from types import TracebackType
from typing import Generic, TypeVar

from opentelemetry.trace import Link, Span

from services.chassis import deadline, metrics, tracing
from services.chassis.errors import ServiceError

Q = TypeVar("Q")
R = TypeVar("R")

# The window feeds back on the latency it is taken from: without a cap it would run away.
WINDOW_S_MAX = 0.010
WINDOW_SHARE = 0.25
# Weight of the newest request in the moving average: it follows a change of load within some twenty requests.
LATENCY_WEIGHT = 0.1


class Load:
    """How many requests a process is working on, and how long they take: `with load.active(): …` around each."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.active_count = 0
        # Moving average; 0 before the first request has ended.
        self.latency_s = 0.0

    def active(self) -> "_Active":
        """Counts what runs inside as one active request."""
        return _Active(self)

    def ended(self, took_s: float) -> None:
        """Take a request out that took this long."""
        self.active_count -= 1
        known = self.latency_s
        self.latency_s = took_s if known == 0.0 else known + LATENCY_WEIGHT * (took_s - known)


class _Active:
    """One active request; a class because a generator would cost more than all it does."""

    __slots__ = ("_load", "_started_s")

    def __init__(self, load: Load) -> None:
        self._load = load
        self._started_s = 0.0

    def __enter__(self) -> None:
        self._load.active_count += 1
        self._started_s = self._load.now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._load.ended(self._load.now() - self._started_s)


class _Waiter(Generic[Q, R]):
    """A query that waits for its result, with what its call brought along."""

    __slots__ = ("context", "deadline", "future", "query", "since_ns")

    def __init__(self, query: Q, future: "asyncio.Future[R]") -> None:
        self.query = query
        self.future = future
        self.deadline = deadline.current_deadline()
        # Only a sampled call's context is needed: spans nest in it.
        self.context: Context | None = None
        self.since_ns = 0
        if tracing.sampled():
            self.context = copy_context()
            self.since_ns = time.time_ns()


class Gatherer(Generic[Q, R]):
    """Gathers what waits for one downstream: `await gatherer(query)`.

    Args:
        send: gives one result a query, in their order; a result that is an Exception is raised to its own waiter.
        load: of the requests that these calls are made for.
        batch_max: most queries in one batch.
        in_flight_max: most batches under way.
        name: for metrics and spans.
    """

    def __init__(
        self,
        send: Callable[[list[Q]], Awaitable[Sequence[R | Exception]]],
        load: Load,
        *,
        batch_max: int = 256,
        in_flight_max: int = 4,
        name: str,
    ) -> None:
        self._send = send
        self._load = load
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._name = name
        self._batch_size = metrics.GATHER_BATCH_SIZE.labels(name)
        self._waiting: list[_Waiter[Q, R]] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._turn_end: asyncio.Handle | None = None
        self._overdue = False

    async def __call__(self, query: Q) -> R:
        """The result of this query; a caller that is cancelled is forgotten, and nobody else notices.

        Raises:
            Exception: what *send* gave as this query's result, or raised.
        """
        loop = asyncio.get_running_loop()
        waiter: _Waiter[Q, R] = _Waiter(query, loop.create_future())
        # Only ever the list of those that have not been sent. For the consent read this is no detail but the
        # guarantee: joined to a read already under way, a Decide that began after Revoke had returned could still
        # be told what held before it.
        self._waiting.append(waiter)
        if self._turn_end is None and not self._overdue:
            self._schedule(loop)
        return await waiter.future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decide when what waits leaves: at the end of this turn, or when the timer says so."""
        count = len(self._waiting)
        if 2 * count >= self._load.active_count or count >= self._batch_max:
            self._turn_end = loop.call_soon(self._flush)
        elif self._timer is None:
            self._timer = loop.call_later(min(WINDOW_S_MAX, WINDOW_SHARE * self._load.latency_s), self._flush)

    def _flush(self) -> None:
        """Send what waits, as far as the limit of batches allows; the rest leaves with the next completion."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._turn_end = None
        waiting = [waiter for waiter in self._waiting if not waiter.future.done()]
        sent = 0
        while sent < len(waiting) and len(self._in_flight) < self._in_flight_max:
            self._start(waiting[sent : sent + self._batch_max])
            sent += self._batch_max
        self._waiting = waiting[sent:]
        self._overdue = bool(self._waiting)

    def _start(self, batch: list[_Waiter[Q, R]]) -> None:
        first = next((waiter for waiter in batch if waiter.context is not None), None)
        # The context of whichever call happened to flush must not leak in: its deadline is not the batch's.
        context = first.context if first is not None and first.context is not None else Context()
        context.run(deadline.carry_deadline, deadline.latest(waiter.deadline for waiter in batch))
        task = asyncio.get_running_loop().create_task(self._run(batch, first), context=context)
        self._in_flight.add(task)
        task.add_done_callback(self._completed)
        self._batch_size.observe(len(batch))

    def _completed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._overdue:
            self._flush()

    async def _run(self, batch: list[_Waiter[Q, R]], first: _Waiter[Q, R] | None) -> None:
        try:
            if first is None:
                results = await self._send([waiter.query for waiter in batch])
            else:
                results = await self._send_traced(batch, first)
            if len(results) != len(batch):
                raise RuntimeError(f"{self._name}: {len(results)} results for {len(batch)} queries")
        except Exception as error:
            if len(batch) == 1 or not isinstance(error, ServiceError) or error.passes:
                _fail(batch, error)
                return
            # One item may be what is refused, and the others must not fail with it: halves, one after the other, find
            # it in a few calls. An outage is everybody's, and is never asked about again.
            middle = len(batch) // 2
            await self._run(batch[:middle], None)
            await self._run(batch[middle:], None)
        except BaseException:
            # The process is going down; nobody may be left waiting.
            for waiter in batch:
                waiter.future.cancel()
            raise
        else:
            for waiter, result in zip(batch, results, strict=True):
                _settle(waiter.future, result)

    async def _send_traced(self, batch: list[_Waiter[Q, R]], first: _Waiter[Q, R]) -> Sequence[R | Exception]:
        """Send within a span of the first sampled waiter; the other sampled ones get a span that links to it."""
        tracer, name = tracing.tracer(), f"gather {self._name}"
        size = {tracing.COMITY_BATCH_SIZE: len(batch)}
        with tracer.start_as_current_span(name, attributes=size, start_time=first.since_ns) as span:
            others = [
                waiter.context.run(_linked_span, name, waiter.since_ns, span)
                for waiter in batch
                if waiter.context is not None and waiter is not first
            ]
            try:
                return await self._send([waiter.query for waiter in batch])
            finally:
                for other in others:
                    other.end()


def _linked_span(name: str, since_ns: int, to: Span) -> Span:
    return tracing.tracer().start_span(name, start_time=since_ns, links=[Link(to.get_span_context())])


def _settle(future: "asyncio.Future[R]", result: R | Exception) -> None:
    """Give one waiter its result, unless it has left."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
        # Seen, also where the waiter is cancelled between this line and its own next step.
        future.exception()
    else:
        future.set_result(result)


def _fail(batch: list[_Waiter[Q, R]], error: Exception) -> None:
    """Tell every waiter that its batch failed, each with an error of its own."""
    for waiter in batch:
        _settle(waiter.future, error.again() if isinstance(error, ServiceError) else error)
