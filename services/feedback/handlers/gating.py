"""What becomes of behavior whose person did not agree to it: dropped, or stored without the person; counted."""

from services.chassis.metrics import EVENTS_DROPPED
from services.feedback.domain.behavior import Refusal
from services.feedback.metrics import EVENTS_WITHOUT_CONSENT


def count_refused(refusal: Refusal, *, is_anonymized: bool) -> None:
    """Count a behavior that its person did not agree to."""
    effect = "anonymized" if is_anonymized else "dropped"
    EVENTS_WITHOUT_CONSENT.labels(effect, refusal.state, refusal.signal).inc()
    if not is_anonymized:
        EVENTS_DROPPED.labels(reason="no_consent").inc()
