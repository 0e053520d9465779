"""Items as features see them, and how their categories fall into buckets."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from services.features.domain.aggregates import Float64s, Indices

# A catalog of 10,000 items has some 50,000 distinct categories; an entry is some 200 bytes.
HASHED_MAX = 100_000
# The attribute whose one category is the item itself: what the subject did with this very item before.
ITEM_ID = "item_id"


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What is known of an item without anybody's behavior."""

    id: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ItemVersion:
    """An item as it was from a moment on (seconds since 1970)."""

    since_s: float
    item: CatalogItem


def place_at(versions: Sequence[ItemVersion], at_s: float) -> int:
    """Which version was current at that time, else the first; they ascend in time, and there is one."""
    return max(bisect_right([version.since_s for version in versions], at_s) - 1, 0)


def bucket_of(attribute: str, value: str, buckets: int) -> int:
    """The bucket of a category, in [0, buckets); stable for ever."""
    return _hash(attribute, value) % buckets


def bucket_counts(item: CatalogItem, attributes: Sequence[str], buckets: int) -> tuple[Indices, Float64s]:
    """The buckets that the item's categories of these attributes fall into, ascending, and how many fall into each."""
    fallen: dict[int, int] = {}
    for attribute in attributes:
        for value in categories_of(item, attribute):
            bucket = bucket_of(attribute, value, buckets)
            fallen[bucket] = fallen.get(bucket, 0) + 1
    order = sorted(fallen)
    return np.array(order, dtype=np.intp), np.array([fallen[bucket] for bucket in order], dtype=np.float64)


def categories_of(item: CatalogItem, attribute: str) -> Sequence[str]:
    """The item's categories of an attribute, each once."""
    if attribute == ITEM_ID:
        return (item.id,)
    return tuple(dict.fromkeys(item.categories.get(attribute, ())))


@lru_cache(maxsize=HASHED_MAX)
def _hash(attribute: str, value: str) -> int:
    return int.from_bytes(blake2b(f"{attribute}\0{value}".encode(), digest_size=8).digest(), "big")
