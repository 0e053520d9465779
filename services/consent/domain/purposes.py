"""The purposes of a site: what data may be used for."""

from dataclasses import dataclass

from services.consent.domain.signals.mapping import PurposeRule

CONSENT = "consent"
LEGITIMATE_INTEREST = "legitimate_interest"


@dataclass(frozen=True, slots=True)
class Purpose:
    """What data may be used for.

    Args:
        legal_basis: CONSENT or LEGITIMATE_INTEREST.
        version: raised when the meaning changes: consent given to an earlier version no longer counts.
        personalizes: what is done for it changes what this very person is shown.
        signals: which consent signals bear on it, and how; None: nothing was declared, see `regimes.rule_of`.
    """

    id: str
    description: str
    legal_basis: str
    owner: str
    retention_days: int
    version: int
    personalizes: bool = False
    signals: PurposeRule | None = None
