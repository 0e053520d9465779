"""A model in ONNX Runtime: one thread, the score output only, its cost known before it decides."""

import time

import numpy as np
import onnxruntime as ort

from services.decision.domain.layout import Floats
from services.decision.domain.release import NewModel, refused
from services.decision.domain.trial_rows import ROWS_MAX, rows

# What costs are measured on: a call, a batch of the usual size, and the largest one.
MEASURED_COUNTS = (1, 64, ROWS_MAX)
TRIALS_COUNT = 5
# What takes longer than this is not measured again.
LONG_S = 0.1
# The runtime writes names that stand in the file to standard error, past our logs: whoever made it could forge lines.
_SILENT = 4


class OnnxRanker:
    """domain.serving.Ranker over a session."""

    def __init__(self, model: NewModel, session: ort.InferenceSession, output: str) -> None:
        self._version = model.version
        self._feature_set_version = model.feature_set_version
        self._columns_count = model.columns_count
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [output]
        # Shared by all runs, so that one word ends them all.
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _SILENT
        self._costs_s: tuple[float, ...] = (0.0,) * len(MEASURED_COUNTS)

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
        scores: Floats = self._session.run(self._outputs, {self._input: matrix}, self._run_options)[0]
        return scores.reshape(len(matrix))

    def cost_s(self, rows_count: int) -> float:
        """About how long scoring that many rows takes."""
        return float(np.interp(rows_count, MEASURED_COUNTS, self._costs_s))

    def stop(self) -> None:
        """End what it scores now, at the next operator, and whatever it is asked from then on, with an error."""
        self._run_options.terminate = True

    def measure(self) -> None:
        """Learn what it costs, the best of a few tries; the tries also warm the session."""
        self._costs_s = tuple(self._best_s(rows(count, self._columns_count)) for count in MEASURED_COUNTS)

    def _best_s(self, matrix: Floats) -> float:
        best_s = float("inf")
        for _ in range(TRIALS_COUNT):
            began_s = time.perf_counter()
            self.score(matrix)
            best_s = min(best_s, time.perf_counter() - began_s)
            if best_s > LONG_S:
                break
        return best_s


def ranker_of(model: NewModel) -> OnnxRanker:
    """The model in a session; nothing was tried yet.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED).
    """
    try:
        session = ort.InferenceSession(
            model.onnx, _options(), providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except MemoryError:
        raise
    except Exception as error:  # the runtime has a dozen classes of errors and no common one
        raise refused("cannot be loaded by ONNX Runtime; check it there first") from error
    fitting = [output.name for output in session.get_outputs() if _is_scores(output)]
    if len(fitting) != 1:
        raise refused("must have exactly one float output with one score a row")
    return OnnxRanker(model, session, fitting[0])


def load(model: NewModel) -> OnnxRanker:
    """The model, ready to decide, its cost known. Only for a file that its trial found nothing wrong with.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED).
    """
    ranker = ranker_of(model)
    try:
        ranker.measure()
    except Exception as error:  # as above
        raise refused("cannot score; check it with ONNX Runtime first") from error
    return ranker


def _options() -> ort.SessionOptions:
    """One thread: more of them under contention turn a tenth of a millisecond into eight."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _SILENT
    return options


def _is_scores(output: ort.NodeArg) -> bool:
    if output.type != "tensor(float)":
        return False
    return len(output.shape) == 1 or (len(output.shape) == 2 and output.shape[1] == 1)
