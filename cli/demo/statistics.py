"""Click rates with intervals that know that one visitor's clicks belong together.

Pure. A visitor sees many slates, so their entries are no independent draws: the variance is taken between visitors
(a ratio estimator over clusters), not between entries.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Tally:
    """What one visitor was shown and clicked; clicks may be expected ones."""

    clicks: float
    entries: int


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval around it, at 95 %."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """The same for programs, rounded to what means something; null where nothing was seen."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return {name: round(figure, 4) if math.isfinite(figure) else None for name, figure in figures.items()}


@dataclass(frozen=True, slots=True)
class Rate:
    """Clicks an entry over a group of visitors.

    Args:
        error: standard error of the value.
        visitors_count: clusters that it rests on.
    """

    value: float
    error: float
    visitors_count: int

    @property
    def interval(self) -> Interval:
        """The value with its interval (Student's t over visitors), inside what a rate can be."""
        wide = _interval(self.value, self.error, self.visitors_count - 1)
        return Interval(wide.value, max(0.0, wide.low), min(1.0, wide.high))


def rate_of(tallies: Iterable[Tally]) -> Rate:
    """The rate over visitors; without at least two of them its error is infinite.

    Source: ratio estimator for clusters, Cochran, Sampling Techniques, §6.3.
    """
    groups = [tally for tally in tallies if tally.entries]
    count = len(groups)
    entries = sum(tally.entries for tally in groups)
    if not entries:
        return Rate(math.nan, math.inf, 0)
    value = sum(tally.clicks for tally in groups) / entries
    if count < 2:
        return Rate(value, math.inf, count)
    squares = sum((tally.clicks - value * tally.entries) ** 2 for tally in groups)
    return Rate(value, math.sqrt(squares * count / (count - 1)) / entries, count)


def difference(first: Rate, second: Rate) -> Interval:
    """First less second, of groups that share no visitor (Welch)."""
    error = math.hypot(first.error, second.error)
    if not math.isfinite(error) or error == 0.0:
        return _interval(first.value - second.value, error, 1)
    freedom = error**4 / sum(r.error**4 / (r.visitors_count - 1) for r in (first, second))
    return _interval(first.value - second.value, error, freedom)


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which *share* of the values lie (nearest rank); NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def _interval(value: float, error: float, freedom: float) -> Interval:
    if not math.isfinite(error) or freedom <= 0:
        return Interval(value, -math.inf, math.inf)
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return Interval(value, value - half, value + half)
