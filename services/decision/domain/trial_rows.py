"""Rows that models are tried and measured on."""

import numpy as np

from services.decision.domain.layout import Floats

# So many rows a Decide may have at most; its limit on candidates.
ROWS_MAX = 1000
# Golden rows, whose scores trainer and service compare.
GOLDEN_COUNT = 64
_SEED = 7


def rows(count: int, columns_count: int) -> Floats:
    """Zeros, missing values, and a spread of magnitudes, the same for everybody; float32 (count, columns_count)."""
    some = np.random.Generator(np.random.Philox(_SEED)).normal(size=(count, columns_count)).astype(np.float32)
    some[1::4] *= 1000
    some[2::4] = np.where(some[2::4] > 0, np.float32(np.nan), some[2::4])
    some[0::64], some[3::64] = 0.0, np.nan
    return some


def golden_rows(columns_count: int) -> Floats:
    """The rows whose scores a trainer sends along, (GOLDEN_COUNT, columns_count)."""
    return rows(GOLDEN_COUNT, columns_count)
