"""How long the current call may still take: set once where it comes in, read wherever it goes.

The deadline travels in a context variable, so tasks that a call starts inherit it and no function has to pass it on.
It only ever shrinks: a scope inside a scope cannot give back time that the caller does not have.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Monotonic = Callable[[], float]

# (when the call must have ended, the clock that this is read on): the clock comes along so that a test can hold it.
_current: ContextVar[tuple[float, Monotonic] | None] = ContextVar("deadline", default=None)


def remaining_s() -> float | None:
    """Seconds left of the current call, never below 0; None when nobody set a deadline."""
    current = _current.get()
    if current is None:
        return None
    left_s = current[0] - current[1]()
    return left_s if left_s > 0.0 else 0.0


def shave(seconds: float) -> float:
    """What a call onward may take: the time left less *seconds* for the way back; infinite without a deadline."""
    current = _current.get()
    if current is None:
        return math.inf
    left_s = current[0] - current[1]() - seconds
    return left_s if left_s > 0.0 else 0.0


def start_deadline(seconds: float, now: Monotonic = time.monotonic) -> None:
    """Give the current task *seconds* from now, for the rest of its life: for the edge, where each call is a task."""
    _current.set((now() + seconds, now))


@contextmanager
def deadline_scope(seconds: float, now: Monotonic = time.monotonic) -> Iterator[None]:
    """Give what runs inside at most *seconds*, or what is left of the scope outside if that is less."""
    outer_s = remaining_s()
    allowed_s = seconds if outer_s is None else min(seconds, outer_s)
    token = _current.set((now() + allowed_s, now))
    try:
        yield
    finally:
        _current.reset(token)
