"""What is counted about members and items, and where each count lies in a state.

Aggregates belong to no feature set: two sets that need the same count share it, so publishing a changed set keeps
every history that both declare. A count that is new begins at zero when it is first declared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from services.chassis.ids import content_hash

Float32s: TypeAlias = npt.NDArray[np.float32]
Float64s: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, order=True)
class Tally:
    """Events of a type, each halved every half_life_s; 0: never."""

    event_type: str
    half_life_s: float = 0.0


@dataclass(frozen=True, slots=True, order=True)
class Spread:
    """Events of a type, counted by the hashed categories of the items they name."""

    event_type: str
    attributes: tuple[str, ...]
    buckets: int
    half_life_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Counted:
    """Aggregates that somebody needs.

    Args:
        newest: event types whose newest time is kept.
        of_item: tallies kept of every item.
    """

    tallies: frozenset[Tally] = frozenset()
    spreads: frozenset[Spread] = frozenset()
    newest: frozenset[str] = frozenset()
    of_item: frozenset[Tally] = frozenset()

    def __or__(self, other: "Counted") -> "Counted":
        return Counted(
            self.tallies | other.tallies,
            self.spreads | other.spreads,
            self.newest | other.newest,
            self.of_item | other.of_item,
        )


def half_lives_inverted(half_lives_s: Iterable[float]) -> Float64s:
    """1 ÷ half-life, and 0 where nothing is forgotten: 2^(-seconds · this) is what is left."""
    return np.array([1.0 / value if value else 0.0 for value in half_lives_s])


@dataclass(frozen=True)
class MemberLayout:
    """Where each aggregate lies in a member's state: tallies first, then the spreads, each as long as its buckets."""

    tallies: tuple[Tally, ...]
    spreads: tuple[Spread, ...]
    newest: tuple[str, ...]

    @classmethod
    def of(cls, counted: Counted) -> "MemberLayout":
        """The layout of these aggregates; the same ones always give the same layout."""
        return cls(tuple(sorted(counted.tallies)), tuple(sorted(counted.spreads)), tuple(sorted(counted.newest)))

    @cached_property
    def version(self) -> str:
        """Content hash."""
        return content_hash(repr((self.tallies, self.spreads, self.newest)).encode())

    @cached_property
    def width(self) -> int:
        """Numbers in a state, beside the newest times."""
        return len(self.tallies) + sum(spread.buckets for spread in self.spreads)

    @cached_property
    def tally_slots(self) -> dict[Tally, int]:
        """Slot of each tally."""
        return {tally: slot for slot, tally in enumerate(self.tallies)}

    @cached_property
    def spread_offsets(self) -> dict[Spread, int]:
        """First slot of each spread."""
        offsets, offset = {}, len(self.tallies)
        for spread in self.spreads:
            offsets[spread] = offset
            offset += spread.buckets
        return offsets

    @cached_property
    def newest_slots(self) -> dict[str, int]:
        """Slot of each event type's newest time."""
        return {event_type: slot for slot, event_type in enumerate(self.newest)}

    @cached_property
    def tallies_of(self) -> dict[str, Indices]:
        """Slots of an event type's tallies."""
        return _slots_by_type(self.tallies)

    @cached_property
    def spreads_of(self) -> dict[str, tuple[Spread, ...]]:
        """An event type's spreads."""
        types = {spread.event_type for spread in self.spreads}
        return {name: tuple(s for s in self.spreads if s.event_type == name) for name in types}

    @cached_property
    def decay(self) -> Float64s:
        """1 ÷ half-life of each slot, 0 where nothing is forgotten."""
        each = [tally.half_life_s for tally in self.tallies]
        for spread in self.spreads:
            each += [spread.half_life_s] * spread.buckets
        return half_lives_inverted(each)

    @cached_property
    def decaying(self) -> Indices:
        """Slots that forget."""
        return np.flatnonzero(self.decay)


@dataclass(frozen=True)
class ItemLayout:
    """Where each tally lies in an item's counts."""

    tallies: tuple[Tally, ...] = field(default=())

    @classmethod
    def of(cls, counted: Counted) -> "ItemLayout":
        """The layout of these aggregates; the same ones always give the same layout."""
        return cls(tuple(sorted(counted.of_item)))

    @cached_property
    def version(self) -> str:
        """Content hash."""
        return content_hash(repr(self.tallies).encode())

    @cached_property
    def slots(self) -> dict[Tally, int]:
        """Slot of each tally."""
        return {tally: slot for slot, tally in enumerate(self.tallies)}

    @cached_property
    def tallies_of(self) -> dict[str, Indices]:
        """Slots of an event type's tallies."""
        return _slots_by_type(self.tallies)

    @cached_property
    def decay(self) -> Float64s:
        """1 ÷ half-life of each slot, 0 where nothing is forgotten."""
        return half_lives_inverted(tally.half_life_s for tally in self.tallies)


def _slots_by_type(tallies: tuple[Tally, ...]) -> dict[str, Indices]:
    types = {tally.event_type for tally in tallies}
    return {
        name: np.array([slot for slot, tally in enumerate(tallies) if tally.event_type == name], dtype=np.intp)
        for name in types
    }
