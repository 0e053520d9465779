"""From the states of members to vectors of subjects, many at once: the only place where subject features are computed.

Members merge by addition of what is left of their counts at the moment of reading, so a merge of subjects moves
nothing and undoing it restores each side. The order of members does not matter beyond the last bit of a float.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from services.chassis.events import ORIGIN, LogPosition
from services.features.domain.aggregates import Float32s, Float64s, MemberLayout, Spread, Tally
from services.features.domain.declared import (
    CategoryAffinity,
    Similarity,
    SubjectCount,
    SubjectRate,
    SubjectRecency,
    Transform,
)
from services.features.domain.feature_set import FeatureSet, Place
from services.features.domain.members import MemberState

UInt8s: TypeAlias = npt.NDArray[np.uint8]
Booleans: TypeAlias = npt.NDArray[np.bool_]
# Weights of each similarity's dimensions, fitted from the catalog (item_rows.fit); by feature name.
Weights: TypeAlias = Mapping[str, Float64s]


class ValueState(IntEnum):
    """How far a value can be trusted; numbers as on the wire."""

    PRESENT = 1
    MISSING = 2
    STALE = 3


@dataclass(frozen=True, slots=True)
class Question:
    """Whose features, and at which moment.

    Args:
        states: of those of the subject's members that have one.
        as_of_s: seconds since 1970; decays and recencies are taken to it.
    """

    states: Sequence[MemberState]
    as_of_s: float


@dataclass(frozen=True, slots=True)
class Answers:
    """One row a question.

    Args:
        vectors: float32, subject_width; NaN where MISSING, so that what is computed from it is missing too.
        states: uint8 ValueState, one a value.
        positions: newest position folded into any member.
    """

    vectors: Float32s
    states: UInt8s
    positions: tuple[LogPosition, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """What the members' counts come to at the moment of reading; row k is question k's.

    Args:
        counts: float64, layout.width.
        newest_s: newest time of each event type; -inf: none.
        as_of_s: one a row.
        known: whether any member has a state.
    """

    counts: Float64s
    newest_s: Float64s
    as_of_s: Float64s
    known: Booleans


def read(feature_set: FeatureSet, layout: MemberLayout, weights: Weights, questions: Sequence[Question]) -> Answers:
    """The subjects' features: one question's answer has the same bits alone and among others."""
    totals = merge(layout, questions)
    vectors = np.full((len(questions), feature_set.subject_width), np.nan, dtype=np.float32)
    states = np.full(vectors.shape, ValueState.MISSING, dtype=np.uint8)
    for place in feature_set.places:
        if place.subject_width:
            span = slice(place.subject_offset, place.subject_offset + place.subject_width)
            values, newest_s = _values(place, layout, weights, totals)
            present = totals.known[:, None] & ~np.isnan(values)
            vectors[:, span] = np.where(present, values, np.nan)
            states[:, span] = np.where(present, _freshness(place, totals, newest_s)[:, None], ValueState.MISSING)
    positions = tuple(max((s.position for s in question.states), default=ORIGIN) for question in questions)
    return Answers(vectors, states, positions)


def merge(layout: MemberLayout, questions: Sequence[Question]) -> Totals:
    """Each question's members together."""
    states = [state for question in questions for state in question.states]
    row_of = [row for row, question in enumerate(questions) for _ in question.states]
    as_of_s = np.array([question.as_of_s for question in questions], dtype=np.float64)
    counts = np.zeros((len(questions), layout.width))
    newest_s = np.full((len(questions), len(layout.newest)), -np.inf)
    known = np.zeros(len(questions), dtype=np.bool_)
    if states:
        each = np.stack([state.counts for state in states]).astype(np.float64)
        reference_s = np.array([state.reference_s for state in states])
        slots = layout.decaying
        if slots.size:
            # A clock that is behind the event's must not make counts grow.
            age_s = np.maximum(as_of_s[row_of] - reference_s, 0.0)
            each[:, slots] *= np.exp2(-age_s[:, None] * layout.decay[slots])
        np.add.at(counts, row_of, each)
        np.maximum.at(newest_s, row_of, np.stack([state.newest_s for state in states]))
        known[row_of] = True
    return Totals(counts, newest_s, as_of_s, known)


