"""Fits a ranker, the same one every time from the same examples: LambdaMART, or a regression.

A slate of one item holds no pair to tell apart. Where all are such, what was not answered is the negative, and items
are ordered by the grade to expect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from learning.dataset import Counts, Examples, groups_of
from learning.errors import LearningError, refused_by
from learning.evaluate import MeanNdcg, auc

# With fewer answered decisions than this the held-out part is too small to say when to stop.
GROUPS_MIN: Final = 20
VALID_SHARE: Final = 0.2
ROUNDS_MAX: Final = 600
PATIENCE: Final = 50
# More would make pairs of examples that hardly differ.
GRADES_MAX: Final = 64
# Where there is too little to hold out; and where what is held out says that fewer are enough, it is too little, too.
ROUNDS_MIN: Final = 60

DEFAULT_PARAMS: Final[Mapping[str, Any]] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    # The examples are whole slates: every pair in them counts, not only those near the top.
    "lambdarank_truncation_level": 30,
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "lambda_l2": 5.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "max_bin": 255,
}
# Where every slate holds one item: the grade to expect of it. Both are trees whose scores are plain sums of leaves.
POINTWISE_PARAMS: Final[Mapping[str, Any]] = {"objective": "regression", "metric": "l2"}
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
Floats64 = NDArray[np.float64]


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
        held_out: what the model stopped early gives decisions newer than all it saw; None: not measured.
    """

    booster: lgb.Booster
    rounds: int
    held_out: "HeldOut | None"

    @property
    def figure(self) -> float | None:
        """How good it is on what was held out, see quality."""
        return None if self.held_out is None else quality(self.held_out.examples, self.held_out.scores)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The newest decisions, and the score of each of their rows by a model that had not seen them."""

    examples: Examples
    scores: Floats64

    def after(self, at_ms: int) -> "HeldOut":
        """Those decided after the moment."""
        older_count = int((self.examples.decided_at_ms <= at_ms).sum())
        newer = self.examples.tail(older_count)
        return HeldOut(newer, self.scores[len(self.scores) - newer.rows_count :])


def fit(examples: Examples, plan: TrainPlan | None = None, *, progress: Progress = lambda *_: None) -> Trained:
    """The ranker: stopped on the newest decisions, then fitted again to all of them for as long.

    Args:
        progress: told the trees grown and the most there can be.

    Raises:
        LearningError: nothing was answered, or nothing can be told from the answers.
    """
    plan = plan or TrainPlan()
    _check_can_be_told_apart(examples)
    grades = grades_of(examples)
    objective = POINTWISE_PARAMS if examples.is_pointwise else {"label_gain": _gains(grades)}
    params = {**DEFAULT_PARAMS, **objective, **plan.params, **FIXED_PARAMS}
    rounds, held_out = plan.rounds, None
    with refused_by("LightGBM"):
        if rounds is None and len(examples.groups) >= GROUPS_MIN:
            rounds, held_out = _stop_early(examples, grades, params, plan, progress)
        rounds = rounds or plan.rounds_min
        fitted = _dataset(examples, grades)
        booster = lgb.train(params, fitted, num_boost_round=rounds, callbacks=[_reporter(progress, rounds)])
    if not booster.feature_importance("split").any():
        raise LearningError(
            f"{len(examples.groups)} decisions show no preference that more than a few of them share: "
            "collect more before training."
        )
    return Trained(booster, rounds, held_out)


def quality(examples: Examples, scores: Floats64) -> float | None:
    """How well these scores order the examples, one a row: NDCG@10; where slates hold one item, AUC.

    Returns:
        In [0, 1], higher is better; None where the examples cannot tell: nothing or everything was answered.
    """
    if examples.is_pointwise:
        return auc(examples.labels, scores)
    return mean_ndcg(examples, scores)["ndcg@10"] if len(examples.groups) else None


def quality_name(examples: Examples) -> str:
    """What quality measures of these examples."""
    return "AUC" if examples.is_pointwise else "NDCG@10"


def _check_can_be_told_apart(examples: Examples) -> None:
    """Returns when there is something to learn, as far as that can be seen before fitting.

    Raises:
        LearningError: nothing was answered, everything was answered alike, or every feature is missing.
    """
    count = len(examples.groups)
    if count == 0:
        raise LearningError(_why_nothing(examples.counts))
    if np.isnan(examples.matrix).all():
        raise LearningError(
            f"Every feature of the {count} decisions is missing: see what `comity why` says of one of them, that item "
            "features are computed and that the purposes of the person's features are allowed where they are asked for."
        )
    parts = [slice(0, examples.rows_count)] if examples.is_pointwise else groups_of(examples)
    if all(np.ptp(examples.labels[rows]) == 0 for rows in parts):
        raise LearningError(
            f"In all {count} decisions whatever was shown was answered alike, so nothing tells what is liked from what "
            "is not: see that answers are tracked only for what was really answered."
        )


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
    examples: Examples, grades: Floats64, params: Mapping[str, Any], plan: TrainPlan, progress: Progress
) -> tuple[int, HeldOut]:
    """Rounds for all examples, and what was held out. Split by time: a ranker ranks what comes later."""
    groups_count = len(examples.groups)
    fitted_count = max(1, round(groups_count * (1.0 - plan.valid_share)))
    older, newer = examples.head(fitted_count), examples.tail(fitted_count)
    fitted = _dataset(older, grades)
    booster = lgb.train(
        dict(params),
        fitted,
        num_boost_round=plan.rounds_max,
        valid_sets=[_dataset(newer, grades, fitted)],
        callbacks=[lgb.early_stopping(plan.patience, verbose=False), _reporter(progress, plan.rounds_max)],
    )
    best = booster.best_iteration or plan.rounds_max
    # More examples carry more trees: as many more as there are more examples.
    rounds = max(plan.rounds_min, round(best * groups_count / fitted_count))
    return rounds, HeldOut(newer, np.asarray(booster.predict(newer.matrix, num_iteration=best), dtype=np.float64))


def mean_ndcg(examples: Examples, scores: Any) -> dict[str, float]:
    """NDCG of the examples by these scores, one a row; of decisions where something was liked."""
    mean = MeanNdcg()
    for rows in groups_of(examples):
        if not (examples.labels[rows] > 0).any():
            continue  # nothing was liked: no order of it is better than another
        items = examples.item_ids[rows]
        relevant = dict(zip(items, examples.labels[rows].tolist(), strict=True))
        mean.add(items, relevant, np.asarray(scores[rows], dtype=np.float64).tolist())
    return mean.report()


def grades_of(examples: Examples) -> Floats64:
    """The grades that LambdaMART tells apart, ascending, 0 among them: all there are, or so many spread over them."""
    grades = np.unique(np.append(examples.labels, 0.0).astype(np.float64))
    if len(grades) <= GRADES_MAX:
        return grades
    return np.unique(np.append(np.quantile(grades, np.linspace(0.0, 1.0, GRADES_MAX - 1)), 0.0))


def _gains(grades: Floats64) -> list[float]:
    """The gain of each grade, from 0 on: LightGBM takes none below."""
    gains = np.exp2(grades) - 1.0
    return [float(gain - gains[0]) for gain in gains]


def _dataset(examples: Examples, grades: Floats64, reference: lgb.Dataset | None = None) -> lgb.Dataset:
    # LambdaMART's labels are whole numbers: the place among the grades.
    places = np.searchsorted(grades, examples.labels, side="right") - 1
    # Columns go by number: LightGBM refuses some characters in names, and two names that differ only in those.
    return lgb.Dataset(
        examples.matrix,
        label=examples.labels if examples.is_pointwise else places,
        group=None if examples.is_pointwise else examples.groups,
        reference=reference,
        params={"verbosity": -1},
        free_raw_data=True,
    )


def _reporter(progress: Progress, rounds: int) -> Callable[[Any], None]:
    def report(environment: Any) -> None:
        progress(environment.iteration + 1, rounds)

    return report
