"""How good an order is: NDCG, and the simple rankers that a model has to beat."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import exp2, log2

import numpy as np
from numpy.typing import NDArray

# Strength of the prior of the smoothed click rate: ten clicks' worth of the site-wide rate.
PRIOR_CLICKS = 10.0


def ranked(item_ids: Sequence[str], scores: Sequence[float]) -> list[int]:
    """Places of the items, best score first; equal scores by item id ascending, as a number where all are numbers."""
    numeric = all(item_id.isdecimal() for item_id in item_ids)
    ids: Sequence[int] | Sequence[str] = [int(item_id) for item_id in item_ids] if numeric else item_ids
    return sorted(range(len(item_ids)), key=lambda place: (-scores[place], ids[place]))


def ndcg(relevances: Sequence[float], k: int) -> float:
    """NDCG@k of relevances in ranked order: gain 2^relevance − 1, discount log2(rank + 1); 0 where nothing is relevant.

    Source: Burges et al., Learning to Rank using Gradient Descent, 2005.
    """
    ideal = _dcg(sorted(relevances, reverse=True)[:k])
    return _dcg(relevances[:k]) / ideal if ideal > 0 else 0.0


def _dcg(relevances: Sequence[float]) -> float:
    return sum((exp2(grade) - 1.0) / log2(place + 2) for place, grade in enumerate(relevances))


def ndcg_of_scores(
    item_ids: Sequence[str], relevant: Mapping[str, float], scores: Sequence[float], cuts: Sequence[int]
) -> tuple[float, ...]:
    """NDCG at each cut of one ranking by these scores."""
    order = [relevant.get(item_ids[place], 0.0) for place in ranked(item_ids, scores)]
    return tuple(ndcg(order, k) for k in cuts)


def auc(labels: NDArray[np.float32], scores: NDArray[np.float64]) -> float | None:
    """Probability that what was answered has a higher score than what was not, ties counting half; 0.5 is chance.

    Args:
        labels: above 0 where it was answered.

    Returns:
        In [0, 1]; None where nothing or everything was answered.

    Source: Mann and Whitney, 1947.
    """
    answered = labels > 0
    count, others = int(answered.sum()), int((~answered).sum())
    if not count or not others:
        return None
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2
    return float((ranks[place][answered].sum() - count * (count + 1) / 2) / (count * others))


class MeanNdcg:
    """NDCG at some cuts, averaged over rankings."""

    def __init__(self, cuts: Sequence[int] = (5, 10)) -> None:
        self._cuts = tuple(cuts)
        self._sums = [0.0] * len(self._cuts)
        self.rankings_count = 0

    def add(self, item_ids: Sequence[str], relevant: Mapping[str, float], scores: Sequence[float]) -> None:
        """Count one ranking; one with nothing relevant in it cannot be judged and must not be given."""
        assert any(relevant.get(item_id, 0.0) > 0 for item_id in item_ids), "nothing in it is relevant"
        for place, value in enumerate(ndcg_of_scores(item_ids, relevant, scores, self._cuts)):
            self._sums[place] += value
        self.rankings_count += 1

    def report(self) -> dict[str, float]:
        """The means, by name: {"ndcg@5": …}; 0 before anything was counted."""
        count = max(self.rankings_count, 1)
        return {f"ndcg@{cut}": total / count for cut, total in zip(self._cuts, self._sums, strict=True)}


class SmoothedRate:
    """Clicks an impression of each item so far: (a + c) / (a / p0 + n), where p0 is the rate over all items.

    Point in time: it knows what it was told, and nothing else.
    """

    def __init__(self, prior_clicks: float = PRIOR_CLICKS) -> None:
        self._prior_clicks = prior_clicks
        self._clicks: Counter[str] = Counter()
        self._impressions: Counter[str] = Counter()
        self._clicks_count = 0
        self._impressions_count = 0

    def shown(self, item_ids: Iterable[str]) -> None:
        """These items were seen."""
        items = list(item_ids)
        self._impressions.update(items)
        self._impressions_count += len(items)

    def clicked(self, item_id: str) -> None:
        """The item was clicked."""
        self._clicks[item_id] += 1
        self._clicks_count += 1

    def scores(self, item_ids: Sequence[str]) -> list[float]:
        """The rate of each item; 0 for all before the first click anywhere."""
        if not self._clicks_count or not self._impressions_count:
            return [0.0] * len(item_ids)
        rate = self._clicks_count / self._impressions_count
        return [
            (self._prior_clicks + self._clicks[item_id]) / (self._prior_clicks / rate + self._impressions[item_id])
            for item_id in item_ids
        ]
