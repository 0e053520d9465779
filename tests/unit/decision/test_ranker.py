"""Only a self-contained model of the right shape is loaded, and it scores the same bits every time."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from services.chassis.errors import Kind, ServiceError
from services.decision.ranker import OnnxLoader
from tests.unit.decision.onnx_models import WIDTH, as_model, linear

LOADER = OnnxLoader()


def with_external_data() -> onnx.ModelProto:
    """A model whose weights are said to lie in a file of the host."""
    model = linear()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    return model


def with_external_constant() -> onnx.ModelProto:
    """The same, hidden in an attribute of a node inside a branch."""
    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
    hidden.data_location = TensorProto.EXTERNAL
    constant = helper.make_node("Constant", [], ["inner"], value=hidden)
    branch = helper.make_graph(
        [constant], "branch", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1])]
    )
    model = linear()
    model.graph.node.append(helper.make_node("If", ["missing"], ["unused"], then_branch=branch, else_branch=branch))
    return model


def with_a_function() -> onnx.ModelProto:
    """A model that defines operators of its own."""
    model = linear()
    model.functions.append(
        helper.make_function("own", "Own", ["x"], ["y"], [helper.make_node("Abs", ["x"], ["y"])], model.opset_import)
    )
    return model


def with_two_inputs() -> onnx.ModelProto:
    """A model that wants more than the matrix."""
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [None, 1]))
    return model


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"no model", "no ONNX model"),
        (with_external_data(), "other files"),
        (with_external_constant(), "other files"),
        (with_a_function(), "functions of its own"),
        (linear(domain="com.evil"), "outside ai.onnx"),
        (linear(domain="com.microsoft"), "outside ai.onnx"),
        (linear(WIDTH + 1), f"reads {WIDTH + 1} columns, the feature set has {WIDTH}"),
        (linear(rows=7), "fixed number of rows"),
        (with_two_inputs(), "one float input"),
        (linear(outputs=("one", "two")), "exactly one float output"),
        (linear(fills_missing=False), "no finite numbers"),
        (linear(weights=[np.inf] * WIDTH), "no finite numbers"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(file: onnx.ModelProto | bytes, said: str) -> None:
    """The refusal says what is wrong with it and how to mend it."""
    with pytest.raises(ServiceError, match=said) as caught:
        LOADER.load(as_model(file))
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "MODEL_REFUSED")


def test_one_flipped_bit_in_a_model_is_caught() -> None:
    """The bytes must be those that the hash names."""
    model = as_model(linear())
    changed = bytearray(model.onnx)
    changed[len(changed) // 2] ^= 1
    with pytest.raises(ServiceError, match="SHA-256"):
        LOADER.load(replace(model, onnx=bytes(changed)))


def test_a_model_scores_one_number_a_row() -> None:
    """Missing values included, bit for bit the same again, at a cost that is known."""
    ranker = LOADER.load(as_model(linear()))
    rows = np.random.default_rng(1).normal(size=(20, WIDTH)).astype(np.float32)
    rows[3] = np.nan
    scores = ranker.score(rows)
    np.testing.assert_allclose(scores, np.nan_to_num(rows) @ np.linspace(1, 2, WIDTH), rtol=1e-4, atol=1e-5)
    assert (scores.dtype.name, scores.shape) == ("float32", (20,))
    assert ranker.score(rows).tobytes() == scores.tobytes()
    assert 0.0 < ranker.cost_s(1) <= ranker.cost_s(1000)
    assert ranker.version.startswith("ranker@")
