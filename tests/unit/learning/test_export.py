"""A fitted ranker as ONNX scores as the trainer does."""

import hashlib

import lightgbm as lgb
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learning import export as exporting
from learning.errors import LearningError
from learning.export import ZERO_MAX, export, score, session_of, threshold_float32
from learning.train import TrainPlan, fit
from tests.unit.learning.world import examples, preferences


def fitted(matrix: NDArray[np.float32], labels: NDArray[np.float32], group: int = 8) -> lgb.Booster:
    return fit(examples(matrix, labels, group), TrainPlan(params={"min_data_in_leaf": 5}, rounds=30)).booster


def test_scores_and_order_are_the_trainers() -> None:
    """On rows it was fitted to and on others, with values missing anywhere, also where training saw none."""
    matrix, labels = preferences(1)
    matrix[::3, 0] = np.nan
    booster = fitted(matrix, labels)
    exported = export(booster, matrix)
    assert exported.sha256 == hashlib.sha256(exported.model).hexdigest()
    other, _ = preferences(9)
    other[np.random.default_rng(5).random(other.shape) < 0.3] = np.nan
    actual = score(session_of(exported.model), other)
    assert np.abs(actual - np.asarray(booster.predict(other))).max() < 1e-5


def neighbors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two values with no float32 between them, the upper one liked."""
    low = np.float32(0.1)
    matrix = np.tile(np.array([[low], [np.nextafter(low, np.float32(1))]], dtype=np.float32), (400, 1))
    return matrix, np.tile(np.array([0.0, 1.0], dtype=np.float32), 400)


def test_neighboring_values_stay_apart() -> None:
    """What a double threshold tells apart the exported one does."""
    matrix, labels = neighbors()
    scores = score(session_of(export(fitted(matrix, labels, group=2), matrix).model), matrix[:2])
    assert scores[1] > scores[0]


def test_thresholds_as_they_are_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has teeth: without the rewriting neighbors fall together, and nothing is exported."""
    matrix, labels = neighbors()
    booster = fitted(matrix, labels, group=2)
    monkeypatch.setattr(exporting, "_for_float32", lambda trees: trees)
    with pytest.raises(LearningError, match="trainer"):
        export(booster, matrix)


EDGES = [0.0, ZERO_MAX, 1e-35, 9e-36, 1e-36, 1e-45, 0.1, 1.0, 3.4028235e38, 1e300, np.inf]
thresholds = st.floats(allow_nan=False) | st.sampled_from([*EDGES, *(-edge for edge in EDGES)])


@given(thresholds, st.floats(allow_nan=False, width=32), st.integers(-2, 2))
def test_the_float32_threshold_decides_as_the_trainer_does(threshold: float, value: float, steps: int) -> None:
    """For every float32, and those next to the threshold: what is within 1e-35 of zero LightGBM reads as zero."""
    exported = np.float32(threshold_float32(threshold))
    for tried in (np.float32(value), neighbor(exported, steps), neighbor(np.float32(ZERO_MAX), steps)):
        for one in (tried, -tried):
            read = 0.0 if abs(float(one)) <= ZERO_MAX else float(one)
            assert (read <= threshold) == bool(one <= exported)


def neighbor(value: np.float32, steps: int) -> np.float32:
    """The float32 that many steps above, or below."""
    with np.errstate(over="ignore"):
        for _ in range(abs(steps)):
            value = np.nextafter(value, np.float32(np.copysign(np.inf, steps)))
    return value


@pytest.mark.parametrize("liked_above", [-1.0, 1.0])
def test_scores_are_the_trainers_at_the_edges(liked_above: float) -> None:
    """Around zero, the smallest and the largest numbers, infinities and missing values, for thresholds next to zero."""
    low, high = (-1.0, 0.0) if liked_above < 0 else (0.0, 1.0)
    matrix = np.tile(np.array([[low], [high]], dtype=np.float32), (400, 1))
    booster = fitted(matrix, np.tile(np.array([0.0, 1.0], dtype=np.float32), 400), group=2)
    zero, tiny, huge = np.float32(ZERO_MAX), np.float32(1e-45), np.float32(3.4028235e38)
    edges = [np.float32(0), tiny, zero, np.nextafter(zero, huge), np.nextafter(zero, tiny), huge, np.float32(np.inf)]
    rows = np.array([[side * edge] for edge in edges for side in (1, -1)] + [[np.nan]], dtype=np.float32)
    actual = score(session_of(export(booster, matrix).model), rows)
    assert np.abs(actual - np.asarray(booster.predict(rows))).max() < 1e-6


def test_the_model_has_one_input_and_one_output() -> None:
    """`features` float32 [n, columns] → `scores` float32 [n, 1]; trees and nothing else; checked by ONNX itself."""
    matrix, labels = preferences(1)
    model = onnx.load_from_string(export(fitted(matrix, labels), matrix).model)
    assert [value.name for value in model.graph.input] == ["features"]
    assert [value.name for value in model.graph.output] == ["scores"]
    assert [node.op_type for node in model.graph.node] == ["TreeEnsembleRegressor"]
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == matrix.shape[1]
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 15), ("ai.onnx.ml", 3)}


def test_the_same_trees_give_the_same_model() -> None:
    """Exporting twice gives the same bytes: the hash names the model."""
    matrix, labels = preferences(1)
    booster = fitted(matrix, labels)
    assert export(booster, matrix).sha256 == export(booster, matrix).sha256


def test_a_model_that_scores_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the conversion: it is found on real rows, and nothing is exported."""
    matrix, labels = preferences(1)
    booster = fitted(matrix, labels)
    convert = exporting._convert
    other = fitted(*preferences(2))
    monkeypatch.setattr(exporting, "_convert", lambda _, columns: convert(other, columns))
    with pytest.raises(LearningError, match="differ"):
        export(booster, matrix)
