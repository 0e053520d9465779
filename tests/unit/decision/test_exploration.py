"""Propensities are true: the frequencies of draws agree with what is logged for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from services.decision.domain.exploration import draw_slate, seed_of

DRAWS_COUNT = 24_000
KEY = b"k" * 32
PINNED = ([7, 3, 5, 2], 0.6130405815896169)


def draws(count: int, slate_size: int, epsilon: float) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """How often each candidate came in each slot, over fixed inputs and many decision ids."""
    seen = np.zeros((slate_size, count), dtype=np.intp)
    for number in range(DRAWS_COUNT):
        drawn = draw_slate(count, slate_size, epsilon, seed_of(KEY, f"decision-{number}"))
        seen[np.arange(slate_size), drawn.order] += 1
    return seen


def propensities(count: int, slate_size: int, epsilon: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The closed form: (1 − ε)·[place = slot] + ε/n."""
    table = np.full((slate_size, count), epsilon / count)
    table[np.arange(slate_size), np.arange(slate_size)] += 1 - epsilon
    return table


@pytest.mark.parametrize(("count", "slate_size", "epsilon"), [(8, 3, 0.2), (5, 5, 1.0), (20, 2, 0.5)])
def test_frequencies_agree_with_the_logged_propensities(count: int, slate_size: int, epsilon: float) -> None:
    """Chi-square over 24,000 draws of fixed inputs, slot by slot, against the propensities as they are logged."""
    seen, expected = draws(count, slate_size, epsilon), propensities(count, slate_size, epsilon)
    for slot in range(slate_size):
        assert stats.chisquare(seen[slot], expected[slot] * DRAWS_COUNT).pvalue > 1e-4


def test_a_wrong_propensity_would_be_caught() -> None:
    """The same test against propensities of another ε fails: it has teeth."""
    seen, wrong = draws(8, 3, 0.2), propensities(8, 3, 0.22)
    assert min(stats.chisquare(seen[slot], wrong[slot] * DRAWS_COUNT).pvalue for slot in range(3)) < 1e-4


@given(
    count=st.integers(1, 200),
    slate_size=st.integers(1, 100),
    epsilon=st.floats(0, 1),
    decision_id=st.text("0123456789abcdef", min_size=32, max_size=32),
)
def test_every_served_entry_has_its_closed_form_propensity(
    count: int, slate_size: int, epsilon: float, decision_id: str
) -> None:
    """In (0, 1], no candidate twice, and exactly (1 − ε)·[ranked] + ε/n."""
    drawn = draw_slate(count, slate_size, epsilon, seed_of(KEY, decision_id))
    assert len(drawn.order) == len(set(drawn.order)) == min(count, slate_size)
    assert all(0.0 < propensity <= 1.0 for propensity in drawn.propensities)
    for slot, (place, propensity) in enumerate(zip(drawn.order, drawn.propensities, strict=True)):
        assert propensity == pytest.approx((1 - epsilon) * (place == slot) + epsilon / count, abs=1e-12)


def test_a_decision_draws_the_same_for_ever() -> None:
    """The draw of a key and a decision id is pinned: an upgrade that changes it must not pass."""
    drawn = draw_slate(10, 4, 1.0, seed_of(KEY, "ab" * 16))
    assert (drawn.order, drawn.coin) == PINNED
    assert draw_slate(10, 4, 1.0, seed_of(KEY, "ab" * 16)) == drawn


def test_another_key_draws_another_coin() -> None:
    """One flipped bit in the seed key changes the coin, whichever way it falls."""
    flipped = bytes([KEY[0] ^ 1]) + KEY[1:]
    coins = {draw_slate(10, 4, 0.5, seed_of(key, "ab" * 16)).coin for key in (KEY, flipped)}
    assert len(coins) == 2
