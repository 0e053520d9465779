"""The fold of one member's behavior: event by event into a fixed block of counts, and that block as a blob.

Counts are float32 throughout, so that a state that was stored and read again goes on exactly as one that stayed in
memory. Those that forget are kept at one reference time, the newest event's: an older event that comes later is
weighted down to it, so the order in which things happened does not matter, only which positions were seen.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from services.chassis.events import ORIGIN, LogPosition
from services.chassis.ids import partition_of
from services.features.domain.aggregates import Float32s, Float64s, Indices, MemberLayout, Spread
from services.features.domain.catalog import CatalogItem, ItemVersion, bucket_counts, place_at

# Format 1: member id, layout version, position, reference time; then newest times (f8) and counts (f4), little endian.
FORMAT = 1
HEADER = struct.Struct("<B26s8sxIQQd")
MEMBER_ID_CHARS = 26
NEVER_S = -math.inf

# Slots that an event on an item adds to, and how much; by event type.
Contribution: TypeAlias = Mapping[str, tuple[Indices, Float32s]]
# Of an item at a time (seconds since 1970). None: the item is in no catalog, and counts only towards what does not ask
# for categories; until it is in one (fold_pending).
Contributions: TypeAlias = Callable[[str, float], Contribution | None]


class UnreadableStateError(Exception):
    """A blob is not a state of the member and the layouts asked for; holds no member id."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Behavior:
    """An event as the fold sees it.

    Args:
        item_ids: what it is about; each counts once.
        occurred_s: seconds since 1970, UTC.
        position: in the behavior log; decides whether it has been folded.
        stream_id: in the behavior log.
    """

    member_id: str
    type: str
    item_ids: tuple[str, ...]
    occurred_s: float
    position: LogPosition
    stream_id: str = ""

    @property
    def partition(self) -> int:
        """Of the blocks that it counts in: its member's; what is nobody's is spread by its stream."""
        return partition_of(self.member_id or self.stream_id)


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that was folded before the catalog had an item of it.

    Args:
        layout: version of the layout it was folded in: what was first declared later does not count it.
    """

    member_id: str
    type: str
    item_id: str
    occurred_s: float
    layout: str


@dataclass(frozen=True, slots=True, eq=False)
class MemberState:
    """What one member's behavior adds up to; arrays are never changed.

    Args:
        position: of the last event folded in.
        reference_s: the time that forgetting counts stand at.
        newest_s: newest time of each event type that the layout names; -inf: none.
        counts: float32, layout.width.
    """

    member_id: str
    position: LogPosition
    reference_s: float
    newest_s: Float64s
    counts: Float32s


def empty(layout: MemberLayout, member_id: str) -> MemberState:
    """The state before the first event."""
    return MemberState(
        member_id,
        ORIGIN,
        NEVER_S,
        np.full(len(layout.newest), NEVER_S),
        np.zeros(layout.width, dtype=np.float32),
    )


def fold(
    layout: MemberLayout, state: MemberState, events: Sequence[Behavior], contributions: Contributions
) -> MemberState:
    """The state after these events of its member; those at or before its position change nothing.

    Folding events one by one, or in batches cut anywhere, gives the same bits.
    """
    counts, newest_s = state.counts.copy(), state.newest_s.copy()
    position, reference_s = state.position, state.reference_s
    for event in events:
        assert event.member_id == state.member_id
        if event.position <= position:
            continue
        position = event.position
        if event.occurred_s > reference_s:
            _forget(layout, counts, event.occurred_s - reference_s)
            reference_s = event.occurred_s
        _count(layout, counts, event, contributions, late_s=reference_s - event.occurred_s)
        slot = layout.newest_slots.get(event.type)
        if slot is not None:
            newest_s[slot] = max(newest_s[slot], event.occurred_s)
    return MemberState(state.member_id, position, reference_s, newest_s, counts)


def pending_of(layout: MemberLayout, events: Iterable[Behavior], contributions: Contributions) -> list[Pending]:
    """What of these events waits for an item: events of somebody, of types whose categories are counted."""
    return [
        Pending(event.member_id, event.type, item_id, event.occurred_s, layout.version)
        for event in events
        if event.member_id and event.type in layout.spreads_of
        for item_id in dict.fromkeys(event.item_ids)
        if contributions(item_id, event.occurred_s) is None
    ]


def fold_pending(
    layout: MemberLayout,
    state: MemberState,
    pending: Sequence[Pending],
    contributions: Contributions,
    layouts: Mapping[str, MemberLayout],
) -> MemberState:
    """The state as it would be, had the items been there when these events of its member were folded.

    Args:
        layouts: every layout by version.
    """
    counts = state.counts.copy()
    for one in pending:
        assert one.member_id == state.member_id
        found = contributions(one.item_id, one.occurred_s) or {}
        if one.type in found:
            slots, amounts = found[one.type]
            declared = _declared_in(layout, layouts.get(one.layout, layout))[slots]
            _spread(layout, counts, slots[declared], amounts[declared], late_s=state.reference_s - one.occurred_s)
    return replace(state, counts=counts)


def contributions_of(layout: MemberLayout, items: Mapping[str, Sequence[ItemVersion]]) -> Contributions:
    """What events on these items add, by the categories that the item had at the event's time, else its first."""
    known: dict[tuple[str, int], Contribution] = {}

    def of(item_id: str, at_s: float) -> Contribution | None:
        versions = items.get(item_id)
        if not versions:
            return None
        key = item_id, place_at(versions, at_s)
        if key not in known:
            known[key] = contribution(layout, versions[key[1]].item)
        return known[key]

    return of


