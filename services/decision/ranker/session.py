"""A model in ONNX Runtime: one thread, the score output only, its cost known before it decides."""

import hashlib
import time

import numpy as np
import onnxruntime as ort

from services.decision.domain.layout import Floats
from services.decision.domain.release import NewModel
from services.decision.ranker.inspection import inspect, refused

# Rows a session is tried on: enough that a batch is timed like one in earnest.
TRIAL_ROWS_COUNT = 64
TRIALS_COUNT = 5
_ERRORS_ONLY = 3


class OnnxRanker:
    """domain.serving.Ranker over a session."""

    def __init__(self, model: NewModel, session: ort.InferenceSession, output: str) -> None:
        self._version = model.version
        self._feature_set_version = model.feature_set_version
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [output]
        self._call_s, self._row_s = self._measure(model.columns_count)

    @property
    def version(self) -> str:
        """name@sha256."""
        return self._version

    @property
    def feature_set_version(self) -> str:
        """The feature set whose columns it reads."""
        return self._feature_set_version

    def score(self, matrix: Floats) -> Floats:
        """float32, one score a row, higher is better."""
        scores: Floats = self._session.run(self._outputs, {self._input: matrix})[0]
        return scores.reshape(len(matrix))

    def cost_s(self, rows_count: int) -> float:
        """About how long scoring that many rows takes."""
        return self._call_s + rows_count * self._row_s

    def _measure(self, columns_count: int) -> tuple[float, float]:
        """Seconds a call and a row, the best of a few tries; the tries also warm the session."""
        one, many = _trial_rows(columns_count)[:1], _trial_rows(columns_count)
        one_s, many_s = self._best_s(one), self._best_s(many)
        row_s = max(0.0, many_s - one_s) / (len(many) - 1)
        return one_s, row_s

    def _best_s(self, matrix: Floats) -> float:
        best_s = float("inf")
        for _ in range(TRIALS_COUNT):
            began_s = time.perf_counter()
            self.score(matrix)
            best_s = min(best_s, time.perf_counter() - began_s)
        return best_s


class OnnxLoader:
    """handlers.ports.ModelLoader."""

    def load(self, model: NewModel) -> OnnxRanker:
        """See handlers.ports.ModelLoader."""
        if hashlib.sha256(model.onnx).hexdigest() != model.sha256:
            raise refused("does not have the SHA-256 that it was announced with; send the file again")
        inspect(model.onnx, model.columns_count)
        try:
            session = ort.InferenceSession(model.onnx, _options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has a dozen classes of errors and no common one
            raise refused("cannot be loaded by ONNX Runtime; check it there first") from error
        ranker = _ranker(model, session)
        _try(ranker, model.columns_count)
        return ranker


def _options() -> ort.SessionOptions:
    """One thread: more of them under contention turn a tenth of a millisecond into eight."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    return options


def _ranker(model: NewModel, session: ort.InferenceSession) -> OnnxRanker:
    """The ranker of the session's score output."""
    fitting = [output.name for output in session.get_outputs() if _is_scores(output)]
    if len(fitting) != 1:
        raise refused("must have exactly one float output with one score a row")
    try:
        return OnnxRanker(model, session, fitting[0])
    except Exception as error:  # as above
        raise refused("cannot score; check it with ONNX Runtime first") from error


def _is_scores(output: ort.NodeArg) -> bool:
    if output.type != "tensor(float)":
        return False
    return len(output.shape) == 1 or (len(output.shape) == 2 and output.shape[1] == 1)


def _try(ranker: OnnxRanker, columns_count: int) -> None:
    """Score rows of every kind, missing values among them: the scores must be finite, and the same again."""
    rows = _trial_rows(columns_count)
    scores = ranker.score(rows)
    if not np.isfinite(scores).all():
        raise refused("gives scores that are no finite numbers; missing values (NaN) must be scored too")
    if ranker.score(rows).tobytes() != scores.tobytes():
        raise refused("gives other scores for the same rows; a decision could not be replayed")


def _trial_rows(columns_count: int) -> Floats:
    """Zeros, missing values, and a fixed spread of magnitudes."""
    rows = np.random.Generator(np.random.Philox(7)).normal(size=(TRIAL_ROWS_COUNT, columns_count)).astype(np.float32)
    rows[1::4] *= 1000
    rows[2::4] = np.where(rows[2::4] > 0, np.float32(np.nan), rows[2::4])
    rows[0], rows[3] = 0.0, np.nan
    return rows
