"""Lets writes that wait leave together: one commit for many callers, without making a lone caller wait.

Unlike chassis.gather, a batch that was sent is never given up: its outcome is a fact whether or not its callers
are still there.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.chassis.errors import Kind, ServiceError

Q = TypeVar("Q")
R = TypeVar("R")

# With two on their way one fills while the other waits for the disk; more only make the batches smaller.
IN_FLIGHT_MAX = 2
# How long the second batch is filled while the first is on its way: about what a commit takes.
LINGER_S = 0.002
# Waiting writes beyond this are refused: a database that is away must not fill the memory.
WAITING_MAX = 20_000


@dataclass(slots=True)
class _Waiter(Generic[Q, R]):
    item: Q
    bytes_count: int
    done: "asyncio.Future[R]"
    context: contextvars.Context


class GroupCommit(Generic[Q, R]):
    """`await group(item)`: the item's own result, once the batch it left in is committed.

    Args:
        commit: writes a batch; gives one result an item, in order, where an exception is raised to its waiter.
        batch_max: most items a batch.
        bytes_max: most bytes a batch (one item may exceed it alone).
    """

    def __init__(
        self,
        commit: Callable[[list[Q]], Awaitable[Sequence[R | Exception]]],
        *,
        batch_max: int,
        bytes_max: int,
    ) -> None:
        self._commit = commit
        self._batch_max = batch_max
        self._bytes_max = bytes_max
        self._waiting: deque[_Waiter[Q, R]] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None

    async def __call__(self, item: Q, *, bytes_count: int = 0, traced: bool = False) -> R:
        """The item's result. Cancelling the caller takes back an item that has not left yet, and nothing else.

        Args:
            bytes_count: size of the item.
            traced: the caller's span may be the batch's parent.

        Raises:
            ServiceError: EXHAUSTED (LOG_OVERLOADED) when too many wait already; what the commit gave for this item.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise ServiceError(
                Kind.EXHAUSTED, "LOG_OVERLOADED", "Too many writes wait for the database; try later.", retry_after_s=1.0
            )
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context() if traced else _NO_CONTEXT
        waiter: _Waiter[Q, R] = _Waiter(item, bytes_count, loop.create_future(), context)
        self._waiting.append(waiter)
        self._schedule(loop)
        return await waiter.done

    async def drain(self) -> None:
        """Returns when nothing waits or is in flight."""
        while self._batches or self._waiting:
            self._send()
            if self._batches:
                await asyncio.wait(self._batches)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decide when the next batch leaves: at once when idle, filled a little beside another, else after it."""
        if len(self._batches) >= IN_FLIGHT_MAX or not self._waiting:
            return
        if len(self._waiting) >= self._batch_max:
            self._send()
        elif self._timer is None:
            # The end of this turn of the loop: callers that became ready together leave together.
            self._timer = loop.call_later(LINGER_S, self._send) if self._batches else loop.call_soon(self._send)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._take() if len(self._batches) < IN_FLIGHT_MAX else []
        if batch:
            context = next((w.context for w in batch if w.context is not _NO_CONTEXT), _NO_CONTEXT)
            task = asyncio.get_running_loop().create_task(self._run(batch), context=context.copy())
            self._batches.add(task)
            task.add_done_callback(self._ended)

    def _take(self) -> list[_Waiter[Q, R]]:
        """The next batch, without those whose caller has gone."""
        batch: list[_Waiter[Q, R]] = []
        bytes_count = 0
        while self._waiting and len(batch) < self._batch_max:
            if self._waiting[0].done.done():
                self._waiting.popleft()
                continue
            bytes_count += self._waiting[0].bytes_count
            if batch and bytes_count > self._bytes_max:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: list[_Waiter[Q, R]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._commit([waiter.item for waiter in batch])
            assert len(results) == len(batch), "one result an item"
        except Exception as error:
            results = [error.again() if isinstance(error, ServiceError) else error for _ in batch]
        except asyncio.CancelledError:
            # Only the end of the process cancels a batch; its callers end with it.
            for waiter in batch:
                waiter.done.cancel()
            raise
        for waiter, result in zip(batch, results, strict=True):
            if waiter.done.done():
                continue
            if isinstance(result, Exception):
                waiter.done.set_exception(result)
                # Seen, also where the caller is cancelled before its own next step.
                waiter.done.exception()
            else:
                waiter.done.set_result(result)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._batches.discard(task)
        if not self._batches:
            self._send()
        else:
            self._schedule(asyncio.get_running_loop())


# Carries neither a span nor a deadline: a batch belongs to nobody.
_NO_CONTEXT = contextvars.Context()
