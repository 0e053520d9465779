"""Fitting."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from learning.dataset import Examples
from learning.errors import LearningError
from learning.export import export
from learning.train import GRADES_MAX, TrainPlan, fit, grades_of, mean_ndcg, quality
from tests.unit.learning.world import examples, preferences

SMALL = TrainPlan(params={"min_data_in_leaf": 5}, rounds_max=40, patience=10)


def test_a_preference_is_learned() -> None:
    """On decisions it has not seen it ranks far better than chance."""
    trained = fit(examples(*preferences(1), group=8), SMALL)
    unseen = examples(*preferences(2), group=8)
    by_model = mean_ndcg(unseen, trained.booster.predict(unseen.matrix))["ndcg@5"]
    by_chance = mean_ndcg(unseen, np.random.default_rng(3).random(unseen.rows_count))["ndcg@5"]
    assert by_model > by_chance + 0.2
    assert trained.figure is not None
    assert trained.figure > by_chance


def test_the_same_examples_give_the_same_trees() -> None:
    """Fitting twice is repeatable, to the byte."""
    first, second = (fit(examples(*preferences(1), group=8), SMALL).booster.model_to_string() for _ in range(2))
    assert first == second


def test_what_makes_a_fit_repeatable_cannot_be_overridden() -> None:
    """A caller's parameters go over the defaults, but not over seed and determinism."""
    wild = TrainPlan(params={**SMALL.params, "seed": 1, "deterministic": False}, rounds=5)
    tame = TrainPlan(params=SMALL.params, rounds=5)
    data = examples(*preferences(1), group=8)
    assert fit(data, wild).booster.model_to_string() == fit(data, tame).booster.model_to_string()


def test_few_decisions_are_fitted_without_being_measured() -> None:
    """Too few to hold some out: a fixed number of trees, and no figure that means nothing."""
    matrix, labels = preferences(1, groups=10)
    trained = fit(examples(matrix, labels, group=8), TrainPlan(params=SMALL.params))
    assert trained.figure is None
    assert trained.rounds > 0


def test_a_lucky_stop_grows_no_fewer_trees_than_asked_for() -> None:
    """What the held-out part says of the first trees may be chance; it is measured as it is all the same."""
    matrix, labels = preferences(1)
    noise = examples(np.random.default_rng(4).permutation(matrix), labels, group=8)
    patient = TrainPlan(params=SMALL.params, rounds_min=30, rounds_max=40, patience=5)
    assert fit(noise, TrainPlan(params=SMALL.params, rounds_min=1, rounds_max=40, patience=5)).rounds < 30
    assert fit(noise, patient).rounds == 30
    assert fit(noise, patient).figure is not None


def test_nothing_to_learn_from_is_said() -> None:
    """Without a single answered decision there is no model."""
    empty = examples(np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=np.float32), group=1)
    with pytest.raises(LearningError, match="reward"):
        fit(empty)


def test_nothing_to_learn_from_for_lack_of_consent_is_said() -> None:
    """Where people's answers were withheld, that is the reason, and it is told."""
    empty = examples(np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=np.float32), group=1)
    empty.counts.withheld = 7
    with pytest.raises(LearningError, match="7 decisions and outcomes are of people who do not allow"):
        fit(empty)


def test_a_model_that_prefers_nothing_is_not_made() -> None:
    """A handful of decisions shares no preference: better no model than one that orders by nothing."""
    with pytest.raises(LearningError, match="collect more"):
        fit(examples(*preferences(1, groups=4), group=8))


def test_the_model_takes_every_column() -> None:
    """A column that never varies is not split on, and is still a column of the input."""
    matrix, labels = preferences(1)
    matrix[:, 2] = 1.0
    assert fit(examples(matrix, labels, group=8), SMALL).booster.num_feature() == matrix.shape[1]


