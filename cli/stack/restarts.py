"""Restarts of what ended unasked: when the next is due, and which are too many. Pure; times are seconds since 1970."""

from dataclasses import dataclass

# The first restart comes at once; what ends again waits twice as long each time, so that nothing ever spins.
WAIT_S_MAX = 60.0
# What has run for so long is well again. Longer than WAIT_S_MAX, or waiting would count as running.
STEADY_S = 120.0
# From so many in a row on somebody has to look.
MANY = 5


@dataclass(frozen=True, slots=True)
class Restarts:
    """Of one process of a stack, since the stack was started.

    Args:
        count: all of them.
        first_s, last_s: when the first and the last were.
        in_a_row: how many of the last followed each other before it had run for STEADY_S.
        row_first_s: when the first of those was.
    """

    count: int
    first_s: float
    last_s: float
    in_a_row: int
    row_first_s: float


def wait_s(done: Restarts | None, now_s: float) -> float:
    """Seconds until what has ended is started again; 0: at once."""
    if done is None or not _in_a_row(done, now_s):
        return 0.0
    return max(0.0, done.last_s + min(2.0 ** (done.in_a_row - 1), WAIT_S_MAX) - now_s)


def after(done: Restarts | None, now_s: float) -> Restarts:
    """The restarts with one more, that of now."""
    if done is None:
        return Restarts(count=1, first_s=now_s, last_s=now_s, in_a_row=1, row_first_s=now_s)
    row = (done.in_a_row + 1, done.row_first_s) if _in_a_row(done, now_s) else (1, now_s)
    return Restarts(done.count + 1, done.first_s, now_s, *row)


def too_many(done: Restarts | None, now_s: float) -> bool:
    """Whether it ends again and again."""
    return done is not None and done.in_a_row >= MANY and _in_a_row(done, now_s)


def _in_a_row(done: Restarts, now_s: float) -> bool:
    # A clock that was put back says nothing about how long anything ran.
    return 0.0 <= now_s - done.last_s < STEADY_S
