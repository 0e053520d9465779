"""Figures as medians and spread, and the JSON line that a run ends with."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of paired rounds, with the lowest and the highest seen."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Figure":
        """The figure of at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def to_json(self) -> dict[str, float]:
        """As it stands in the closing JSON line, to four significant digits."""
        return {name: float(f"{getattr(self, name):.4g}") for name in ("value", "low", "high")}

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} … {self.high:.4g})"
