"""A ranker that is sound and slow: nothing in its file tells it from a fast one but how long it takes."""

import hashlib
import time
from itertools import pairwise

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from learning.export import Exported

HIDDEN = 1024
# Above 1, so that what flows through the layers does not fade into numbers too small to compute with quickly.
GAIN = 1.5
# Enough to time one layer by.
LAYERS_TIMED = 10


def slow_model(columns_count: int, *, rows_count: int, seconds: float) -> Exported:
    """A model that takes about that long for so many rows on this machine, and longer when others use it too."""
    layer_s = _time(_model(columns_count, LAYERS_TIMED), columns_count, rows_count) / LAYERS_TIMED
    model = _model(columns_count, round(seconds / layer_s)).SerializeToString()
    return Exported(model, hashlib.sha256(model).hexdigest(), 0.0)


def _time(model: ModelProto, columns_count: int, rows_count: int) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.ones((rows_count, columns_count), np.float32)
    taken = []
    for _ in range(5):
        began = time.thread_time()
        session.run(None, {"features": rows})
        taken.append(time.thread_time() - began)
    return min(taken)


def _model(columns_count: int, layers_count: int) -> ModelProto:
    """Dense layers, all with the same weights: the file stays small however long they take."""
    rng = np.random.default_rng(5)
    names = [f"h{k}" for k in range(layers_count + 1)]
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["filled"]),
        helper.make_node("MatMul", ["filled", "first"], ["wide"]),
        helper.make_node("Tanh", ["wide"], [names[0]]),
        *(
            node
            for before, after in pairwise(names)
            for node in (
                helper.make_node("MatMul", [before, "hidden"], [f"{after}_sum"]),
                helper.make_node("Tanh", [f"{after}_sum"], [after]),
            )
        ),
        helper.make_node("MatMul", [names[-1], "last"], ["scores"]),
    ]
    weights = {"first": (columns_count, HIDDEN), "hidden": (HIDDEN, HIDDEN), "last": (HIDDEN, 1)}
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", columns_count])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1])],
        [
            numpy_helper.from_array((GAIN * rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), name)
            for name, shape in weights.items()
        ]
        + [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=9)
