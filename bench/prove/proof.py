"""What a proof found, and how it is told."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Proof:
    """A promise that was tried.

    Args:
        trials: how often it could have failed.
        failures: how often it did.
        teeth: protection that was switched off → failures that the same test then found; all above zero.
        facts: further figures worth telling.
    """

    trials: int
    failures: int
    teeth: dict[str, int] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """No failure was seen, something was tried, and the test can fail."""
        return self.trials > 0 and self.failures == 0 and all(found > 0 for found in self.teeth.values())

    @property
    def bound_95(self) -> float | None:
        """Rate of failure that is excluded at 95 %: the rule of three; None where there were failures."""
        return 3 / self.trials if self.trials and not self.failures else None

    def to_json(self) -> dict[str, object]:
        """As it stands in the closing JSON line."""
        return {
            "trials": self.trials,
            "failures": self.failures,
            "bound_95": self.bound_95,
            "teeth": self.teeth,
            **({"facts": self.facts} if self.facts else {}),
        }