def _values(place: Place, layout: MemberLayout, weights: Weights, totals: Totals) -> tuple[Float64s, Float64s]:
    """A feature's values, NaN where undefined; and the newest time of an event that it is made of."""
    match place.feature.kind:
        case SubjectCount(event_type, half_life_s, transform):
            counts = _tally(layout, totals, event_type, half_life_s)
            values = np.log1p(counts) if transform is Transform.LOG1P else counts
            return values[:, None], _newest(layout, totals, event_type)
        case SubjectRate() as kind:
            return _rate(kind, layout, totals)[:, None], _newest(layout, totals, kind.numerator, kind.denominator)
        case SubjectRecency(event_type, half_life_s):
            newest_s = _newest(layout, totals, event_type)
            age_s = np.maximum(totals.as_of_s - newest_s, 0.0)
            return np.exp2(-age_s / half_life_s)[:, None], newest_s
        case CategoryAffinity() as kind:
            types = (kind.numerator, kind.denominator) if kind.denominator else (kind.numerator,)
            return _affinity(kind, layout, totals), _newest(layout, totals, *types)
        case Similarity(attributes, event_type, dimensions):
            spread = Spread(event_type, attributes, dimensions)
            directions = _directions(_spread(layout, totals, spread) * weights[place.feature.name])
            return directions, _newest(layout, totals, event_type)
        case _:
            raise AssertionError("no subject feature")


def _rate(kind: SubjectRate, layout: MemberLayout, totals: Totals) -> Float64s:
    wanted = kind.prior_strength * kind.prior_rate + _tally(layout, totals, kind.numerator, 0.0)
    return _divided(wanted, kind.prior_strength + _tally(layout, totals, kind.denominator, 0.0))


def _affinity(kind: CategoryAffinity, layout: MemberLayout, totals: Totals) -> Float64s:
    """Per bucket (k·r + c) ÷ (k + n) - r, which is (c - r·n) ÷ (k + n); without a denominator c ÷ (k + total)."""

    def spread(event_type: str) -> Float64s:
        of = Spread(event_type, (kind.attribute,), kind.buckets, kind.half_life_s)
        return _spread(layout, totals, of)

    total = _tally(layout, totals, kind.numerator, kind.half_life_s)
    if not kind.denominator:
        shares = _divided(spread(kind.numerator), (kind.prior_strength + total)[:, None])
        return np.where(total[:, None] > 0.0, shares, np.nan)
    occasions = _tally(layout, totals, kind.denominator, kind.half_life_s)
    usual = _divided(total, occasions)[:, None]
    seen = spread(kind.denominator)
    more = _divided(spread(kind.numerator) - usual * seen, kind.prior_strength + seen)
    # A category never met says nothing, also where there is no prior to say so.
    return np.where(np.isnan(usual), np.nan, np.where(seen > 0.0, more, 0.0))


def _directions(rows: Float64s) -> Float64s:
    """Rows of length 1; NaN where a row has no direction."""
    return _divided(rows, np.sqrt(np.sum(rows * rows, axis=1))[:, None])


def _divided(above: Float64s, below: Float64s) -> Float64s:
    """The quotient; NaN where there is nothing below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0.0, above / below, np.nan)


def _tally(layout: MemberLayout, totals: Totals, event_type: str, half_life_s: float) -> Float64s:
    return totals.counts[:, layout.tally_slots[Tally(event_type, half_life_s)]]


def _spread(layout: MemberLayout, totals: Totals, spread: Spread) -> Float64s:
    offset = layout.spread_offsets[spread]
    return totals.counts[:, offset : offset + spread.buckets]


def _newest(layout: MemberLayout, totals: Totals, *event_types: str) -> Float64s:
    newest_s: Float64s = totals.newest_s[:, [layout.newest_slots[name] for name in event_types]].max(axis=1)
    return newest_s


def _freshness(place: Place, totals: Totals, newest_s: Float64s) -> UInt8s:
    """STALE where the newest event is older than the feature allows; a feature that saw none is not stale."""
    allowed_s = place.feature.freshness_s
    if not allowed_s:
        return np.full(len(newest_s), ValueState.PRESENT, dtype=np.uint8)
    old = np.isfinite(newest_s) & (totals.as_of_s - newest_s > allowed_s)
    return np.where(old, ValueState.STALE, ValueState.PRESENT).astype(np.uint8)
