"""Sites, items and models as they are kept, and which of them decide now."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.decision.domain.plan import CompiledSite
from services.decision.domain.site import Item


@dataclass(frozen=True, slots=True)
class DeclaredSite:
    """A site as it was declared, checked and compiled, and the bytes it is kept in."""

    compiled: CompiledSite
    site: bytes
    feature_set: bytes


@dataclass(frozen=True, slots=True)
class DeclaredItem:
    """An item and the bytes it is kept in."""

    item: Item
    data: bytes


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model with its bytes.

    Args:
        sha256: of the bytes, lower-case hex.
        columns: names of its input columns, in order; empty where only their number is kept.
        metrics: how it was trained; numbers only.
    """

    name: str
    sha256: str
    feature_set_version: str
    columns_count: int
    onnx: bytes = field(repr=False)
    columns: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """name@sha256."""
        return f"{self.name}@{self.sha256}"


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model, without its bytes."""

    name: str
    sha256: str
    feature_set_version: str
    registered_at: datetime
    active: bool
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Standing:
    """Versions of everything a replica decides with, as the database has them.

    Args:
        active_models: name and SHA-256 of each.
    """

    site_version: str
    catalog_version: int
    active_models: frozenset[tuple[str, str]]
