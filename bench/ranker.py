"""A ranker of the size that figures are stated for, trained on noise: registered and activated."""

import asyncio
from collections.abc import Sequence

import lightgbm as lgb
import numpy as np
from comity.features.v1 import features_service_pb2 as features_pb

from bench.site import LEAVES_COUNT, MODEL, TREES_COUNT
from cli.connections import Services
from learning.export import export
from learning.register import activate, register
from services.chassis.rpc_client import call

TIMEOUT_S = 10.0

ROWS_COUNT = 20_000
GROUP_ROWS = 20


def noise_booster(columns: Sequence[str], *, trees_count: int = TREES_COUNT) -> lgb.Booster:
    """LambdaMART of *trees_count* trees of LEAVES_COUNT leaves over these columns."""
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(ROWS_COUNT, len(columns))).astype(np.float32)
    labels = (rng.random(ROWS_COUNT) < 0.2).astype(np.int32)
    data = lgb.Dataset(
        rows,
        labels,
        group=[GROUP_ROWS] * (ROWS_COUNT // GROUP_ROWS),
        feature_name=[f"f{k}" for k in range(len(columns))],
    )
    params = {
        "objective": "lambdarank",
        "num_leaves": LEAVES_COUNT,
        "min_data_in_leaf": 20,
        "verbose": -1,
        "seed": 1,
        # Two would wait for each other where the machine does something else beside.
        "num_threads": 1,
    }
    return lgb.train(params, data, num_boost_round=trees_count)


async def activate_noise(services: Services, *, trees_count: int = TREES_COUNT) -> None:
    """Train on noise, export, register and activate: the ranker that the measured site decides with."""
    described = await call(services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest(), TIMEOUT_S)
    feature_set = described.feature_set
    columns = tuple(column.name for column in feature_set.columns)
    booster = await asyncio.to_thread(noise_booster, columns, trees_count=trees_count)
    rows = np.random.default_rng(12).normal(size=(500, len(columns))).astype(np.float32)
    exported = await asyncio.to_thread(export, booster, rows)
    await register(
        services.release,
        exported,
        name=MODEL,
        feature_set=feature_set.version,
        columns=columns,
        metrics={},
        sign=services.sign,
    )
    await activate(services.release, name=MODEL, sha256=exported.sha256)
