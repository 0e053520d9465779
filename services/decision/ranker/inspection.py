"""What a model file must be before a runtime sees it: self-contained, of known operators, bounded, of the right shape.

A model is data from outside. Nothing that it says of itself (names, doc strings) gets into a sentence that somebody
reads or into a log: whoever made the file chose it. Parsing alone can take gigabytes, so this runs in the trial's
process.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from services.decision.domain.release import refused
from services.decision.ranker.operators import ALLOWED, Operator

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
# What our trainers export has one node; what scikit-learn's converter makes of a pipeline, some dozens.
NODES_MAX = 512
INITIALIZERS_MAX = 512
INPUTS_MAX = 64
# Balanced trees of this depth would have more leaves than there are atoms; libraries stop at a few dozen. The runtime
# builds trees by recursion: 30,000 deep ends the process.
TREE_DEPTH_MAX = 128

# Between the features and what reads them: as many columns come out as go in.
KEEPS_WIDTH = ("Cast", "Identity", "Imputer", "Normalizer", "Scaler")

_FLOAT = onnx.TensorProto.FLOAT
_Ints = NDArray[np.int64]
_Attributes = Mapping[str, onnx.AttributeProto]


def inspect(data: bytes, columns_count: int) -> None:
    """Returns when the model may be loaded and tried.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED), saying what is wrong and how to mend it.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise refused("is no ONNX model; export it with onnxmltools or skl2onnx") from error
    _check_size(model)
    _check_domains(model)
    for node in model.graph.node:
        _check_node(node)
    _check_self_contained(model.graph)
    features = _features_of(model.graph, columns_count)
    _check_kernels(model.graph, features, columns_count)


def _check_size(model: onnx.ModelProto) -> None:
    graph = model.graph
    if len(graph.node) > NODES_MAX:
        raise refused(f"has {len(graph.node):,} nodes, at most {NODES_MAX} are allowed; export a smaller one")
    if len(graph.initializer) > INITIALIZERS_MAX:
        raise refused(
            f"has {len(graph.initializer):,} initializers, at most {INITIALIZERS_MAX} are allowed; put them together"
        )
    if max((len(node.input) + len(node.output) for node in graph.node), default=0) > INPUTS_MAX:
        raise refused(f"has a node with more than {INPUTS_MAX} inputs and outputs; export a smaller one")


def _check_domains(model: onnx.ModelProto) -> None:
    if model.functions:
        raise refused("defines functions of its own; export it with standard operators only")
    if model.training_info:
        raise refused("holds how to train it; export it for inference")
    used = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    if used.difference(DOMAINS):
        raise refused("uses operators outside ai.onnx and ai.onnx.ml; export it with standard operators only")


def _check_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise refused("holds a graph inside a node, as Loop, Scan and If do; export it as a flat graph")
    operator = _operator_of(node)
    if operator not in ALLOWED["ranker"]:
        # A name that is no operator's is whatever the file's maker wrote.
        name = operator[1] if onnx.defs.has(operator[1], operator[0]) else "that is not in ONNX"
        raise refused(f"uses an operator that no ranker needs ({name}); export trees, a linear model or arithmetic")