def test_progress_is_told() -> None:
    """Trees grown, of the most there can be."""
    told: list[tuple[int, int]] = []
    fit(
        examples(*preferences(1), group=8),
        TrainPlan(params=SMALL.params, rounds=3),
        progress=lambda *args: told.append(args),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("names", [("shoes & bags", "shoes + bags"), ("C++", "C##"), ("genre=sci-fi", "rate[click]")])
def test_columns_may_be_named_anything(names: tuple[str, str]) -> None:
    """Also names that are the same once what LightGBM refuses is taken out of them: columns go by number."""
    matrix, labels = preferences(1)
    columns = (*names, "c2", "c3", "c4")
    assert fit(examples(matrix, labels, group=8, columns=columns), SMALL).booster.num_feature() == 5


@pytest.mark.parametrize("params", [{"objective": "no such one"}, {"num_leaves": 1}, {"max_bin": "many"}])
def test_what_the_trainer_refuses_is_told_in_one_line(params: dict[str, object]) -> None:
    """Whatever LightGBM raises is a refusal with its own words, and no traceback."""
    with pytest.raises(LearningError, match="LightGBM refused") as raised:
        fit(examples(*preferences(1), group=8), TrainPlan(params=params))
    assert "\n" not in str(raised.value)


def ones(seed: int, count: int = 400) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slates of one item each: who sees a high first column mostly clicks."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, 4)).astype(np.float32)
    return matrix, (matrix[:, 0] + 0.3 * rng.normal(size=count) > 0.3).astype(np.float32)


@pytest.mark.parametrize("amounts", [False, True])
def test_rewards_of_any_size_and_sign_are_told_apart(*, amounts: bool) -> None:
    """What is liked ten times as much comes first, what was taken back last; also where every amount is another."""
    rng = np.random.default_rng(11)
    matrix = rng.random((800, 5), dtype=np.float32)
    worth = np.digitize(matrix[:, 0], [0.25, 0.5, 0.75])
    labels = np.array([-0.5, 0.0, 0.1, 1.0], dtype=np.float32)[worth]
    if amounts:
        labels = np.where(labels > 0, 40.0 * matrix[:, 0], labels).astype(np.float32)
    booster = fit(examples(matrix, labels, group=8), SMALL).booster
    scores = np.asarray(booster.predict(matrix))
    means = [float(scores[worth == place].mean()) for place in range(4)]
    assert means == sorted(means)
    assert len(grades_of(examples(matrix, labels, group=8))) <= GRADES_MAX


def pointwise(matrix: NDArray[np.float32], labels: NDArray[np.float32]) -> Examples:
    return replace(examples(matrix, labels, group=1), is_pointwise=True)


def test_a_placement_with_one_slot_learns_what_is_answered() -> None:
    """Where no slate holds a pair, what was seen and left is what the answered is told apart from."""
    trained = fit(pointwise(*ones(1)), SMALL)
    unseen = pointwise(*ones(2))
    of_unseen = quality(unseen, np.asarray(trained.booster.predict(unseen.matrix)))
    assert of_unseen is not None
    assert of_unseen > 0.85
    assert trained.figure is not None
    assert trained.figure > 0.85
    assert export(trained.booster, unseen.matrix).difference_max < 1e-5


def test_answers_to_everything_are_no_preference_and_said_to_be() -> None:
    """Whether in slates of one item or of many: nothing was left, and collecting more of the same would not help."""
    matrix, labels = ones(1)
    for alike in (pointwise(matrix, np.ones_like(labels)), examples(matrix, np.ones_like(labels), group=4)):
        with pytest.raises(LearningError, match="answered alike"):
            fit(alike, SMALL)


def test_features_that_are_all_missing_are_said_to_be() -> None:
    """The remedy is not to collect more."""
    matrix, labels = preferences(1)
    with pytest.raises(LearningError, match="Every feature of the 120 decisions is missing"):
        fit(examples(np.full_like(matrix, np.nan), labels, group=8), SMALL)
