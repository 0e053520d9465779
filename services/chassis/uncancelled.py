"""Work that is not left halfway when whoever asked for it has gone."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from services.chassis.deadline import carry_deadline
from services.chassis.errors import ServiceError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# Each is one question to another service, or one thing to load; beyond this a question ends with its caller.
UNDER_WAY_MAX = 1_000


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end even when the caller is cancelled; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Looked at, so that asyncio does not report it as never retrieved.
        task.cancelled() or task.exception()
        raise cancelled
    return task.result()


class Shared(Generic[K, T]):
    """Work whose result is kept for others: begun once, and finished when whoever asked for it has gone.

    A caller that is cancelled leaves at once. The work has no deadline but its own: where it takes longer than callers
    wait, each would else begin it again and none would ever end it.
    """

    def __init__(self) -> None:
        self._by_key: dict[K, asyncio.Task[T]] = {}
        self._under_way: set[asyncio.Task[T]] = set()

    async def __call__(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of *work*, or of the same work where it is under way.

        Raises:
            Exception: what *work* raises, a ServiceError to each caller anew.
        """
        task = self._by_key.get(key)
        if task is None:
            if len(self._under_way) >= UNDER_WAY_MAX:
                return await work()
            task = self._by_key[key] = asyncio.create_task(_without_deadline(work))
            self._under_way.add(task)
            task.add_done_callback(lambda ended: self._ended(key, ended))
        try:
            return await asyncio.shield(task)
        except ServiceError as error:
            raise error.again() from error

    def part(self) -> None:
        """Let nobody join what is under way: a later question must not get an answer from before now."""
        self._by_key.clear()

    def _ended(self, key: K, task: "asyncio.Task[T]") -> None:
        self._under_way.discard(task)
        if self._by_key.get(key) is task:
            del self._by_key[key]


async def _without_deadline(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    carry_deadline(None)
    return await work()
