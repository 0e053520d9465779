"""The fold of behavior on items: one block of counts an item and channel partition, and that block as a blob.

A partition's events come in order, those of different partitions interleave at will. With a block for each, the last
position alone tells whether an event was counted; whoever reads an item adds its blocks up.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from services.chassis.events import ORIGIN, LogPosition
from services.features.domain.aggregates import Float64s, ItemLayout
from services.features.domain.members import Behavior, UnreadableStateError

# Format 1: layout version, position, reference time; then counts (f8), little endian. Counts of a whole site outgrow
# what a float32 can still be increased by one.
FORMAT = 1
HEADER = struct.Struct("<B8s3xIQQd")
NEVER_S = -math.inf

# Item and partition.
Block: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class ItemCounts:
    """What the behavior of one partition adds up to on one item; the array is never changed.

    Args:
        position: of the last event folded in.
        reference_s: the time that forgetting counts stand at.
        counts: float64, one a tally of the layout.
    """

    position: LogPosition
    reference_s: float
    counts: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class ItemTotals:
    """Counts of many items, all partitions together; row k is item k's."""

    reference_s: Float64s
    counts: Float64s


def blocks_of(events: Iterable[Behavior]) -> set[Block]:
    """The blocks that these events count in."""
    return {(item_id, event.partition) for event in events for item_id in event.item_ids}


def fold_items(
    layout: ItemLayout, before: Mapping[Block, ItemCounts], events: Sequence[Behavior]
) -> dict[Block, ItemCounts]:
    """The blocks after these events, those that did not exist yet included.

    An event counts once on each item it names, and changes no block that stands at or after its position.
    """
    blocks = sorted(blocks_of(events))
    row_of = {block: row for row, block in enumerate(blocks)}
    states = [before.get(block) for block in blocks]
    positions = [state.position if state else ORIGIN for state in states]
    reference_s = np.array([state.reference_s if state else NEVER_S for state in states])
    counts = np.zeros((len(blocks), len(layout.tallies)))
    for row, state in enumerate(states):
        if state is not None:
            counts[row] = state.counts
    for event in events:
        named = [row_of[item_id, event.partition] for item_id in dict.fromkeys(event.item_ids)]
        rows = [row for row in named if positions[row] < event.position]
        if rows:
            _count(layout, counts, reference_s, np.array(rows), event)
            for row in rows:
                positions[row] = event.position
    return {block: ItemCounts(positions[row], float(reference_s[row]), counts[row]) for block, row in row_of.items()}


def total(layout: ItemLayout, blocks: Sequence[Sequence[ItemCounts]]) -> ItemTotals:
    """Each item's blocks together, at the newest reference time among them; zeros for an item that has none."""
    row_of = [row for row, own in enumerate(blocks) for _ in own]
    reference_s = np.full(len(blocks), NEVER_S)
    counts = np.zeros((len(blocks), len(layout.tallies)))
    if row_of:
        own_s = np.array([block.reference_s for own in blocks for block in own])
        np.maximum.at(reference_s, row_of, own_s)
        left = at(layout, np.stack([block.counts for own in blocks for block in own]), own_s, reference_s[row_of])
        np.add.at(counts, row_of, left)
    return ItemTotals(reference_s, counts)


def at(layout: ItemLayout, counts: Float64s, reference_s: Float64s, now_s: Float64s | float) -> Float64s:
    """What is left at *now_s* of counts that stand at their reference times; before those, all of it."""
    if not layout.decay.any():
        return counts
    with np.errstate(invalid="ignore"):
        age_s = np.where(np.isfinite(reference_s), np.maximum(now_s - reference_s, 0.0), 0.0)
    left: Float64s = counts * np.exp2(-age_s[:, None] * layout.decay)
    return left


def encode(layout: ItemLayout, state: ItemCounts) -> bytes:
    """The block as a blob."""
    place = state.position
    version = bytes.fromhex(layout.version)
    header = HEADER.pack(FORMAT, version, place.epoch, place.xid, place.position, state.reference_s)
    return header + state.counts.tobytes()


def decode(layout: ItemLayout, blob: bytes, layouts: Mapping[str, ItemLayout] | None = None) -> ItemCounts:
    """The block in a blob; one in an older layout is carried over, counts that it had not begin at zero.

    Raises:
        UnreadableStateError: it is of an unknown layout (LAYOUT) or malformed (FORMAT).
    """
    if len(blob) < HEADER.size:
        raise UnreadableStateError("FORMAT")
    form, version, epoch, xid, place, reference_s = HEADER.unpack_from(blob)
    if form != FORMAT:
        raise UnreadableStateError("FORMAT")
    written = layout if version.hex() == layout.version else (layouts or {}).get(version.hex())
    if written is None:
        raise UnreadableStateError("LAYOUT")
    if len(blob) != HEADER.size + 8 * len(written.tallies):
        raise UnreadableStateError("FORMAT")
    counts = np.frombuffer(blob[HEADER.size :], dtype="<f8")
    if written is not layout:
        counts = np.array([counts[written.slots[tally]] if tally in written.slots else 0.0 for tally in layout.tallies])
    return ItemCounts(LogPosition(epoch, xid, place), reference_s, counts)


def _count(
    layout: ItemLayout, counts: Float64s, reference_s: Float64s, rows: "np.typing.NDArray[np.intp]", event: Behavior
) -> None:
    """Count the event on these rows, each taken to the newer of its own time and the event's."""
    own_s = reference_s[rows]
    newer_s = np.maximum(own_s, event.occurred_s)
    slots = layout.tallies_of.get(event.type)
    counts[rows] = at(layout, counts[rows], own_s, newer_s)
    reference_s[rows] = newer_s
    if slots is not None:
        late_s = newer_s - event.occurred_s
        counts[rows[:, None], slots] += np.exp2(-late_s[:, None] * layout.decay[slots])
