"""Sends calls that wait together: one batch instead of many messages, without making a lone call wait.

Adaptive gathering: see Gatherer. Knows nothing of what it sends.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")


class Load:
    """How many requests a process is working on, and how long they take."""

    @property
    def active_count(self) -> int:
        """Requests being worked on now."""
        raise NotImplementedError

    @property
    def latency_s(self) -> float:
        """Moving average of how long a request took; 0 before the first has ended."""
        raise NotImplementedError

    @contextmanager
    def active(self) -> Iterator[None]:
        """Count what runs inside as one active request."""
        raise NotImplementedError
        yield


class Gatherer(Generic[Q, R]):
    """Gathers what waits for one downstream: `await gatherer(query)`."""

    def __init__(
        self,
        send: Callable[[list[Q]], Awaitable[Sequence[R | Exception]]],
        load: Load,
        *,
        batch_max: int = 256,
        in_flight_max: int = 4,
        name: str,
    ) -> None:
        raise NotImplementedError

    async def __call__(self, query: Q) -> R:
        """The result of this query.

        Raises:
            Exception: what *send* raised, or what it gave as this query's result.
        """
        raise NotImplementedError

    async def drain(self) -> None:
        """Returns when nothing waits or is in flight."""
        raise NotImplementedError