def contribution(layout: MemberLayout, item: CatalogItem) -> Contribution:
    """What an event on the item adds to the spreads, by event type."""
    return {event_type: _spread_out(layout, item, spreads) for event_type, spreads in layout.spreads_of.items()}


def encode(layout: MemberLayout, state: MemberState) -> bytes:
    """The state as a blob."""
    assert len(state.member_id) == MEMBER_ID_CHARS
    place = state.position
    header = HEADER.pack(
        FORMAT,
        state.member_id.encode(),
        bytes.fromhex(layout.version),
        place.epoch,
        place.xid,
        place.position,
        state.reference_s,
    )
    return header + state.newest_s.tobytes() + state.counts.tobytes()


def decode(
    layout: MemberLayout, blob: bytes, member_id: str, layouts: Mapping[str, MemberLayout] | None = None
) -> MemberState:
    """The state in a blob; one in an older layout is carried over to *layout*, counts that it had not begin at zero.

    Args:
        member_id: whose state it must be.
        layouts: older layouts by version.

    Raises:
        UnreadableStateError: it is another member's (MEMBER), of an unknown layout (LAYOUT), or malformed (FORMAT).
    """
    if len(blob) < HEADER.size:
        raise UnreadableStateError("FORMAT")
    form, member, version, epoch, xid, place, reference_s = HEADER.unpack_from(blob)
    if form != FORMAT:
        raise UnreadableStateError("FORMAT")
    # A reply that went astray must never become somebody else's profile.
    if member != member_id.encode():
        raise UnreadableStateError("MEMBER")
    written = layout if version.hex() == layout.version else (layouts or {}).get(version.hex())
    if written is None:
        raise UnreadableStateError("LAYOUT")
    counts_at = HEADER.size + 8 * len(written.newest)
    if len(blob) != counts_at + 4 * written.width:
        raise UnreadableStateError("FORMAT")
    newest_s = np.frombuffer(blob[HEADER.size : counts_at], dtype="<f8")
    counts = np.frombuffer(blob[counts_at:], dtype="<f4")
    if written is not layout:
        newest_s, counts = _carry_over(written, layout, newest_s, counts)
    return MemberState(member_id, LogPosition(epoch, xid, place), reference_s, newest_s, counts)


def _forget(layout: MemberLayout, counts: Float32s, seconds: float) -> None:
    slots = layout.decaying
    if slots.size:
        counts[slots] *= np.exp2(-seconds * layout.decay[slots]).astype(np.float32)


def _count(
    layout: MemberLayout, counts: Float32s, event: Behavior, contributions: Contributions, *, late_s: float
) -> None:
    """Add the event; where counts forget, as much as is left of it after *late_s*."""
    item_ids = dict.fromkeys(event.item_ids)
    tallies = layout.tallies_of.get(event.type)
    if tallies is not None:
        left = np.exp2(-late_s * layout.decay[tallies]).astype(np.float32)
        counts[tallies] += np.float32(len(item_ids) or 1) * left
    if event.type not in layout.spreads_of:
        return
    added = [contributions(item_id, event.occurred_s) for item_id in item_ids]
    known = [found[event.type] for found in added if found is not None]
    if known:
        slots = np.concatenate([slots for slots, _ in known])
        _spread(layout, counts, slots, np.concatenate([amounts for _, amounts in known]), late_s=late_s)


def _spread(layout: MemberLayout, counts: Float32s, slots: Indices, amounts: Float32s, *, late_s: float) -> None:
    """Add to the spreads' slots; where counts forget, as much as is left after *late_s*."""
    if late_s > 0.0:
        amounts = amounts * np.exp2(-late_s * layout.decay[slots]).astype(np.float32)
    # Two items may share a bucket: plain indexing would count only one of them.
    np.add.at(counts, slots, amounts)


def _declared_in(layout: MemberLayout, then: MemberLayout) -> npt.NDArray[np.bool_]:
    """Whether each slot is of a spread that the other layout has, too."""
    declared = np.zeros(layout.width, dtype=np.bool_)
    for spread, offset in layout.spread_offsets.items():
        declared[offset : offset + spread.buckets] = spread in then.spread_offsets
    return declared


def _spread_out(layout: MemberLayout, item: CatalogItem, spreads: Sequence[Spread]) -> tuple[Indices, Float32s]:
    slots, amounts = [], []
    for spread in spreads:
        buckets, fallen = bucket_counts(item, spread.attributes, spread.buckets)
        slots.append(buckets + layout.spread_offsets[spread])
        amounts.append(fallen.astype(np.float32))
    return np.concatenate(slots), np.concatenate(amounts)


def _carry_over(
    old: MemberLayout, new: MemberLayout, newest_s: Float64s, counts: Float32s
) -> tuple[Float64s, Float32s]:
    """The counts that both layouts have, where the new one has them."""
    into = empty(new, "")
    shared = [name for name in new.newest if name in old.newest_slots]
    into.newest_s[[new.newest_slots[name] for name in shared]] = newest_s[[old.newest_slots[name] for name in shared]]
    for tally, slot in new.tally_slots.items():
        if tally in old.tally_slots:
            into.counts[slot] = counts[old.tally_slots[tally]]
    for spread, offset in new.spread_offsets.items():
        if spread in old.spread_offsets:
            begin = old.spread_offsets[spread]
            into.counts[offset : offset + spread.buckets] = counts[begin : begin + spread.buckets]
    return into.newest_s, into.counts
