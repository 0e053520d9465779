"""What a site declares: placements, policies and items, as the bundle says them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.decision.domain.vocabulary import Level

# What a request says about itself: a fact a rule or a column may read.
ContextFact = str | float | bool
Context = Mapping[str, ContextFact]


@dataclass(frozen=True, slots=True)
class DefaultEntry:
    """One entry of a placement's default slate."""

    item_id: str
    variant_id: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """How much of a person may be used: of whoever is known at least this well, columns of these purposes."""

    level: Level
    purposes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where something is shown.

    Args:
        purposes: all of them must be allowed before the profile is used here; with layers, those that layers name.
        layers: weakest first; empty: one for every level.
        popular_without_consent: without consent show what is popular instead of the default slate.
        variants: those this placement can render; empty: each item's first.
    """

    id: str
    slate_size: int
    default_slate: tuple[DefaultEntry, ...]
    purposes: tuple[str, ...]
    policy_id: str
    popular_without_consent: bool = False
    disabled: bool = False
    variants: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a placement: eligibility → ranker → exploration → fallback.

    Args:
        version: content hash of the declared policy.
        model: name of the model that ranks; empty where a column does.
        column: name of the model column that ranks, descending; empty where a model does.
        epsilon: probability that the slate is a uniform draw over the eligible candidates.
        popular_by: item column that "popular" orders by, descending.
    """

    id: str
    version: str
    eligibility: str
    audience: str
    model: str
    column: str
    epsilon: float
    popular_by: str


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that decides, at one version."""

    name: str
    version: str
    holdout_share: float
    placements: tuple[Placement, ...]
    policies: tuple[Policy, ...]
    feature_set_version: str
    consent_policy_version: str = ""
    exposure_purposes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A thing that can be shown. Compared by identity: a changed item is another object."""

    id: str
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    retired: bool = False
