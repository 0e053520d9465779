"""Whether nearly all decisions fall back because something that they need is late or away: an alarm."""

from collections import deque

from services.chassis.alarms import Alarm, set_alarm
from services.decision.domain.vocabulary import FallbackReason

# So many decisions are looked at.
LAST = 50
# Raised from so many of them on, cleared at so few: between the two it stays as it was.
RAISED_AT, CLEARED_AT = 45, 25

# What an operator can mend. That people do not agree, or that a site has no model yet, is no outage.
OUTAGES = frozenset(
    {
        FallbackReason.DEADLINE_EXCEEDED,
        FallbackReason.CONSENT_UNAVAILABLE,
        FallbackReason.IDENTITY_UNAVAILABLE,
        FallbackReason.FEATURES_UNAVAILABLE,
        FallbackReason.LOG_UNAVAILABLE,
        FallbackReason.OVERLOADED,
    }
)


class FallingBack:
    """The last decisions of this process."""

    def __init__(self) -> None:
        self._last = deque([False] * LAST, maxlen=LAST)
        self._count = 0

    def add(self, reason: FallbackReason) -> None:
        """One more decision, and why it fell back, if it did."""
        fell_back = reason in OUTAGES
        self._count += fell_back - self._last[0]
        self._last.append(fell_back)
        if self._count >= RAISED_AT or self._count <= CLEARED_AT:
            set_alarm(Alarm.MOST_FALL_BACK, self._count >= RAISED_AT)
