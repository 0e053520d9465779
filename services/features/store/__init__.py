"""States, blocks, catalog and feature sets in Postgres; member states in front of it in Redis."""

from services.features.store.books import Books
from services.features.store.items import (
    CONSUMER,
    DROP_PENDING_SQL,
    FOLDED_PENDING_SQL,
    FORGET_PENDING_SQL,
    PENDING_S_MAX,
    Changes,
    ItemStore,
    blocks_to_change,
    put_blocks,
    put_items,
    put_pending,
    readable_blocks,
    take_pending,
    versions_of,
    versions_or_turn,
)
from services.features.store.states import (
    CACHE_TTL_S,
    STATES_SQL,
    MemberStates,
    cache_key,
    put_states,
    states_to_change,
)

__all__ = [
    "CACHE_TTL_S",
    "CONSUMER",
    "DROP_PENDING_SQL",
    "FOLDED_PENDING_SQL",
    "FORGET_PENDING_SQL",
    "PENDING_S_MAX",
    "STATES_SQL",
    "Books",
    "Changes",
    "ItemStore",
    "MemberStates",
    "blocks_to_change",
    "cache_key",
    "put_blocks",
    "put_items",
    "put_pending",
    "put_states",
    "readable_blocks",
    "states_to_change",
    "take_pending",
    "versions_of",
    "versions_or_turn",
]
