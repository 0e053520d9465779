"""Click rates: intervals that are wide enough for clicks that belong together, and never a number from nothing."""

import math

import numpy as np
import pytest

from cli.demo.statistics import Tally, difference, percentile, rate_of


def test_a_rate_is_clicks_by_entries() -> None:
    """The value weighs every entry alike."""
    rate = rate_of([Tally(1, 10), Tally(9, 30)])
    assert rate.value == pytest.approx(0.25)
    assert rate.visitors_count == 2


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """With visitors who differ, 95 % intervals hold the true rate in about 95 % of runs; naive ones would not."""
    rng = np.random.default_rng(4)
    covered = 0
    runs = 400
    for _ in range(runs):
        taste = rng.beta(2, 6, size=60)
        tallies = [Tally(int(rng.binomial(40, p)), 40) for p in taste]
        interval = rate_of(tallies).interval
        covered += interval.low <= 0.25 <= interval.high
    assert covered / runs > 0.91


def test_a_difference_that_is_not_there_is_not_found() -> None:
    """Groups with the same truth give an interval around zero in about 95 % of runs."""
    rng = np.random.default_rng(8)
    found = 0
    runs = 400
    for _ in range(runs):
        first, second = (
            rate_of(Tally(int(rng.binomial(30, p)), 30) for p in rng.beta(2, 6, size=size)) for size in (200, 25)
        )
        interval = difference(first, second)
        found += not interval.low <= 0 <= interval.high
    assert found / runs < 0.09


@pytest.mark.parametrize("tallies", [[], [Tally(0, 0)], [Tally(1, 4)]])
def test_too_little_to_tell_gives_no_narrow_interval(tallies: list[Tally]) -> None:
    """With fewer than two visitors nothing is claimed."""
    interval = rate_of(tallies).interval
    assert (interval.low, interval.high) == (0.0, 1.0)
    assert not difference(rate_of(tallies), rate_of([Tally(1, 4), Tally(2, 4)])).low > 0


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank: p50 and p99 of a hundred values are the 50th and the 99th."""
    values = [float(v) for v in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert math.isnan(percentile([], 0.5))
