"""A ranker that is sound, and slow where one column holds one value: no trial of its file can see that coming."""

import hashlib
import time

import asyncpg
import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cli.stack import Stack
from learning.export import Exported
from services.decision.ranker import OnnxLoader

MODEL_SQL = """
INSERT INTO models (name, sha256, feature_set_version, columns_count, metrics, onnx, registered_unsigned)
VALUES ($1, $2, $3, $4, '{}', $5, true)
"""
VERDICT_SQL = "INSERT INTO model_verdicts (sha256, columns_count, checker, problem) VALUES ($1, $2, $3, '')"
HIDDEN = 256
# Enough to time one layer by.
LAYERS_TIMED = 50
# More than what decision scores on its own loop, so that it goes to the thread as a dear model does.
USUAL_S = 0.004


def slow_model(columns_count: int, *, column: int, value: float, rows_count: int, seconds: float) -> Exported:
    """A model that computes for about that long, on an idle machine, where a row's *column* is *value*."""
    timed = _model(columns_count, column, value, LAYERS_TIMED, 0)
    layer_s = _seconds(timed, columns_count, rows_count) / LAYERS_TIMED
    proto = _model(columns_count, column, value, round(USUAL_S / layer_s) + 1, round(seconds / layer_s))
    model = proto.SerializeToString()
    return Exported(model, hashlib.sha256(model).hexdigest(), 0.0)


async def put_in(stack: Stack, exported: Exported, *, name: str, feature_set: str, columns_count: int) -> None:
    """Keep the model as one of before models had to be signed, whose trial found nothing wrong."""
    connection = await asyncpg.connect(stack.database_url("decision"))
    try:
        await connection.execute(MODEL_SQL, name, exported.sha256, feature_set, columns_count, exported.model)
        await connection.execute(VERDICT_SQL, exported.sha256, columns_count, OnnxLoader.checker)
    finally:
        await connection.close()


def _seconds(model: ModelProto, columns_count: int, rows_count: int) -> float:
    """CPU time of one call: what others do on the machine does not count."""
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


def _model(columns_count: int, column: int, value: float, layers: int, more_layers: int) -> ModelProto:
    """A loop over one dense layer; how often it runs depends on the rows."""
    rng = np.random.default_rng(5)
    node = helper.make_node
    body = helper.make_graph(
        [
            node("MatMul", ["before", "hidden"], ["sum"]),
            node("Tanh", ["sum"], ["after"]),
            node("Identity", ["go_on"], ["goes_on"]),
        ],
        "layer",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["rows", HIDDEN]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["rows", HIDDEN]),
        ],
    )
    nodes = [
        node("IsNaN", ["features"], ["missing"]),
        node("Where", ["missing", "zero", "features"], ["filled"]),
        node("MatMul", ["filled", "first"], ["wide"]),
        node("Gather", ["filled", "column"], ["asked"], axis=1),
        node("Equal", ["asked", "value"], ["hits"]),
        node("Cast", ["hits"], ["hit"], to=TensorProto.FLOAT),
        node("ReduceMax", ["hit"], ["any"], keepdims=0),
        node("Mul", ["any", "more"], ["extra"]),
        node("Add", ["extra", "layers"], ["turns"]),
        node("Cast", ["turns"], ["count"], to=TensorProto.INT64),
        node("Loop", ["count", "yes", "wide"], ["deep"], body=body),
        node("MatMul", ["deep", "last"], ["scores"]),
    ]
    shapes = {"first": (columns_count, HIDDEN), "hidden": (HIDDEN, HIDDEN), "last": (HIDDEN, 1)}
    # Above 1, so that what flows through the layers does not fade into numbers too small to compute with quickly.
    constants = {name: 1.5 * rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    constants |= {"zero": np.zeros(1), "value": np.array(value)}
    constants |= {"more": np.array(more_layers), "layers": np.array(layers)}
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", columns_count])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1])],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()),
            numpy_helper.from_array(np.array(column, np.int64), "column"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=9)
