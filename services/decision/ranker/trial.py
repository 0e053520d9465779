"""Models tried before they decide: read, loaded and run on made-up rows in a process of their own, with limits.

A file can end the process that loads it, take all memory, or never come back. How many rows it is tried on is drawn
anew each time, beside the bounds of a Decide: a model that behaves for the trial alone would have to know them.
"""

import json
import random
import signal
import sys
import time
from typing import Protocol

import numpy as np
import onnxruntime as ort

from services.chassis.child import begin, in_child, limit_cpu, limit_memory, say
from services.chassis.errors import ServiceError
from services.decision.domain.layout import Floats
from services.decision.domain.release import NewModel, refused
from services.decision.domain.trial_rows import GOLDEN_COUNT, ROWS_MAX, golden_rows, rows
from services.decision.ranker.inspection import inspect
from services.decision.ranker.session import MEASURED_COUNTS, ranker_of

# Another number whenever the trial changes what it lets through: what was tried by another one is tried again.
CHECKER = f"1/onnxruntime-{ort.__version__}"
# CPU time of each step. The largest file that is allowed takes two seconds to load.
STEP_S_MAX = 10
# CPU time for as many rows as a Decide can have: no Decide may last a second.
SCORE_S_MAX = 1.0
# Above what the libraries themselves take: a file of 32 MB takes 300 MB while it is loaded.
LOAD_BYTES_MAX = 512 * 2**20
SCORE_BYTES_MAX = 128 * 2**20
# Of a busy machine, not of the model.
TRIAL_S_MAX = 120.0
DRAWN_COUNT = 4
# Between the trainer's doubles and the runtime's float32, of scores of the order of one.
GOLDEN_DIFFERENCE_MAX = 1e-3

# What runs in the child: this module, as a program.
CHILD = __name__

_READ, _LOADED, _SCORED = "read", "loaded", "scored"


class _Scores(Protocol):
    """What is tried."""

    def score(self, matrix: Floats) -> Floats:
        """One score a row."""
        ...


def try_out(model: NewModel) -> str:
    """What is wrong with the model, as a sentence's end; empty: nothing. Takes seconds, and a process.

    Raises:
        ServiceError: UNAVAILABLE (MODEL_NOT_TRIED).
    """
    said = in_child(
        CHILD,
        json.dumps({"columns_count": model.columns_count, "golden": model.golden.hex()}),
        data=model.onnx,
        timeout_s=TRIAL_S_MAX,
        reason="MODEL_NOT_TRIED",
    )
    last = said.lines[-1] if said.lines else ""
    if last.startswith("{"):
        problem: str = json.loads(last)["problem"]
        return problem
    step = last if last in (_READ, _LOADED, _SCORED) else _READ
    if -said.status == signal.SIGXCPU:
        return f"takes more time or memory than a model may while it is {step}; train a smaller one"
    return f"ends the process in which it is {step}; export it anew, or train a smaller one"


def main() -> None:
    """The child: each step as it begins, then what was found."""
    asked = json.loads(sys.argv[1])
    data = sys.stdin.buffer.read()
    expected = np.frombuffer(bytes.fromhex(asked["golden"]), dtype="<f4")
    begin()
    try:
        _try(NewModel("", "", "", asked["columns_count"], data), expected)
    except ServiceError as error:
        problem = error.problems[0].problem
    except MemoryError:
        problem = "takes more memory than a model may; train a smaller one"
    else:
        problem = ""
    say(json.dumps({"problem": problem}))


def _try(model: NewModel, expected: Floats) -> None:
    """Returns when nothing is wrong with the model.

    Args:
        expected: scores of the golden rows; empty: not known.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED).
    """
    _begin(_READ, LOAD_BYTES_MAX)
    inspect(model.onnx, model.columns_count)
    _begin(_LOADED, LOAD_BYTES_MAX)
    ranker = ranker_of(model)
    _begin(_SCORED, SCORE_BYTES_MAX)
    try_rows(ranker, model.columns_count)
    _compare(ranker, golden_rows(model.columns_count), expected)


def try_rows(ranker: _Scores, columns_count: int) -> None:
    """Returns when the ranker scores every number of rows that is tried.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED).
    """
    # What a Decide can have at least and at most, and what costs are measured on afterwards; the others nobody knows
    # beforehand. What is slow shows early.
    drawn = random.SystemRandom().sample(range(2, ROWS_MAX), DRAWN_COUNT)
    for count in sorted({*MEASURED_COUNTS, *drawn}):
        _try_rows(ranker, rows(count, columns_count))


def _begin(step: str, more_bytes: int) -> None:
    limit_memory(more_bytes)
    limit_cpu(STEP_S_MAX)
    say(step)


def _try_rows(ranker: _Scores, some: Floats) -> None:
    """Missing values among them: the scores must be finite, the same again, and there in time."""
    scores, first_s = _timed(ranker, some)
    if scores.shape != (len(some),):
        raise refused("gives another number of scores than rows; it must score each row once")
    if not np.isfinite(scores).all():
        raise refused("gives scores that are no finite numbers; missing values (NaN) must be scored too")
    again, second_s = _timed(ranker, some) if first_s < 2 * SCORE_S_MAX else (scores, first_s)
    if min(first_s, second_s) > SCORE_S_MAX:
        raise refused(f"takes more than {SCORE_S_MAX:g} s for {len(some)} rows; train a smaller one")
    if again.tobytes() != scores.tobytes():
        raise refused("gives other scores for the same rows; a decision could not be replayed")


def _timed(ranker: _Scores, some: Floats) -> tuple[Floats, float]:
    began_s = time.thread_time()
    try:
        scores = ranker.score(some)
    except MemoryError:
        raise
    except Exception as error:  # the runtime has a dozen classes of errors and no common one
        raise refused("cannot score every number of rows; check it with ONNX Runtime first") from error
    return scores, time.thread_time() - began_s


def _compare(ranker: _Scores, golden: Floats, expected: Floats) -> None:
    """The trainer's scores of the golden rows, where it sent them."""
    if not len(expected):
        return
    if len(expected) != GOLDEN_COUNT:
        raise refused(f"comes with {len(expected)} golden scores; there are {GOLDEN_COUNT} golden rows")
    scores = ranker.score(golden)
    if not np.allclose(scores, expected, rtol=GOLDEN_DIFFERENCE_MAX, atol=GOLDEN_DIFFERENCE_MAX):
        raise refused("does not score the golden rows as its trainer does; export it anew")


if __name__ == "__main__":
    main()
