"""What the demo found, whether it held, and the summary that programs read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity_client import Decision

from cli.demo.log import ClickRates
from cli.demo.statistics import Interval, difference

# Share of what is possible that the ranking must reach.
OPTIMUM_SHARE_MIN = 0.7
# A disk that stalls may cost an answer its place in the log now and then; more means that something is wrong.
UNLOGGED_SHARE_MAX = 0.05
RANKED_SHARE_MIN = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Args:
        statistical: a matter of how much was seen; a quick run shows it and does not demand it.
    """

    name: str
    held: bool
    detail: str
    statistical: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """What one visitor saw, and why."""

    title: str
    decision: Decision
    explanation: decision_pb.ExplainResponse


@dataclass(slots=True)
class Findings:
    """Everything the page and the summary are made of."""

    seed: int
    quick: bool
    seconds: float = 0.0
    visitors: dict[str, int] = field(default_factory=dict)
    tracked: dict[str, int] = field(default_factory=dict)
    decisions: int = 0
    unlogged: int = 0
    replayed_identical: int = 0
    different: list[tuple[str, list[str]]] = field(default_factory=list)
    no_consent: int = 0
    no_consent_defaults: int = 0
    revoked: int = 0
    revoked_defaults: int = 0
    with_consent: int = 0
    ranked: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    rates: ClickRates | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    stories: list[Story] = field(default_factory=list)
    traces: Path = Path()
    ranklens: dict[str, Any] | None = None

    @property
    def lift(self) -> Interval:
        """Click rate of ranked less that of the holdout."""
        assert self.rates is not None
        return difference(self.rates.ranked, self.rates.holdout)

    @property
    def optimum_share(self) -> float:
        """How much of the possible click rate the ranking reached."""
        assert self.rates is not None
        return self.rates.ranked.value / self.rates.optimum.value

    def checks(self) -> Sequence[Check]:
        """What must hold, and whether it did."""
        lift = self.lift
        return (
            Check(
                "every decision replays to the identical slate",
                0 < self.decisions == self.replayed_identical,
                f"{self.replayed_identical} of {self.decisions}",
            ),
            Check(
                "no decision for people who refused used a profile",
                0 < self.no_consent == self.no_consent_defaults,
                f"{self.no_consent_defaults} of {self.no_consent} were the declared default",
            ),
            Check(
                "no decision after a revocation used a profile",
                0 < self.revoked == self.revoked_defaults,
                f"{self.revoked_defaults} of {self.revoked} were the declared default",
            ),
            Check(
                "the model decided for those who agreed",
                self.ranked >= RANKED_SHARE_MIN * self.with_consent > 0,
                f"{self.ranked} of {self.with_consent} were ranked or explored",
            ),
            Check(
                "answers are in the log, or say that they are not",
                self.unlogged <= UNLOGGED_SHARE_MAX * max(1, self.decisions),
                f"{self.unlogged} were not, and said so",
            ),
            Check(
                "ranked beats the holdout",
                lift.low > 0,
                f"by {lift.value:+.3f} clicks an entry, 95 % [{lift.low:+.3f}, {lift.high:+.3f}]",
                statistical=True,
            ),
            Check(
                f"ranked reaches {OPTIMUM_SHARE_MIN:.0%} of the optimum",
                self.optimum_share >= OPTIMUM_SHARE_MIN,
                f"{self.optimum_share:.0%}",
                statistical=True,
            ),
        )

    @property
    def held(self) -> bool:
        """Whether all of it held that this run demands."""
        return all(check.held or (check.statistical and self.quick) for check in self.checks())

    def summary(self) -> dict[str, Any]:
        """summary.json."""
        assert self.rates is not None
        return {
            "decisions": self.decisions,
            "replayed_identical": self.replayed_identical,
            "no_consent_defaults": self.no_consent_defaults,
            "revoked_defaults": self.revoked_defaults,
            "click_rate": {
                "ranked": self.rates.ranked.interval.as_json(),
                "holdout": self.rates.holdout.interval.as_json(),
                "optimum": self.rates.optimum.interval.as_json(),
            },
            "latency_ms": {name: round(value, 2) for name, value in self.latency_ms.items()},
            "ranklens": self.ranklens,
        }
