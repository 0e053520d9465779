"""The model's input follows the feature set column by column, and nothing unfit is served as fresh."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services.decision.domain.catalog import NO_ITEMS, item_rows_of
from services.decision.domain.layout import Layout, Subject
from tests.unit.decision.world import FEATURE_SET, ITEMS, PROFILE, SUBJECT, catalog, columns

LAYOUT = Layout(FEATURE_SET)
ALLOWED = frozenset({PROFILE})
PRICE, CLICKS, VISITS, AFFINITY, HOUR = range(5)
floats = st.floats(-100, 100, width=32)


@given(rows=hnp.arrays(np.float32, (7, 4), elements=floats), vector=hnp.arrays(np.float32, 3, elements=floats))
def test_each_column_comes_from_its_source(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float32]], vector: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> None:
    """Item values are gathered, subject and context values shared, affinities are dot products."""
    matrix = LAYOUT.assemble(rows, Subject(vector, b"\1\1\1"), {"hour": 19.0}, ALLOWED)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(matrix[:, PRICE], rows[:, 0])
    np.testing.assert_array_equal(matrix[:, VISITS], vector[0])
    np.testing.assert_array_equal(matrix[:, HOUR], np.float32(19))
    np.testing.assert_allclose(matrix[:, AFFINITY], rows[:, 2:4] @ vector[1:3], rtol=1e-4, atol=1e-3)


def test_a_column_without_its_purpose_is_missing() -> None:
    """What needs a purpose that is not allowed enters as NaN, everything else as it is."""
    matrix = LAYOUT.assemble(columns().rows, SUBJECT, {}, frozenset())
    assert np.isnan(matrix[:, [VISITS, AFFINITY]]).all()
    assert not np.isnan(matrix[:, [PRICE, CLICKS, HOUR]]).any()


@pytest.mark.parametrize("state", [0, 2, 3])
def test_a_missing_or_stale_value_is_never_served_as_fresh(state: int) -> None:
    """Only PRESENT values count; a dot product over one that is not is unknown."""
    matrix = LAYOUT.assemble(columns().rows, Subject(SUBJECT.vector, bytes([1, state, 1])), {}, ALLOWED)
    assert np.isnan(matrix[:, AFFINITY]).all()
    assert not np.isnan(matrix[:, VISITS]).any()


@pytest.mark.parametrize(("context", "value"), [({}, 12.0), ({"hour": "x"}, 12.0), ({"hour": True}, 1.0)])
def test_a_context_column_has_a_default(context: dict[str, str | bool], value: float) -> None:
    """A fact that is absent or no number is the column's default."""
    assert LAYOUT.assemble(columns().rows, SUBJECT, context, ALLOWED)[0, HOUR] == value


def test_item_rows_follow_the_catalog() -> None:
    """Rows come in the catalog's order whatever order features sent; what features do not know is unknown."""
    backwards = catalog(ITEMS[::-1])
    held = columns(ITEMS[:-1])
    rows = item_rows_of(held, backwards)
    found = rows.of(np.array([1, 5, 0, -1]))
    np.testing.assert_array_equal(found[:2], held.rows[[4, 0]])
    assert np.isnan(found[2:]).all()
    np.testing.assert_array_equal(rows.values(np.array([1, 0]), 1), [held.rows[4, 1], np.nan])
    assert np.isnan(item_rows_of(held, NO_ITEMS).of(np.array([-1]))).all()


def test_a_column_is_found_by_name_or_by_its_only_feature() -> None:
    """`popular_by` and column rankers name columns; only item columns can be popular."""
    assert LAYOUT.column("affinity") == AFFINITY
    assert LAYOUT.item_offset("clicks") == 1
    assert LAYOUT.item_offset("visits") is None
    assert LAYOUT.column("nothing") is None
