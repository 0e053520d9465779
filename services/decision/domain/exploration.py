"""Exploration with exact propensities: with probability ε the slate is a uniform draw over the eligible candidates.

Draws come from Philox's raw stream, which numpy keeps stable across versions (its Generator methods are not), so that a
decision of years ago draws the same.
"""

import hmac
from dataclasses import dataclass

import numpy as np

# A double has 53 bits of mantissa: the coin takes the upper 53 of 64.
_COIN_SHIFT = 11
_COIN_SCALE = 2.0**-53


@dataclass(frozen=True, slots=True)
class Drawn:
    """Which candidates are shown, and what the chance of each was.

    Args:
        order: places in the ranking (0 is the best), one a slot.
        propensities: probability of each entry in its slot, in (0, 1].
        explored: the slate is the uniform draw.
        coin: in [0, 1); 0 where nothing was drawn.
    """

    order: list[int]
    propensities: list[float]
    explored: bool
    coin: float


def seed_of(seed_key: bytes, decision_id: str) -> bytes:
    """The seed of a decision's draws: 32 bytes that no caller can choose."""
    return hmac.digest(seed_key, b"draw\0" + decision_id.encode(), "sha256")


def draw_slate(candidates_count: int, slate_size: int, epsilon: float, seed: bytes) -> Drawn:
    """Choose the slate from a ranking of *candidates_count* candidates.

    The propensity of entry i in slot s is (1 − ε)·[i is s-th of the ranking] + ε/n: with probability 1 − ε the slate is
    the ranking's head; with ε it is the head of a uniform permutation, where every candidate is equally likely in
    every slot.
    """
    shown_count = min(slate_size, candidates_count)
    if epsilon <= 0.0:
        return Drawn(list(range(shown_count)), [1.0] * shown_count, False, 0.0)
    # The coin is bits of the HMAC that Philox is not keyed with: most slates are ranked and need no stream at all.
    coin = (int.from_bytes(seed[16:24], "little") >> _COIN_SHIFT) * _COIN_SCALE
    explored = coin < epsilon
    order = _permutation_head(seed[:16], candidates_count, shown_count) if explored else list(range(shown_count))
    by_chance = epsilon / candidates_count
    ranked = min(1.0, by_chance + (1.0 - epsilon))
    propensities = [ranked if place == slot else by_chance for slot, place in enumerate(order)]
    return Drawn(order, propensities, explored, coin)


def _permutation_head(key: bytes, count: int, head_count: int) -> list[int]:
    """The first *head_count* of a uniform permutation of range(count): Fisher and Yates, stopped early.

    A 64-bit draw scaled to at most 1,000 choices is off uniform by less than 2^-54, below what a double can tell.
    """
    stream = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))
    places = list(range(count))
    for slot, raw in enumerate(stream.random_raw(head_count).tolist()):
        other = slot + (raw * (count - slot) >> 64)
        places[slot], places[other] = places[other], places[slot]
    return places[:head_count]
