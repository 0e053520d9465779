"""Whether a Decide is begun: so many are under way, each takes so long, and so much time is left.

A Decide that would not be ready in time costs those beside it their answers and gets none itself. So it is not begun,
and the cheapest honest rung answers at once. What one takes is learned from those that ended: a process that shares
its time among n calls takes n times as long for each, so the time that one adds is what it took divided by how many
there were. That figure does not depend on how many are let in, and therefore does not oscillate with it. One that was
late counts as the whole of its time, however early it was given up: too many at once make the figure grow until they
are in time again. Nothing here looks at a clock; a burst is forgotten by the calls after it, which a few places that
are always there let in.
"""

from collections import Counter
from dataclasses import dataclass

# Of the time that is left, what a call is expected to take at most: one that takes half as long again is still in time.
TIME_SHARE = 0.6
# So many times as many are let in of callers that have less than their share of the places: nobody takes all of them.
FAIR_FACTOR = 1.5
# So many wait for other services at the same time without making each other slower.
ALONE_COUNT = 4
# So many are let in whatever is expected: from them it is learned that things are better. Eight were tried, and are all
# late on a machine that can do ten a second.
ALWAYS_COUNT = 2
# What one adds where none has ended yet.
EACH_S_FIRST = 0.002
# Weight of the newest call in the moving average.
WEIGHT = 0.1

# Answers that help nobody much take at most this share of the time, and so much of it at once.
SHED_SHARE = 0.25
SHED_BURST_S = 0.05
RETRY_AFTER_S_MIN = 0.05


@dataclass(frozen=True, slots=True)
class Seat:
    """A call that is under way.

    Args:
        beside_count: calls under way when it began, itself included.
    """

    caller: str
    beside_count: int


class Admission:
    """Admits calls, and learns from how they end."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()
        self._count = 0
        # Seconds that one call more adds to each.
        self._each_s = EACH_S_FIRST

    @property
    def under_way_count(self) -> int:
        """Calls that were admitted and have not left."""
        return self._count

    def admit(self, caller: str, left_s: float) -> Seat | None:
        """A seat for the call; None when it would not be ready in time.

        Args:
            caller: whom the call is for, of those that places are shared among.
            left_s: how long the call may take.
        """
        own_count = self._under_way[caller]
        callers_count = len(self._under_way) + (not own_count)
        room = max(ALWAYS_COUNT, TIME_SHARE * left_s / self._each_s)
        has_less = self._count < FAIR_FACTOR * room and own_count < room / callers_count
        if self._count >= room and not has_less:
            return None
        self._under_way[caller] = own_count + 1
        self._count += 1
        return Seat(caller, self._count)

    def leave(self, seat: Seat, took_s: float | None) -> None:
        """The call has ended.

        Args:
            took_s: how long it took, at least all of its time where it was late; None: it was given up, which says
                nothing of how long it would have taken.
        """
        if took_s is not None:
            each_s = took_s / max(seat.beside_count, self._count, ALONE_COUNT)
            self._each_s += WEIGHT * (each_s - self._each_s)
        self._count -= 1
        self._under_way[seat.caller] -= 1
        if not self._under_way[seat.caller]:
            del self._under_way[seat.caller]


class Allowance:
    """A share of the time for what may be left out: a bucket that leaks."""

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long there is nothing left to spend; 0: there is now."""
        self._spent_s = max(0.0, self._spent_s - SHED_SHARE * (now_s - self._at_s))
        self._at_s = now_s
        over_s = self._spent_s - SHED_BURST_S
        return max(RETRY_AFTER_S_MIN, over_s / SHED_SHARE) if over_s > 0.0 else 0.0

    def spend(self, took_s: float) -> None:
        """Note that so much was spent."""
        self._spent_s += took_s
