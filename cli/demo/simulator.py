"""Visitors of the shop whose true preferences are known, so that what is learned can be held against the truth.

Pure: a seed gives the same people, and the same person with the same generator the same clicks. A visitor clicks an
entry with the probability

    examination(slot) × sigmoid(base + taste(category) + liking(brand) − thrift × price + quality(item))

where nobody but the simulator knows taste, liking, thrift and quality. The best slate is therefore known in closed
form: the entries with the highest click probability, best first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

# Chance of a click where taste is neutral: most of what is shown to anybody is not clicked.
BASE = -2.4
# A visitor takes to a few categories much more than to the others.
FAVORITES_COUNT = 2
FAVORITE_TASTE = 2.8
# Standard deviations, in logits, of what tells people and items apart beside the favorite categories: enough that no
# simple rule is the best, little enough that a few visits say most of it.
TASTE_SPREAD = 0.3
LIKING_SPREAD = 0.25
THRIFT_SPREAD = 0.15
QUALITY_SPREAD = 0.35
# How likely an entry is looked at, by slot; known here, and to nobody else.
EXAMINATION = (1.0, 0.92, 0.85, 0.79, 0.74, 0.70)
VIEWS_A_SESSION = 4
PURCHASE_RATE = 0.08


class Consent(Enum):
    """What a visitor answers when asked, and whether they stay with it."""

    GIVEN = "given"
    REFUSED = "refused"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ShopItem:
    """What the simulator knows of an item."""

    item_id: str
    category: str
    brand: str
    price: float


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person who does not exist.

    Args:
        logs_in: is known by a user id from the second session on.
        taste: category → logit.
        liking: brand → logit.
        thrift: logit lost for each e-fold of the price above the mean.
    """

    number: int
    consent: Consent
    logs_in: bool
    taste: Mapping[str, float]
    liking: Mapping[str, float]
    thrift: float


class Shop:
    """The items that can be shown, with their hidden quality."""

    def __init__(self, items: Sequence[ShopItem], rng: np.random.Generator) -> None:
        self.items = {item.item_id: item for item in items}
        self._mean_log_price = float(np.mean([math.log(item.price) for item in items]))
        self._quality = {item.item_id: float(rng.normal(0.0, QUALITY_SPREAD)) for item in items}

    def click_probability(self, visitor: Visitor, item_id: str, slot: int) -> float:
        """True chance that the visitor clicks the item in the slot."""
        return EXAMINATION[slot] * self.attraction(visitor, item_id)

    def attraction(self, visitor: Visitor, item_id: str) -> float:
        """True chance of a click once the item is looked at."""
        item = self.items[item_id]
        logit = (
            BASE
            + visitor.taste[item.category]
            + visitor.liking[item.brand]
            - visitor.thrift * (math.log(item.price) - self._mean_log_price)
            + self._quality[item_id]
        )
        return 1.0 / (1.0 + math.exp(-logit))

    def expected_click_rate(self, visitor: Visitor, item_ids: Sequence[str]) -> float:
        """True clicks an entry of this slate."""
        return sum(self.click_probability(visitor, item, slot) for slot, item in enumerate(item_ids)) / len(item_ids)

    def best_slate(self, visitor: Visitor, slate_size: int) -> list[str]:
        """The slate with the most expected clicks: attraction and examination both fall, so the best goes first."""
        ranked = sorted(self.items, key=lambda item: self.attraction(visitor, item), reverse=True)
        return ranked[:slate_size]

    def clicks(self, visitor: Visitor, item_ids: Sequence[str], rng: np.random.Generator) -> list[int]:
        """Slots that the visitor clicks this time."""
        chance = rng.random(len(item_ids))
        return [s for s, item in enumerate(item_ids) if chance[s] < self.click_probability(visitor, item, s)]

    def views(self, visitor: Visitor, rng: np.random.Generator) -> list[str]:
        """Products that the visitor looks at on their own account, by taste."""
        names = list(self.items)
        weights = np.array([self.attraction(visitor, name) for name in names])
        count = min(VIEWS_A_SESSION, len(names))
        return [str(name) for name in rng.choice(names, size=count, replace=False, p=weights / weights.sum())]


def population(
    items: Sequence[ShopItem], count: int, rng: np.random.Generator, *, refused: float = 0.1, revoked: float = 0.1
) -> list[Visitor]:
    """*count* visitors, of whom these shares (at least one each) refuse consent or take it back on the way."""
    categories = sorted({item.category for item in items})
    brands = sorted({item.brand for item in items})
    refusing, revoking = max(1, round(refused * count)), max(1, round(revoked * count))
    answers = [Consent.REFUSED] * refusing + [Consent.REVOKED] * revoking
    answers += [Consent.GIVEN] * (count - len(answers))
    return [_visitor(number, answers[k], categories, brands, rng) for number, k in enumerate(rng.permutation(count))]


def _visitor(
    number: int, consent: Consent, categories: list[str], brands: list[str], rng: np.random.Generator
) -> Visitor:
    taste = {name: float(rng.normal(-0.5, TASTE_SPREAD)) for name in categories}
    for name in rng.choice(categories, size=min(FAVORITES_COUNT, len(categories)), replace=False):
        taste[str(name)] += FAVORITE_TASTE
    return Visitor(
        number=number,
        consent=consent,
        logs_in=bool(rng.random() < 0.4),
        taste=taste,
        liking={name: float(rng.normal(0.0, LIKING_SPREAD)) for name in brands},
        thrift=float(rng.normal(0.15, THRIFT_SPREAD)),
    )
