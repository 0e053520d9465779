"""What decision alone counts; every process has chassis.metrics beside it."""

from prometheus_client import Counter

DECISIONS = Counter("comity_decisions", "Decisions by why they came out as they did.", ("reason", "fallback_reason"))
CORRECTIONS_LOST = Counter(
    "comity_corrections_lost", "Defaults that were answered and that the log was not told of, by why.", ("why",)
)
