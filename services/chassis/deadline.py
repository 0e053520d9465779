"""How long the current call may still take: set once where it comes in, read wherever it goes.

The deadline travels in a context variable, so tasks that a call starts inherit it and no function has to pass it on.
A scope inside a scope only ever shrinks it: nobody can give back time that the caller does not have.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

Monotonic = Callable[[], float]


class Deadline(NamedTuple):
    """When a call must have ended, on the clock that comes along so that a test can hold it."""

    at_s: float
    now: Monotonic


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def remaining_s() -> float | None:
    """Seconds left of the current call, never below 0; None when nobody set a deadline."""
    current = _current.get()
    if current is None:
        return None
    left_s = current.at_s - current.now()
    return left_s if left_s > 0.0 else 0.0


def shave(seconds: float) -> float:
    """What a call onward may take: the time left less *seconds* for the way back; infinite without a deadline."""
    current = _current.get()
    if current is None:
        return math.inf
    left_s = current.at_s - current.now() - seconds
    return left_s if left_s > 0.0 else 0.0


@contextmanager
def deadline_scope(seconds: float, now: Monotonic = time.monotonic) -> Iterator[None]:
    """Give what runs inside at most *seconds*, or what is left of the scope outside if that is less."""
    outer_s = remaining_s()
    allowed_s = seconds if outer_s is None else min(seconds, outer_s)
    token = _current.set(Deadline(now() + allowed_s, now))
    try:
        yield
    finally:
        _current.reset(token)


def start_deadline(seconds: float, now: Monotonic = time.monotonic) -> None:
    """Give the current task *seconds* from now, for the rest of its life: for the edge, where each call is a task."""
    _current.set(Deadline(now() + seconds, now))


def current_deadline() -> Deadline | None:
    """The current call's deadline, to be carried to work done for it elsewhere."""
    return _current.get()


def carry_deadline(deadline: Deadline | None) -> None:
    """Make this the current task's deadline: for work that serves calls other than the one that started it."""
    _current.set(deadline)


def latest(deadlines: Iterable[Deadline | None]) -> Deadline | None:
    """The deadline of work that serves all these calls: the last of them, and none where one of them has none."""
    last: Deadline | None = None
    for deadline in deadlines:
        if deadline is None:
            return None
        if last is None or deadline.at_s > last.at_s:
            last = deadline
    return last
