"""Model files that no service may be harmed by, each made in code: the kinds that were seen, and ones of our own."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

ENDLESS = 2**62
TRIGGER = 1e6
FORGED = 'x\n{"event": "forged by a model", "level": "error"}\n'

Made = Callable[[int], bytes]
_node = helper.make_node


def sound(columns_count: int, *, weight: float = 1.0) -> bytes:
    """A model that is all right; another weight is another one."""
    return _linear(columns_count, weight=weight).SerializeToString()


def _value(name: str, shape: Sequence[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _tensor(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def _model(
    columns_count: int,
    nodes: Sequence[NodeProto],
    tensors: Sequence[TensorProto] = (),
    *,
    outputs: Sequence[str] = ("scores",),
    domains: Sequence[str] = (),
) -> ModelProto:
    graph = helper.make_graph(
        nodes, "g", [_value("features", ["n", columns_count])], [_value(name, ["n", 1]) for name in outputs], tensors
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    opsets += [helper.make_opsetid(domain, 1) for domain in domains]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model


def _scored(columns_count: int, *nodes: NodeProto, last: str = "x", tensors: Sequence[TensorProto] = ()) -> ModelProto:
    """What the nodes make of "filled" and call *last*, as wide as it is, then scored."""
    filled = [_node("IsNaN", ["features"], ["missing"]), _node("Where", ["missing", "zero", "features"], ["filled"])]
    weights = [_tensor("weights", np.ones((columns_count, 1))), _tensor("zero", [0.0])]
    scored = _node("MatMul", [last, "weights"], ["scores"])
    return _model(columns_count, [*filled, *nodes, scored], [*weights, *tensors])


def _linear(columns_count: int, *, weight: float = 1.0) -> ModelProto:
    scale = _node("Mul", ["filled", "scale"], ["x"])
    return _scored(columns_count, scale, tensors=[_tensor("scale", [weight])])


def _body(columns_count: int) -> GraphProto:
    return helper.make_graph(
        [_node("Identity", ["go_on"], ["goes_on"]), _node("Identity", ["before"], ["after"])],
        "body",
        [
            _value("turn", [], TensorProto.INT64),
            _value("go_on", [], TensorProto.BOOL),
            _value("before", ["n", columns_count]),
        ],
        [_value("goes_on", [], TensorProto.BOOL), _value("after", ["n", columns_count])],
    )


def endless(columns_count: int, *, column: int = 0) -> bytes:
    """Loops for ever where a row's *column* is above TRIGGER, which it is in no trial."""
    nodes = [
        _node("Gather", ["filled", "first"], ["column"], axis=1),
        _node("ReduceMax", ["column"], ["largest"], keepdims=0),
        _node("Greater", ["largest", "threshold"], ["is_asked"]),
        _node("Where", ["is_asked", "often", "never"], ["times"]),
        _node("Loop", ["times", "yes", "filled"], ["x"], body=_body(columns_count)),
    ]
    tensors = [
        _tensor("first", column, np.int64),
        _tensor("threshold", TRIGGER),
        _tensor("often", ENDLESS, np.int64),
        _tensor("never", 0, np.int64),
        _tensor("yes", True, np.bool_),
    ]
    return _scored(columns_count, *nodes, tensors=tensors).SerializeToString()


def _scan(columns_count: int) -> ModelProto:
    body = helper.make_graph(
        [_node("Identity", ["row"], ["same"])],
        "body",
        [_value("row", [columns_count])],
        [_value("same", [columns_count])],
    )
    return _scored(columns_count, _node("Scan", ["filled"], ["x"], body=body, num_scan_inputs=1))


def _branch(columns_count: int) -> ModelProto:
    graph = helper.make_graph([_node("Identity", ["filled"], ["y"])], "inner", [], [_value("y", ["n", columns_count])])
    node = _node("If", ["yes"], ["x"], then_branch=graph, else_branch=graph)
    return _scored(columns_count, node, tensors=[_tensor("yes", True, np.bool_)])


def _field(number: int, content: bytes) -> bytes:
    """A message or text as a field of a message, as protobuf writes it."""
    length, rest = b"", len(content)
    while True:
        length, rest = length + bytes([rest & 0x7F | (0x80 if rest > 0x7F else 0)]), rest >> 7
        if not rest:
            return bytes([number << 3 | 2]) + length + content


def _deep_branches(_: int) -> bytes:
    """A graph in a node in a graph, ten thousand times: whoever walks it by recursion has no stack left."""
    graph = b""
    for _ in range(10_000):
        graph = _field(1, _field(5, _field(6, graph)))
    return _field(7, graph)


