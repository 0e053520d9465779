"""Features as a site declares them. Field bounds are the protos'; what needs several fields is checked on compiling."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Transform(StrEnum):
    """What is done to a number before it is used."""

    NONE = "NONE"
    LOG1P = "LOG1P"


@dataclass(frozen=True, slots=True)
class ItemAttribute:
    """A number of the item."""

    attribute: str
    transform: Transform = Transform.NONE


@dataclass(frozen=True, slots=True)
class ItemCategory:
    """1 where the item's categorical attribute holds the value, else 0: a column a value."""

    attribute: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemCount:
    """Events of a type on the item; half_life_s 0: never forgotten."""

    event_type: str
    half_life_s: float = 0.0
    transform: Transform = Transform.NONE


@dataclass(frozen=True, slots=True)
class ItemRate:
    """numerator ÷ denominator events on the item, smoothed towards the rate of the whole site."""

    numerator: str
    denominator: str
    prior_strength: float = 0.0
    half_life_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CategoryRate:
    """The item's mean, over its categories, of each category's own rate on the whole site, smoothed as ItemRate's."""

    attribute: str
    numerator: str
    denominator: str
    prior_strength: float = 0.0
    half_life_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SubjectCount:
    """The subject's events of a type."""

    event_type: str
    half_life_s: float = 0.0
    transform: Transform = Transform.NONE


@dataclass(frozen=True, slots=True)
class SubjectRate:
    """(prior_strength · prior_rate + numerator) ÷ (prior_strength + denominator), of the subject's events."""

    numerator: str
    denominator: str
    prior_strength: float = 0.0
    prior_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class SubjectRecency:
    """2^(-age ÷ half_life_s) of the subject's newest event of the type."""

    event_type: str
    half_life_s: float


@dataclass(frozen=True, slots=True)
class CategoryAffinity:
    """How much more often than usual the subject answers the item's categories.

    With a denominator: each category's smoothed rate less the subject's own rate; without: each category's share of the
    subject's events of the type.
    """

    attribute: str
    numerator: str
    buckets: int
    denominator: str = ""
    prior_strength: float = 0.0
    half_life_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Similarity:
    """Cosine between the item's categories and those of the items the subject had events of the type on."""

    attributes: tuple[str, ...]
    event_type: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class ContextValue:
    """A number of the request's context."""

    key: str
    default_value: float = 0.0


Kind: TypeAlias = (
    ItemAttribute
    | ItemCategory
    | ItemCount
    | ItemRate
    | CategoryRate
    | SubjectCount
    | SubjectRate
    | SubjectRecency
    | CategoryAffinity
    | Similarity
    | ContextValue
)
# Kinds whose values tell something about one person.
PERSONAL = (SubjectCount, SubjectRate, SubjectRecency, CategoryAffinity, Similarity)


@dataclass(frozen=True, slots=True)
class Feature:
    """A declared feature.

    Args:
        purposes: what must be allowed for it to be used.
        freshness_s: a value whose newest event is older is STALE; 0: never.
    """

    name: str
    kind: Kind
    description: str = ""
    purposes: tuple[str, ...] = ()
    owner: str = ""
    reason: str = ""
    retention_days: int = 0
    freshness_s: int = 0
