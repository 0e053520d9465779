"""The operators that a model file may use, by kind of artifact.

A kind that comes later adds a line here, and the file that abuses its operators to bench/prove/hostile_files.py. What
is not here loops (Loop, Scan), branches (If), makes much of little (ConstantOfShape, Expand, Tile, Range), differs from
run to run (Random…) or is needed by nothing that is exported for this.
"""

from collections.abc import Mapping
from typing import Final

# (domain, operator); "" is ai.onnx.
Operator = tuple[str, str]

_ML: Final = "ai.onnx.ml"


def _of(domain: str, names: str) -> frozenset[Operator]:
    return frozenset((domain, name) for name in names.split())


# Element by element: as many numbers come out as the larger side has.
_ARITHMETIC = _of(
    "",
    "Abs Add Ceil Clip Div Equal Exp Floor Greater GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Log Max Min Mul"
    " Neg Not And Or Pow Reciprocal Relu Sigmoid Sign Sqrt Sub Sum Tanh Where",
)
_SHAPES = _of("", "Cast Concat Constant Flatten Gather Reshape Squeeze Unsqueeze")
_LINEAR = _of("", "Gemm MatMul") | _of(_ML, "LinearClassifier LinearRegressor")
_NORMALIZERS = _of("", "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum") | _of(_ML, "Imputer Normalizer Scaler")
_TREES = _of(_ML, "TreeEnsembleClassifier TreeEnsembleRegressor")

ALLOWED: Final[Mapping[str, frozenset[Operator]]] = {
    "ranker": _ARITHMETIC | _SHAPES | _LINEAR | _NORMALIZERS | _TREES,
}