def _operator_of(node: onnx.NodeProto) -> Operator:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _check_self_contained(graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        raise refused("keeps sparse tensors; export it with dense ones")
    tensors = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise refused("keeps sparse tensors; export it with dense ones")
            tensors += [*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise refused("keeps data in other files; export it into one file")


def _features_of(graph: onnx.GraphProto, columns_count: int) -> str:
    """The name of the one input: a float matrix, as wide as the feature set."""
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
    name: str = inputs[0].name
    return name


def _check_kernels(graph: onnx.GraphProto, features: str, columns_count: int) -> None:
    """Trees and linear models read the features as they came, and only columns that are there.

    The runtime takes their numbers for offsets into memory and asks no further.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        is_linear = node.op_type in ("LinearClassifier", "LinearRegressor")
        if not (is_linear or node.op_type.startswith("TreeEnsemble")):
            continue
        if not _reads(features, node, makers):
            raise refused("has trees or a linear model that read something else than the features; export it alone")
        attributes = {attribute.name: attribute for attribute in node.attribute}
        results_count = _results_count(attributes)
        if is_linear:
            coefficients = attributes["coefficients"].floats if "coefficients" in attributes else ()
            if len(coefficients) != results_count * columns_count:
                raise refused(f"has a linear model of other than {columns_count} columns; train it on this feature set")
            continue
        if not _within(_ints(attributes, "nodes_featureids"), columns_count):
            raise refused(f"has trees that read more than {columns_count} columns; train it on this feature set")
        if not all(_within(_ints(attributes, name), results_count) for name in ("target_ids", "class_ids")):
            raise refused("has trees with more results than it declares; export it anew")
        _check_trees(attributes)


def _reads(features: str, node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    for _ in range(NODES_MAX):
        if not node.input or node.input[0] == features:
            return bool(node.input)
        maker = makers.get(node.input[0])
        if maker is None or maker.op_type not in KEEPS_WIDTH:
            return False
        node = maker
    return False


def _results_count(attributes: _Attributes) -> int:
    """How many numbers a row the trees or the linear model give."""
    if "n_targets" in attributes or "targets" in attributes:
        return max(attributes[name].i for name in ("n_targets", "targets") if name in attributes)
    labels = [
        attributes[name]
        for name in ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
        if name in attributes
    ]
    return max((len(each.ints) + len(each.strings) for each in labels), default=1)


def _ints(attributes: _Attributes, name: str) -> _Ints:
    return np.asarray(attributes[name].ints if name in attributes else (), dtype=np.int64)


def _within(numbers: _Ints, count: int) -> bool:
    return bool(((numbers >= 0) & (numbers < count)).all())


def _check_trees(attributes: _Attributes) -> None:
    """Trees: from one root a tree every node is reached once, and none is deeper than TREE_DEPTH_MAX."""
    trees, children = _forest(attributes)
    parents_count = np.bincount(children[children >= 0], minlength=len(children))
    if (parents_count > 1).any():
        raise refused("has a tree whose branches meet again; export it anew")
    level, reached_count, depth = np.flatnonzero(parents_count == 0), 0, 0
    if len(level) != len(np.unique(trees)):
        raise refused("has a tree without one root; export it anew")
    while len(level):
        if depth > TREE_DEPTH_MAX:
            raise refused(f"has a tree deeper than {TREE_DEPTH_MAX}; train it with a bounded depth")
        reached_count, depth = reached_count + len(level), depth + 1
        level = children[level].reshape(-1)
        level = level[level >= 0]
    if reached_count < len(children):
        raise refused("has a tree that leads back into itself; export it anew")


def _forest(attributes: _Attributes) -> tuple[_Ints, _Ints]:
    """Of each node its tree, (nodes,), and its two children, -1 where it is a leaf, (nodes, 2)."""
    trees, numbers, *sides = (
        _ints(attributes, f"nodes_{name}") for name in ("treeids", "nodeids", "truenodeids", "falsenodeids")
    )
    modes = np.asarray(attributes["nodes_modes"].strings if "nodes_modes" in attributes else (), dtype=bytes)
    lengths = {len(each) for each in (trees, numbers, *sides, modes, _ints(attributes, "nodes_featureids"))}
    if len(lengths) > 1:
        raise refused("has trees whose lists are not equally long; export it anew")
    if len(trees) and (min(trees.min(), numbers.min()) < 0 or max(trees.max(), numbers.max()) >= 2**31):
        raise refused("has trees whose nodes are not numbered from 0; export it anew")
    keys = trees << 32 | numbers
    order = np.argsort(keys, kind="stable")
    if (np.diff(keys[order]) == 0).any():
        raise refused("has two nodes of one number in a tree; export it anew")
    children = np.full((len(keys), 2), -1, dtype=np.int64)
    branches = np.flatnonzero(modes != b"LEAF")
    for side, named in enumerate(sides):
        wanted = trees[branches] << 32 | np.clip(named[branches], -1, 2**31)
        places = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(0, len(keys) - 1))
        found = order[places] if len(branches) else places
        if (keys[found] != wanted).any():
            raise refused("has a branch that leads nowhere; export it anew")
        children[branches, side] = found
    return trees, children
