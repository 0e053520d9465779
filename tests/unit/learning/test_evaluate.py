"""How orders are judged."""

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.evaluate import MeanNdcg, SmoothedRate, ndcg, ndcg_of_scores, ranked


@pytest.mark.parametrize(
    ("relevances", "k", "expected"),
    [
        # By hand: gain of 1 is 1, of 2 is 3, of 3 is 7; discounts 1, 1/1.58496, 1/2.
        ([1, 0, 0], 3, 1.0),
        ([0, 1, 0], 3, 1 / log2(3)),
        ([0, 0, 1], 2, 0.0),
        ([1, 0, 1], 3, (1 + 0.5) / (1 + 1 / log2(3))),
        ([1, 3, 2], 3, (1 + 7 / log2(3) + 3 / 2) / (7 + 3 / log2(3) + 1 / 2)),
        ([0, 0, 0], 3, 0.0),
    ],
)
def test_ndcg_is_what_it_is_by_hand(relevances: list[float], k: int, expected: float) -> None:
    """Gain 2^relevance − 1, discount log2(rank + 1), over the ideal order's."""
    assert ndcg(relevances, k) == pytest.approx(expected, abs=1e-12)


def test_ties_go_to_the_smaller_item_id() -> None:
    """As a number where all ids are numbers, else as text."""
    assert ranked(["10", "9", "2"], [1.0, 1.0, 1.0]) == [2, 1, 0]
    assert ranked(["10", "9", "b"], [1.0, 1.0, 1.0]) == [0, 1, 2]
    assert ranked(["1", "2", "3"], [0.1, 0.3, 0.2]) == [1, 2, 0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 12), st.randoms())
def test_no_order_is_better_than_the_ideal(relevances: list[int], k: int, chance: object) -> None:
    """NDCG lies in [0, 1], and is 1 for the ideal order of anything relevant."""
    assert 0.0 <= ndcg([float(r) for r in relevances], k) <= 1.0 + 1e-12
    ideal = sorted(map(float, relevances), reverse=True)
    assert ndcg(ideal, k) == pytest.approx(1.0 if ideal[0] > 0 else 0.0)


def test_the_mean_is_over_rankings() -> None:
    """Each ranking counts once; cuts are reported by name."""
    mean = MeanNdcg((1, 2))
    mean.add(["1", "2"], {"1": 1.0}, [0.9, 0.1])
    mean.add(["1", "2"], {"1": 1.0}, [0.1, 0.9])
    assert mean.rankings_count == 2
    assert mean.report() == {"ndcg@1": 0.5, "ndcg@2": pytest.approx((1 + 1 / log2(3)) / 2)}
    assert ndcg_of_scores(["1", "2"], {"2": 1.0}, [0.0, 1.0], (1,)) == (1.0,)


def test_a_rate_is_smoothed_towards_that_of_all_items() -> None:
    """(a + c) / (a / p0 + n): an item never shown has the rate of all, one shown a lot its own."""
    rate = SmoothedRate()
    assert rate.scores(["1", "2"]) == [0.0, 0.0]
    rate.shown(["1"] * 100 + ["2"] * 100)
    for _ in range(50):
        rate.clicked("1")
    overall = 50 / 200
    assert rate.scores(["9"]) == [pytest.approx(overall)]
    assert rate.scores(["1", "2"]) == [
        pytest.approx((10 + 50) / (10 / overall + 100)),
        pytest.approx(10 / (10 / overall + 100)),
    ]
