"""Small ONNX models, good and bad ones."""

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from services.decision.domain.release import NewModel
from tests.unit.decision.world import FEATURE_SET

WIDTH = len(FEATURE_SET.columns)
OPSETS = [helper.make_opsetid("", 15)]


def linear(
    width: int = WIDTH,
    *,
    weights: Sequence[float] | None = None,
    fills_missing: bool = True,
    rows: int | str | None = "rows",
    outputs: Sequence[str] = ("scores",),
    domain: str = "",
) -> onnx.ModelProto:
    """scores = features · weights, missing features counting as zero."""
    values = np.linspace(1, 2, width) if weights is None else np.asarray(weights)
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["filled"]),
        *(
            helper.make_node("MatMul", ["filled" if fills_missing else "features", "weights"], [name], domain=domain)
            for name in outputs
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 1]) for name in outputs],
        [
            numpy_helper.from_array(values.astype(np.float32).reshape(width, 1), "weights"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=OPSETS + ([helper.make_opsetid(domain, 1)] if domain else []), ir_version=9
    )
    return model


def as_model(
    proto: onnx.ModelProto | bytes, *, name: str = "ranker", version: str = FEATURE_SET.version, width: int = WIDTH
) -> NewModel:
    """The file as it would be registered."""
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    columns = tuple(column.name for column in FEATURE_SET.columns)[:width]
    return NewModel(name, hashlib.sha256(data).hexdigest(), version, width, data, columns)
