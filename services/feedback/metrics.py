"""What feedback alone counts; every process has chassis.metrics beside it."""

from prometheus_client import Counter

EVENTS_PUT_RIGHT = Counter(
    "comity_events_put_right", "Events that were stored other than they were sent, by what was not right.", ("what",)
)
EVENTS_WITHOUT_CONSENT = Counter(
    "comity_events_without_consent",
    "Events whose person did not agree to them, by what became of them and why.",
    ("effect", "reason", "signal"),
)
