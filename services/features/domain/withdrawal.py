"""Taking people's behavior out of the item blocks again: the inverse of the fold.

Counts are sums over events, so an event is taken out by subtracting what is left of it at the block's reference time.
What the fold never counted is not subtracted: an event from before a tally was first declared is in no count of it.
The reference time stays: it is a clock, and what the counts are worth at any time does not depend on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.chassis.ids import partition_of
from services.features.domain.aggregates import Float64s, ItemLayout, Tally
from services.features.domain.item_counts import Block, ItemCounts
from services.features.domain.members import Behavior

# What subtraction leaves of nothing, relative to what there was: far above the error of a float64, far below an event.
NOTHING = 1e-9


@dataclass(frozen=True, slots=True)
class Folded:
    """An event that was folded, and when (seconds since 1970)."""

    behavior: Behavior
    folded_s: float


def withdraw(
    layout: ItemLayout,
    declared_s: Mapping[Tally, float],
    before: Mapping[Block, ItemCounts],
    folded: Sequence[Folded],
) -> dict[Block, ItemCounts]:
    """The blocks without these events, each of which was folded once; only blocks that they were counted in.

    Args:
        declared_s: when each tally of the layout was first declared: earlier events are not in its counts.
    """
    since_s = np.array([declared_s[tally] for tally in layout.tallies])
    counts: dict[Block, Float64s] = {}
    for one in folded:
        event = one.behavior
        slots = layout.tallies_of.get(event.type)
        if slots is None:
            continue
        counted = slots[since_s[slots] <= one.folded_s]
        for item_id in dict.fromkeys(event.item_ids):
            block = (item_id, partition_of(event.member_id))
            state = before.get(block)
            if state is not None and counted.size:
                left = counts.setdefault(block, state.counts.copy())
                late_s = max(state.reference_s - event.occurred_s, 0.0)
                left[counted] -= np.exp2(-late_s * layout.decay[counted])
    return {
        block: ItemCounts(before[block].position, before[block].reference_s, _settled(before[block].counts, left))
        for block, left in counts.items()
    }


def _settled(before: Float64s, left: Float64s) -> Float64s:
    """The counts with what is only rounding made zero; none is below zero, because none ever was."""
    settled: Float64s = np.where(left > NOTHING * np.maximum(before, 1.0), left, 0.0)
    return settled
