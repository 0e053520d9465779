"""A fitted ranker as ONNX, proven to score as the trainer does.

LightGBM compares with doubles, ONNX trees with float32. A threshold between two neighboring values becomes, rounded
to the nearest, often the upper one, and the upper one then goes the wrong way. So every threshold first becomes the
largest float32 that LightGBM does not take for one above it: then every comparison comes out the same, for every
float32 and not only for those that were tried. Near zero that is another one than its value says: LightGBM reads
everything within 1e-35 of zero as zero.

The same leaves are then added up in float32 instead of double: of n trees whose largest leaves sum up to L the scores
differ by at most about n · L · 2^-24. That is tried on real rows, and above DIFFERENCE_MAX nothing is exported.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import lightgbm as lgb
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxmltools.convert import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

from learning.errors import LearningError, refused_by
from services.decision.domain.trial_rows import golden_rows

Floats = NDArray[np.float32]

INPUT_NAME: Final = "features"
OUTPUT_NAME: Final = "scores"
# What onnxruntime reads and the converter writes, held still: a newer converter must not change what is deployed.
OPSET: Final = 15
ML_OPSET: Final = 3
# Sums of a few hundred float32 leaves against sums of doubles; scores are of the order of 1.
DIFFERENCE_MAX: Final = 1e-4
PARITY_ROWS_MAX: Final = 20_000
# LightGBM's kZeroThreshold: what is not further from zero than this it reads as zero.
ZERO_MAX: Final = float(np.float32(1e-35))


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX ranker.

    Args:
        sha256: of *model*, hex.
        difference_max: largest difference to the trainer's scores that was seen.
        golden_scores: of the rows that decision tries it on, by the trainer; empty: not known.
    """

    model: bytes
    sha256: str
    difference_max: float
    golden_scores: tuple[float, ...] = ()


def export(booster: lgb.Booster, matrix: Floats, *, tolerance: float = DIFFERENCE_MAX) -> Exported:
    """The booster as ONNX: `features` float32 [n, columns] → `scores` float32 [n, 1].

    Args:
        matrix: real rows to prove it on, float32; rows with missing values are made from them as well.

    Raises:
        LearningError: it does not score as the trainer does; nothing that fails this is registered.
    """
    with refused_by("The ONNX converter"):
        model = _convert(_for_float32(booster), booster.num_feature())
    serialized: bytes = model.SerializeToString()
    difference = _check_parity(booster, serialized, _rows_to_try(matrix), tolerance)
    golden = tuple(np.asarray(booster.predict(golden_rows(booster.num_feature())), dtype=np.float64))
    return Exported(serialized, hashlib.sha256(serialized).hexdigest(), difference, golden)


def session_of(model: bytes) -> ort.InferenceSession:
    """The model, ready to score on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Names that stand in a file are not written to anybody's terminal.
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def score(session: ort.InferenceSession, matrix: Floats) -> Floats:
    """One score a row."""
    scores: Floats = session.run([OUTPUT_NAME], {INPUT_NAME: matrix})[0].reshape(-1)
    return scores


def _for_float32(booster: lgb.Booster) -> lgb.Booster:
    """The same trees, deciding alike in float32 and in double."""
    lines: list[str] = []
    for line in booster.model_to_string(num_iteration=-1).split("\n"):
        name, _, values = line.partition("=")
        if name == "threshold" and values:
            lines.append("threshold=" + " ".join(repr(threshold_float32(float(value))) for value in values.split(" ")))
        elif name != "tree_sizes":
            # tree_sizes are offsets into the text, which has changed; without them it is read from end to end.
            lines.append(line)
    return lgb.Booster(model_str="\n".join(lines))


def threshold_float32(threshold: float) -> float:
    """The largest float32 that LightGBM sends to the left of this threshold; all that are below it go there, too."""
    if 0.0 <= threshold < ZERO_MAX:
        return ZERO_MAX  # zero goes left, and with it everything that is read as zero
    if -ZERO_MAX <= threshold < 0.0:
        return float(np.nextafter(np.float32(-ZERO_MAX), np.float32(-np.inf)))
    with np.errstate(over="ignore"):
        rounded = np.float32(threshold)
        return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


def _convert(booster: lgb.Booster, columns_count: int) -> onnx.ModelProto:
    model: onnx.ModelProto = convert_lightgbm(
        booster,
        name="ranker",
        initial_types=[(INPUT_NAME, FloatTensorType([None, columns_count]))],
        target_opset=OPSET,
        zipmap=False,
    )
    graph = model.graph
    # Trees, and an Identity that only renames their output.
    trees = next(node for node in graph.node if node.op_type == "TreeEnsembleRegressor")
    del graph.node[:]
    graph.node.append(trees)
    graph.node[0].output[:] = [OUTPUT_NAME]
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, [None, 1]))
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("ai.onnx.ml", ML_OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model


def _rows_to_try(matrix: Floats) -> Floats:
    """Real rows, spread over all of them; the same with some values missing; one with all of them missing."""
    step = max(1, -(-len(matrix) // PARITY_ROWS_MAX))
    real = np.ascontiguousarray(matrix[::step])
    holed = real.copy()
    holed[np.random.default_rng(7).random(holed.shape) < 0.2] = np.nan
    return np.concatenate([real, holed, np.full((1, matrix.shape[1]), np.nan, dtype=np.float32)])


def _check_parity(booster: lgb.Booster, model: bytes, rows: Floats, tolerance: float) -> float:
    """The largest difference between the trainer's scores and the model's.

    Raises:
        LearningError: it is above the tolerance, or two rows that the trainer tells apart change places.
    """
    expected = np.asarray(booster.predict(rows), dtype=np.float64)
    actual = score(session_of(model), rows).astype(np.float64)
    difference = float(np.abs(expected - actual).max())
    if not np.isfinite(actual).all() or difference > tolerance:
        raise LearningError(
            f"The ONNX model is not the trainer's: scores differ by {difference:.3g} (at most {tolerance:g})."
        )
    order = np.argsort(expected, kind="stable")
    steps, told_apart = np.diff(actual[order]), np.diff(expected[order]) > 2 * max(difference, 1e-7)
    if bool((steps[told_apart] <= 0).any()):
        raise LearningError("The ONNX model is not the trainer's: it orders rows differently.")
    return difference
