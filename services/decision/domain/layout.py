"""From a subject's vector, item rows and the context to the model's input matrix, column by column.

The layout is the feature set's (services/features compiles it from the declared features); this module only follows
it, vectorized: a columnar gather and a few small dot products, no object a candidate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.chassis.errors import FieldProblem
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import ValueState

Floats = NDArray[np.float32]
Integers = NDArray[np.intp]

# As much as features compiles at most.
WIDTH_MAX = 2048
COLUMNS_MAX = 512

_PRESENT = bytes([ValueState.PRESENT])


@dataclass(frozen=True, slots=True)
class SubjectColumn:
    """subject[offset], the same for every candidate."""

    offset: int


@dataclass(frozen=True, slots=True)
class ItemColumn:
    """item[offset]."""

    offset: int


@dataclass(frozen=True, slots=True)
class DotColumn:
    """The dot product of a segment of the subject's vector and one of the item's row."""

    subject_offset: int
    item_offset: int
    width: int


@dataclass(frozen=True, slots=True)
class ContextColumn:
    """A number of the context, the same for every candidate."""

    key: str
    default_value: float


Source = SubjectColumn | ItemColumn | DotColumn | ContextColumn


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the model's input.

    Args:
        purposes: all of them must be allowed; else the column is NaN.
    """

    name: str
    feature: str
    purposes: tuple[str, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """The layout that a site decides with."""

    version: str
    subject_width: int
    item_width: int
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject's vector as it was read.

    Args:
        vector: float32, shape (subject_width,).
        states: one ValueState a value.
    """

    vector: Floats
    states: bytes


def misplaced(feature_set: FeatureSet) -> Iterator[FieldProblem]:
    """What would be read from outside of vector and row, and widths that no feature set has."""
    for name, width, width_max in (
        ("subject_width", feature_set.subject_width, WIDTH_MAX),
        ("item_width", feature_set.item_width, WIDTH_MAX),
        ("columns", len(feature_set.columns), COLUMNS_MAX),
    ):
        if width > width_max:
            yield FieldProblem(f"feature_set.{name}", f"is above {width_max}; send the set that features published")
    for k, column in enumerate(feature_set.columns):
        if any(end > width for end, width in _ends(feature_set, column.source)):
            problem = "reads beyond the subject's vector or the item's row; send the set that features published"
            yield FieldProblem(f"feature_set.columns[{k}]", problem)


def _ends(feature_set: FeatureSet, source: Source) -> list[tuple[int, int]]:
    """Where what a column reads ends, and how much there is."""
    match source:
        case SubjectColumn(offset):
            return [(offset + 1, feature_set.subject_width)]
        case ItemColumn(offset):
            return [(offset + 1, feature_set.item_width)]
        case DotColumn(subject_offset, item_offset, width):
            return [
                (subject_offset + width, feature_set.subject_width),
                (item_offset + width, feature_set.item_width),
            ]
        case ContextColumn():
            return []


class Layout:
    """A feature set made ready to assemble matrices."""

    def __init__(self, feature_set: FeatureSet) -> None:
        self.feature_set = feature_set
        columns = list(enumerate(feature_set.columns))
        items = [(k, c.source.offset) for k, c in columns if isinstance(c.source, ItemColumn)]
        subjects = [(k, c.source.offset) for k, c in columns if isinstance(c.source, SubjectColumn)]
        self._item_columns, self._item_offsets = _pairs(items)
        self._subject_columns, self._subject_offsets = _pairs(subjects)
        self._dots = [(k, c.source) for k, c in columns if isinstance(c.source, DotColumn)]
        self._contexts = [(k, c.source) for k, c in columns if isinstance(c.source, ContextColumn)]
        self.width = len(columns)
        self.purposes = frozenset(purpose for column in feature_set.columns for purpose in column.purposes)
        self.context_keys = frozenset(source.key for _, source in self._contexts)
        # A site has a handful of purposes, so few sets of allowed ones come up.
        self.blocked_columns = lru_cache(maxsize=256)(self._blocked_columns)
        self._withheld_values = lru_cache(maxsize=256)(self._find_withheld_values)

    def column(self, name: str) -> int | None:
        """Index of the model column with this name, or of the only one its feature has; None when there is none."""
        columns = self.feature_set.columns
        named = [k for k, column in enumerate(columns) if column.name == name]
        named = named or [k for k, column in enumerate(columns) if column.feature == name]
        return named[0] if len(named) == 1 else None

    def item_offset(self, name: str) -> int | None:
        """Offset in the item row of the item column with this name; None when there is none."""
        index = self.column(name)
        source = None if index is None else self.feature_set.columns[index].source
        return source.offset if isinstance(source, ItemColumn) else None

    def permitted(self, subject: Subject, allowed: frozenset[str]) -> Subject:
        """The subject without what no allowed column reads: those values are MISSING, for the model and for the log."""
        withheld = self._withheld_values(allowed)
        if not len(withheld):
            return subject
        vector, states = subject.vector.copy(), bytearray(subject.states)
        vector[withheld] = np.nan
        for k in withheld.tolist():
            states[k] = ValueState.MISSING
        return Subject(vector, bytes(states))

    def assemble(self, rows: Floats, subject: Subject, context: Context, allowed: frozenset[str]) -> Floats:
        """The model's input for these candidates.

        Args:
            rows: float32, shape (candidates_count, item_width).
            subject: a value that is not PRESENT enters as NaN: neither stale nor missing is served as fresh.
            context: facts of the request; what is absent or no number is the column's default.
            allowed: purposes that are allowed; a column that needs another one is NaN.

        Returns:
            float32, C order, shape (candidates_count, width).
        """
        vector = usable(subject)
        matrix = np.empty((len(rows), self.width), dtype=np.float32)
        matrix[:, self._item_columns] = rows[:, self._item_offsets]
        self._fill_shared(matrix, vector, context)
        for column, dot in self._dots:
            segment = vector[dot.subject_offset : dot.subject_offset + dot.width]
            # Not `@`: BLAS adds in an order that depends on how many rows there are, and starts threads of its own.
            np.einsum("nw,w->n", rows[:, dot.item_offset : dot.item_offset + dot.width], segment, out=matrix[:, column])
        blocked = self.blocked_columns(allowed)
        if len(blocked):
            matrix[:, blocked] = np.nan
        return matrix

    def shared_differs(
        self, matrix: Floats, subject: Subject, context: Context, allowed: frozenset[str]
    ) -> tuple[str, ...]:
        """Columns of the matrix that are the same for every candidate and do not follow from subject and context."""
        expected = np.zeros_like(matrix)
        self._fill_shared(expected, usable(subject), context)
        expected[:, self.blocked_columns(allowed)] = np.nan
        shared = [*self._subject_columns, *(column for column, _ in self._contexts)]
        return tuple(
            self.feature_set.columns[column].name
            for column in shared
            if matrix[:, column].tobytes() != expected[:, column].tobytes()
        )

    def _fill_shared(self, matrix: Floats, vector: Floats, context: Context) -> None:
        """Write the columns that are the same for every candidate."""
        if len(self._subject_columns):
            matrix[:, self._subject_columns] = vector[self._subject_offsets]
        for column, source in self._contexts:
            fact = context.get(source.key)
            matrix[:, column] = source.default_value if fact is None or isinstance(fact, str) else fact

    def _blocked_columns(self, allowed: frozenset[str]) -> Integers:
        """Columns whose purposes are not all allowed."""
        columns = self.feature_set.columns
        return np.array(
            [k for k, column in enumerate(columns) if not allowed.issuperset(column.purposes)], dtype=np.intp
        )

    def _find_withheld_values(self, allowed: frozenset[str]) -> Integers:
        """Places of the subject's vector that only blocked columns read."""
        blocked = set(self.blocked_columns(allowed).tolist())
        if not blocked:
            return np.array([], dtype=np.intp)
        read: dict[bool, set[int]] = {True: set(), False: set()}
        for k, column in enumerate(self.feature_set.columns):
            source = column.source
            if isinstance(source, SubjectColumn):
                read[k in blocked].add(source.offset)
            elif isinstance(source, DotColumn):
                read[k in blocked].update(range(source.subject_offset, source.subject_offset + source.width))
        return np.array(sorted(read[True] - read[False]), dtype=np.intp)


def usable(subject: Subject) -> Floats:
    """The vector with NaN wherever the value is missing or stale."""
    if subject.states.count(_PRESENT) == len(subject.vector):
        return subject.vector
    present = np.frombuffer(subject.states, dtype=np.uint8) == ValueState.PRESENT
    return np.where(present, subject.vector, np.float32(np.nan))


def _pairs(pairs: list[tuple[int, int]]) -> tuple[Integers, Integers]:
    array = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return array[:, 0], array[:, 1]
