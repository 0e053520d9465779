"""A ranker of the size that figures are stated for, trained on noise: registered and activated."""

from collections.abc import Sequence

import lightgbm as lgb
import numpy as np

from bench.site import LEAVES_COUNT, TREES_COUNT

ROWS_COUNT = 20_000
GROUP_ROWS = 20


def noise_booster(columns: Sequence[str], *, trees_count: int = TREES_COUNT) -> lgb.Booster:
    """LambdaMART of *trees_count* trees of LEAVES_COUNT leaves over these columns."""
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(ROWS_COUNT, len(columns))).astype(np.float32)
    labels = (rng.random(ROWS_COUNT) < 0.2).astype(np.int32)
    data = lgb.Dataset(rows, labels, group=[GROUP_ROWS] * (ROWS_COUNT // GROUP_ROWS), feature_name=list(columns))
    params = {
        "objective": "lambdarank",
        "num_leaves": LEAVES_COUNT,
        "min_data_in_leaf": 20,
        "verbose": -1,
        "seed": 1,
        "num_threads": 2,
    }
    return lgb.train(params, data, num_boost_round=trees_count)
