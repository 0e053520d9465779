"""Fits a LambdaMART ranker, the same one every time from the same examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import lightgbm as lgb
import numpy as np

from learning.dataset import Counts, Examples, groups_of
from learning.errors import LearningError
from learning.evaluate import MeanNdcg

# With fewer answered decisions than this the held-out part is too small to say when to stop.
GROUPS_MIN: Final = 20
VALID_SHARE: Final = 0.2
ROUNDS_MAX: Final = 600
PATIENCE: Final = 50
# Where there is too little to hold out; and where what is held out says that fewer are enough, it is too little, too.
ROUNDS_MIN: Final = 60

DEFAULT_PARAMS: Final[Mapping[str, Any]] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    # The examples are whole slates: every pair in them counts, not only those near the top.
    "lambdarank_truncation_level": 30,
    "label_gain": [0, 1, 3, 7, 15],
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "lambda_l2": 5.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "max_bin": 255,
}
# The same examples give the same trees, on every machine with the same library.
FIXED_PARAMS: Final[Mapping[str, Any]] = {
    "seed": 20260101,
    "deterministic": True,
    "force_row_wise": True,
    # Threads of OpenMP wait by spinning: where anything else runs on the machine, two are slower than one.
    "num_threads": 1,
    "verbosity": -1,
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How to fit.

    Args:
        params: LightGBM parameters that go over the defaults; what makes a fit repeatable stays.
        rounds: fixed number of trees; None: as many as help on the newest part of the examples.
        rounds_min: no fewer than these, unless rounds says so: that a few trees rank the newest part best is luck.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    rounds_min: int = ROUNDS_MIN
    rounds_max: int = ROUNDS_MAX
    patience: int = PATIENCE
    valid_share: float = VALID_SHARE


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted ranker.

    Args:
        held_out_ndcg10: of the model stopped early, on decisions newer than all it saw; None: not measured.
    """

    booster: lgb.Booster
    rounds: int
    held_out_ndcg10: float | None


def fit(examples: Examples, plan: TrainPlan | None = None, *, progress: Progress = lambda *_: None) -> Trained:
    """The ranker: stopped on the newest decisions, then fitted again to all of them for as long.

    Args:
        progress: told the trees grown and the most there can be.

    Raises:
        LearningError: nothing was answered, or nothing can be told from the answers.
    """
    plan = plan or TrainPlan()
    if len(examples.groups) == 0:
        raise LearningError(_why_nothing(examples.counts))
    params = {**DEFAULT_PARAMS, **plan.params, **FIXED_PARAMS}
    rounds, measured = plan.rounds, None
    if rounds is None and len(examples.groups) >= GROUPS_MIN:
        rounds, measured = _stop_early(examples, params, plan, progress)
    rounds = rounds or plan.rounds_min
    booster = lgb.train(params, _dataset(examples), num_boost_round=rounds, callbacks=[_reporter(progress, rounds)])
    if not booster.feature_importance("split").any():
        raise LearningError(
            f"{len(examples.groups)} answered decisions show no preference that more than a few of them share: "
            "collect more before training."
        )
    return Trained(booster, rounds, measured)


def _why_nothing(counts: Counts) -> str:
    withheld = (
        f" {counts.withheld} decisions and outcomes are of people who do not allow the purpose of learning."
        if counts.withheld
        else ""
    )
    return (
        "No decision with features and an outcome was found: track answers to decisions first, "
        f"and see that their event type has a reward.{withheld}"
    )


def _stop_early(
    examples: Examples, params: Mapping[str, Any], plan: TrainPlan, progress: Progress
) -> tuple[int, float]:
    """Rounds for all examples, and NDCG@10 where it was stopped. Split by time: a ranker ranks what comes later."""
    groups_count = len(examples.groups)
    fitted_count = max(1, round(groups_count * (1.0 - plan.valid_share)))
    older, newer = examples.head(fitted_count), examples.tail(fitted_count)
    fitted = _dataset(older)
    booster = lgb.train(
        dict(params),
        fitted,
        num_boost_round=plan.rounds_max,
        valid_sets=[_dataset(newer, fitted)],
        callbacks=[lgb.early_stopping(plan.patience, verbose=False), _reporter(progress, plan.rounds_max)],
    )
    best = booster.best_iteration or plan.rounds_max
    # More examples carry more trees: as many more as there are more examples.
    rounds = max(plan.rounds_min, round(best * groups_count / fitted_count))
    return rounds, mean_ndcg(newer, booster.predict(newer.matrix, num_iteration=best))["ndcg@10"]


def mean_ndcg(examples: Examples, scores: Any) -> dict[str, float]:
    """NDCG of the examples by these scores, one a row."""
    mean = MeanNdcg()
    for rows in groups_of(examples):
        items = examples.item_ids[rows]
        relevant = dict(zip(items, examples.labels[rows].tolist(), strict=True))
        mean.add(items, relevant, np.asarray(scores[rows], dtype=np.float64).tolist())
    return mean.report()


def _dataset(examples: Examples, reference: lgb.Dataset | None = None) -> lgb.Dataset:
    return lgb.Dataset(
        examples.matrix,
        label=examples.labels,
        group=examples.groups,
        feature_name=list(feature_names(examples.columns)),
        reference=reference,
        params={"verbosity": -1},
        free_raw_data=True,
    )


def feature_names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns' names as LightGBM takes them: it refuses the characters that mean something in JSON."""
    return tuple("".join(c if c.isalnum() or c in "_.-" else "_" for c in name) for name in columns)


def _reporter(progress: Progress, rounds: int) -> Callable[[Any], None]:
    def report(environment: Any) -> None:
        progress(environment.iteration + 1, rounds)

    return report