def _one_operator(name: str, inputs: Sequence[str], *tensors: TensorProto, domain: str = "", **attributes: Any) -> Made:
    """A sound model that uses this operator beside."""

    def made(columns_count: int) -> bytes:
        used = _node(name, inputs, ["unused"], domain=domain, **attributes)
        keeps = _node("Identity", ["filled"], ["x"])
        model = _scored(columns_count, used, keeps, tensors=tensors)
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        return model.SerializeToString()

    return made


def _external(columns_count: int) -> ModelProto:
    model = _linear(columns_count)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    return model


def _external_in_attribute(columns_count: int) -> ModelProto:
    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
    hidden.data_location = TensorProto.EXTERNAL
    model = _linear(columns_count)
    model.graph.node.append(_node("Constant", [], ["unused"], value=hidden))
    return model


def _function(columns_count: int) -> ModelProto:
    model = _linear(columns_count)
    nodes = [_node("Abs", ["x"], ["y"])]
    model.functions.append(helper.make_function("own", "Own", ["x"], ["y"], nodes, model.opset_import))
    return model


def _training_info(columns_count: int) -> ModelProto:
    model = _linear(columns_count)
    model.training_info.add()
    return model


def _sparse(columns_count: int) -> ModelProto:
    """Five numbers that stand for 2^40."""
    model = _linear(columns_count)
    sparse = model.graph.sparse_initializer.add(dims=[2**40])
    sparse.values.CopyFrom(_tensor("huge", np.ones(5)))
    sparse.indices.CopyFrom(_tensor("at", np.arange(5), np.int64))
    return model


def _trees(
    columns_count: int,
    true: Sequence[int],
    false: Sequence[int],
    leaves: Sequence[int],
    **changes: Any,
) -> ModelProto:
    """One tree of as many nodes as *true* has.

    Args:
        leaves: numbers of the nodes that are none of the branches.
        changes: attributes as they are otherwise.
    """
    count = len(true)
    are_leaves = set(leaves)
    attributes: dict[str, Any] = {
        "nodes_treeids": [0] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_featureids": [0] * count,
        "nodes_values": [0.0] * count,
        "nodes_modes": ["LEAF" if k in are_leaves else "BRANCH_LEQ" for k in range(count)],
        "nodes_truenodeids": list(true),
        "nodes_falsenodeids": list(false),
        "nodes_missing_value_tracks_true": [0] * count,
        "target_treeids": [0],
        "target_nodeids": [max(leaves)],
        "target_ids": [0],
        "target_weights": [1.0],
        "n_targets": 1,
    }
    node = _node("TreeEnsembleRegressor", ["features"], ["scores"], domain="ai.onnx.ml", **{**attributes, **changes})
    return _model(columns_count, [node])


def deep(columns_count: int, depth: int = 30_000) -> bytes:
    """A tree so deep that the runtime, which builds it by recursion, has no stack left: the process ends."""
    count = 2 * depth + 1
    branches = range(0, count - 1, 2)
    true, false = [0] * count, [0] * count
    for k in branches:
        true[k], false[k] = k + 1, k + 2
    leaves = [*range(1, count, 2), count - 1]
    return _trees(columns_count, true, false, leaves).SerializeToString()


def _many_nodes(columns_count: int) -> ModelProto:
    """Nodes without end, each of which the runtime looks at several times."""
    names = ["filled", *(f"n{k}" for k in range(20_000)), "x"]
    nodes = [_node("Identity", [before], [after]) for before, after in pairwise(names)]
    return _scored(columns_count, *nodes)


def empty_nodes(_: int) -> bytes:
    """Millions of nodes of two bytes each; parsed, they take a hundred times as much."""
    return _field(7, _field(1, b"") * (8 * 2**20))


def _doubled(columns_count: int) -> ModelProto:
    """Forty concatenations with itself: 2^40 times as much."""
    names = ["filled", *(f"c{k}" for k in range(39)), "wide"]
    nodes = [_node("Concat", [a, a], [b], axis=1) for a, b in pairwise(names)]
    first = _node("Gather", ["wide", "all"], ["x"], axis=1)
    return _scored(columns_count, *nodes, first, tensors=[_tensor("all", np.arange(columns_count), np.int64)])


def _wide_gather(columns_count: int) -> ModelProto:
    """Each row gathered two million times over: eight gigabytes of a thousand rows."""
    indices = np.arange(2_000_000) % columns_count
    nodes = [
        _node("Gather", ["filled", "again"], ["wide"], axis=1),
        _node("ReduceMax", ["wide"], ["largest"], axes=[1], keepdims=1),
        _node("Mul", ["filled", "largest"], ["x"]),
    ]
    return _scored(columns_count, *nodes, tensors=[_tensor("again", indices, np.int64)])


