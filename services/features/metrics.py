"""What features alone counts; every process has chassis.metrics beside it."""

from prometheus_client import Counter

BEHAVIOR_FOLDED = Counter("comity_behavior_folded", "Behavior events folded into features.")
PENDING_ITEMS_DROPPED = Counter(
    "comity_pending_items_dropped", "Behavior that counts without its item's categories: too much waits for items."
)
STATES_UNREADABLE = Counter("comity_states_unreadable", "Stored states that were passed over, by why.", ("reason",))
