"""What a model file must be before anything runs it: self-contained, of standard operators, of the right shape.

A model is data from outside. ONNX lets it name files to read (external data) and operators that load code (custom
domains); neither is needed for a ranker, so both are refused before the runtime sees the file.
"""

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError

from services.chassis.errors import FieldProblem, Kind, ServiceError

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
# Deeper nesting than any exporter makes; a bound for the walk.
GRAPH_DEPTH_MAX = 8

_FLOAT = onnx.TensorProto.FLOAT


def inspect(data: bytes, columns_count: int) -> None:
    """Returns when the model may be run.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED), saying what is wrong and how to mend it.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise refused("is no ONNX model; export it with onnxmltools or skl2onnx") from error
    _check_domains(model)
    for graph in _graphs(model.graph, 0):
        _check_self_contained(graph)
    _check_input(model.graph, columns_count)


def refused(problem: str) -> ServiceError:
    """The refusal of a model."""
    return ServiceError(Kind.INVALID, "MODEL_REFUSED", f"model: {problem}", problems=(FieldProblem("model", problem),))


def _check_domains(model: onnx.ModelProto) -> None:
    if model.functions:
        raise refused("defines functions of its own; export it with standard operators only")
    used = {opset.domain for opset in model.opset_import}
    used.update(node.domain for graph in _graphs(model.graph, 0) for node in graph.node)
    foreign = sorted(used.difference(DOMAINS))
    if foreign:
        raise refused("uses operators outside ai.onnx and ai.onnx.ml; export it with standard operators only")


def _check_self_contained(graph: onnx.GraphProto) -> None:
    sparse = [part for tensor in graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    for tensor in (*graph.initializer, *sparse, *_attribute_tensors(graph)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise refused("keeps data in other files; export it into one file")


def _check_input(graph: onnx.GraphProto, columns_count: int) -> None:
    """One float matrix, as wide as the feature set."""
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != _FLOAT:
        raise refused(f"must have one float input of shape [rows, {columns_count}]")
    dimensions = inputs[0].type.tensor_type.shape.dim
    if len(dimensions) != 2 or dimensions[1].dim_value != columns_count:
        width = dimensions[1].dim_value if len(dimensions) == 2 else "no"
        raise refused(f"reads {width} columns, the feature set has {columns_count}; train it on this feature set")
    if dimensions[0].dim_value:
        raise refused("takes a fixed number of rows; export it with a dynamic first dimension")


def _graphs(graph: onnx.GraphProto, depth: int) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    if depth > GRAPH_DEPTH_MAX:
        raise refused("nests graphs too deep; export it as a flat graph")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner, depth + 1)


def _attribute_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values
                yield attribute.sparse_tensor.indices
            yield from attribute.tensors
            for sparse in attribute.sparse_tensors:
                yield sparse.values
                yield sparse.indices