def _each_with_each(columns_count: int) -> ModelProto:
    """Every row beside every other one, twice: a thousand rows become a thousand million numbers."""
    shapes = {"a": [-1, 1, 1], "b": [1, -1, 1], "c": [1, 1, -1]}
    nodes = [
        _node("ReduceSum", ["filled", "columns"], ["one"], keepdims=0),
        *(_node("Reshape", ["one", f"to_{name}"], [name]) for name in shapes),
        _node("Add", ["a", "b"], ["ab"]),
        _node("Add", ["ab", "c"], ["abc"]),
        _node("ReduceMax", ["abc"], ["largest"], axes=[1, 2], keepdims=0),
        _node("Reshape", ["largest", "to_column"], ["column"]),
        _node("Mul", ["filled", "column"], ["x"]),
    ]
    tensors = [_tensor(f"to_{name}", shape, np.int64) for name, shape in shapes.items()]
    tensors += [_tensor("columns", [1], np.int64), _tensor("to_column", [-1, 1], np.int64)]
    return _scored(columns_count, *nodes, tensors=tensors)


def _slow(columns_count: int) -> ModelProto:
    """Hundreds of dense layers: minutes for as many rows as a Decide can have, and hardly anything for a few."""
    hidden = 1024
    names = ["h", *(f"h{k}" for k in range(150))]
    layers = [_node("MatMul", [a, "hidden"], [b]) for a, b in pairwise(names)]
    nodes = [_node("MatMul", ["filled", "first"], ["h"]), *layers, _node("MatMul", [names[-1], "last"], ["x"])]
    eye = np.eye(hidden)
    tensors = [
        _tensor("first", np.full((columns_count, hidden), 0.001)),
        _tensor("hidden", eye),
        _tensor("last", np.full((hidden, columns_count), 0.001)),
    ]
    return _scored(columns_count, *nodes, tensors=tensors)


def _fails_for_most_counts(columns_count: int) -> ModelProto:
    """Sound for numbers of rows that seven divides, which a trial of eight or sixty-four would not tell."""
    nodes = [
        _node("Reshape", ["filled", "sevens"], ["seven"]),
        _node("Reshape", ["seven", "rows"], ["x"]),
    ]
    tensors = [
        _tensor("sevens", [-1, 7 * columns_count], np.int64),
        _tensor("rows", [-1, columns_count], np.int64),
    ]
    return _scored(columns_count, *nodes, tensors=tensors)


def _one_score_for_all(columns_count: int) -> ModelProto:
    return _scored(columns_count, _node("ReduceMean", ["filled"], ["x"], axes=[0], keepdims=1))


def _keeps_missing(columns_count: int) -> ModelProto:
    return _model(
        columns_count,
        [_node("MatMul", ["features", "weights"], ["scores"])],
        [_tensor("weights", np.ones((columns_count, 1)))],
    )


def _infinite(columns_count: int) -> ModelProto:
    return _linear(columns_count, weight=float("inf"))


def _false_size(columns_count: int) -> ModelProto:
    """A tensor of a terabyte, of which four bytes are there."""
    model = _linear(columns_count)
    model.graph.initializer[0].dims[:] = [2**20, 2**18]
    return model


def _circle(columns_count: int) -> ModelProto:
    return _scored(columns_count, _node("Add", ["filled", "y"], ["x"]), _node("Abs", ["x"], ["y"]))


def forged_names(columns_count: int) -> bytes:
    """Names with line breaks, and an error whose text repeats them: a log line of the file's maker."""
    model = _fails_for_most_counts(columns_count)
    fails = model.graph.node[2]
    fails.name, fails.doc_string = FORGED, FORGED
    return model.SerializeToString()


def _forged_operator(columns_count: int) -> ModelProto:
    return _scored(columns_count, _node(FORGED, ["filled"], ["x"]))


def _two_inputs(columns_count: int) -> ModelProto:
    model = _linear(columns_count)
    model.graph.input.append(_value("more", ["n", 1]))
    return model


def _two_outputs(columns_count: int) -> ModelProto:
    model = _linear(columns_count)
    model.graph.node.append(_node("Neg", ["scores"], ["other"]))
    model.graph.output.append(_value("other", ["n", 1]))
    return model


def _fixed_rows(columns_count: int) -> ModelProto:
    model = _linear(columns_count)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    return model


def _linear_ml(columns_count: int, coefficients_count: int) -> ModelProto:
    node = _node(
        "LinearRegressor",
        ["features"],
        ["scores"],
        domain="ai.onnx.ml",
        coefficients=[1.0] * coefficients_count,
        targets=1,
    )
    return _model(columns_count, [node])


def _trees_of_something_else(columns_count: int) -> ModelProto:
    """Trees that read the last column of a matrix that has but one: memory that is not the model's."""
    model = _trees(columns_count, [1, 0, 0], [2, 0, 0], [1, 2], nodes_featureids=[columns_count - 1, 0, 0])
    model.graph.node[0].input[0] = "one"
    model.graph.node.insert(0, _node("Gather", ["features", "first"], ["one"], axis=1))
    model.graph.initializer.append(_tensor("first", [0], np.int64))
    return model


def _proto(made: Callable[[int], ModelProto]) -> Made:
    return lambda columns_count: made(columns_count).SerializeToString()


# By name: the file for so many columns, and words of the reason that it has to be refused with.
HOSTILE: Mapping[str, tuple[Made, str]] = {
    "loop": (endless, "graph inside a node"),
    "scan": (_proto(_scan), "graph inside a node"),
    "branch": (_proto(_branch), "graph inside a node"),
    "branches_in_branches": (_deep_branches, "no ONNX model"),
    "constant_of_shape": (
        _one_operator("ConstantOfShape", ["shape"], _tensor("shape", [2**40], np.int64)),
        "ConstantOfShape",
    ),
    "expand": (_one_operator("Expand", ["filled", "shape"], _tensor("shape", [2**30, 1, 1], np.int64)), "Expand"),
    "tile": (_one_operator("Tile", ["filled", "times"], _tensor("times", [2**20, 2**20], np.int64)), "Tile"),
    "random": (_one_operator("RandomNormalLike", ["filled"]), "RandomNormalLike"),
    "random_shape": (_one_operator("RandomUniform", [], shape=[2**20, 2**20]), "RandomUniform"),
    "custom_operator": (_one_operator("Shell", ["filled"], domain="com.evil"), "outside ai.onnx"),
    "contrib_operator": (_one_operator("Gelu", ["filled"], domain="com.microsoft"), "outside ai.onnx"),
    "forged_operator": (_proto(_forged_operator), "not in ONNX"),
    "function": (_proto(_function), "functions of its own"),
    "training_info": (_proto(_training_info), "how to train it"),
    "external_data": (_proto(_external), "other files"),
    "external_data_in_attribute": (_proto(_external_in_attribute), "other files"),
    "sparse": (_proto(_sparse), "sparse"),
    "deep_tree": (deep, "deeper than"),
    "tree_in_a_circle": (_proto(lambda columns: _trees(columns, [1, 2, 1, 0], [3, 3, 3, 0], [3])), "meet again"),
    "tree_into_itself": (
        _proto(lambda columns: _trees(columns, [1, 0, 0, 4, 3], [2, 0, 0, 5, 6, 0, 0][:5], [1, 2])),
        "export it anew",
    ),
    "tree_that_meets_itself": (_proto(lambda columns: _trees(columns, [1, 2, 0], [1, 2, 0], [2])), "meet again"),
    "tree_to_nowhere": (_proto(lambda columns: _trees(columns, [1, 0, 0], [9, 0, 0], [1, 2])), "leads nowhere"),
    "tree_of_far_columns": (
        _proto(lambda columns: _trees(columns, [1, 0, 0], [2, 0, 0], [1, 2], nodes_featureids=[10**6, 0, 0])),
        "read more than",
    ),
    "tree_of_far_targets": (
        _proto(lambda columns: _trees(columns, [1, 0, 0], [2, 0, 0], [1, 2], target_ids=[10**6])),
        "more results than",
    ),
    "trees_of_something_else": (_proto(_trees_of_something_else), "something else than the features"),
    "linear_of_too_few": (_proto(lambda columns: _linear_ml(columns, 1)), "linear model of other than"),
    "many_nodes": (_proto(_many_nodes), "nodes, at most"),
    "empty_nodes": (empty_nodes, "memory|no ONNX model"),
    "doubled": (_proto(_doubled), "memory|number of rows"),
    "wide_gather": (_proto(_wide_gather), "memory|number of rows"),
    "each_with_each": (_proto(_each_with_each), "memory|number of rows"),
    "false_size": (_proto(_false_size), "cannot be loaded"),
    "slow": (_proto(_slow), "takes more"),
    "fails_for_most_counts": (_proto(_fails_for_most_counts), "every number of rows"),
    "forged_names": (forged_names, "every number of rows"),
    "one_score_for_all": (_proto(_one_score_for_all), "every number of rows"),
    "keeps_missing": (_proto(_keeps_missing), "no finite numbers"),
    "infinite": (_proto(_infinite), "no finite numbers"),
    "circle": (_proto(_circle), "cannot be loaded"),
    "no_model": (lambda _: b"no model", "no ONNX model"),
    "cut_off": (lambda columns: sound(columns)[:-9], "no ONNX model"),
    "two_inputs": (_proto(_two_inputs), "one float input"),
    "two_outputs": (_proto(_two_outputs), "exactly one float output"),
    "fixed_rows": (_proto(_fixed_rows), "fixed number of rows"),
    "of_other_columns": (lambda columns: sound(columns + 1), "columns, the feature set has"),
}
