"""Only a self-contained, bounded model of known operators and the right shape is loaded; its scores are repeatable."""

import re
import threading
from dataclasses import replace

import lightgbm as lgb
import numpy as np
import pytest

from bench.prove.hostile_files import FORGED, HOSTILE, deep, endless, forged_names, sound
from learning.export import export
from services.chassis.errors import Kind, ServiceError
from services.decision.domain.layout import Floats
from services.decision.domain.trial_rows import GOLDEN_COUNT, ROWS_MAX, golden_rows
from services.decision.ranker import OnnxLoader, trial
from services.decision.ranker.inspection import TREE_DEPTH_MAX, inspect
from services.decision.ranker.session import ranker_of
from tests.unit.decision.onnx_models import WIDTH, as_model, linear

LOADER = OnnxLoader()
# What cannot be told by looking at the file: found by reading, loading or scoring it where that can do no harm.
FOUND_BY_TRIAL = {
    "circle",
    "doubled",
    "each_with_each",
    "empty_nodes",
    "fails_for_most_counts",
    "false_size",
    "forged_names",
    "infinite",
    "keeps_missing",
    "one_score_for_all",
    "slow",
    "two_outputs",
    "wide_gather",
}


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - FOUND_BY_TRIAL))
def test_a_hostile_file_is_refused_by_its_look(name: str) -> None:
    """Before any runtime sees it; the refusal says what is wrong with it, and repeats nothing that it says."""
    made, said = HOSTILE[name]
    with pytest.raises(ServiceError, match=said) as caught:
        inspect(made(WIDTH), WIDTH)
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "MODEL_REFUSED")
    assert FORGED not in caught.value.message


@pytest.mark.parametrize("name", ["doubled", "fails_for_most_counts", "infinite", "two_outputs"])
def test_a_hostile_file_is_refused_by_its_trial(name: str) -> None:
    """One for each way in which a trial ends; all of them are tried by the proof `hostile_models`."""
    made, said = HOSTILE[name]
    assert re.search(said, LOADER.try_out(as_model(made(WIDTH))))


def test_a_file_that_ends_the_process_ends_the_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that nobody looked at before: the runtime has no stack left for a tree so deep."""
    monkeypatch.setattr(trial, "CHILD", "bench.variants.blind_trial")
    made, _ = HOSTILE["deep_tree"]
    assert "ends the process" in LOADER.try_out(as_model(made(WIDTH)))


def test_what_our_trainers_export_passes_every_check() -> None:
    """Trees, and a linear model with missing values."""
    rows = np.random.default_rng(3).normal(size=(300, WIDTH)).astype(np.float32)
    params = {"num_leaves": 31, "min_data_in_leaf": 1, "num_threads": 1, "verbose": -1}
    exported = export(lgb.train(params, lgb.Dataset(rows, rows.sum(axis=1)), num_boost_round=20), golden_rows(WIDTH))
    model = replace(as_model(exported.model), golden=np.asarray(exported.golden_scores, "<f4").tobytes())
    assert LOADER.try_out(model) == ""
    inspect(linear().SerializeToString(), WIDTH)
    inspect(sound(WIDTH), WIDTH)


@pytest.mark.parametrize(
    ("golden", "said"),
    [
        (np.zeros(GOLDEN_COUNT), "does not score the golden rows"),
        (np.zeros(GOLDEN_COUNT - 1), "63 golden scores"),
    ],
)
def test_a_model_that_scores_other_than_its_trainer_is_refused(golden: Floats, said: str) -> None:
    """The trainer sends its own scores of the golden rows along."""
    model = replace(as_model(linear()), golden=golden.astype("<f4").tobytes())
    assert said in LOADER.try_out(model)


def test_a_deep_tree_is_refused_only_above_the_bound() -> None:
    """And loads at the bound: the check stands where the runtime still can."""
    inspect(deep(WIDTH, TREE_DEPTH_MAX), WIDTH)
    ranker_of(as_model(deep(WIDTH, TREE_DEPTH_MAX)))
    with pytest.raises(ServiceError, match="deeper than 128"):
        inspect(deep(WIDTH, TREE_DEPTH_MAX + 1), WIDTH)


class Counting:
    """Scores anything, and remembers how many rows that was."""

    def __init__(self) -> None:
        self.counts: set[int] = set()

    def score(self, matrix: Floats) -> Floats:
        self.counts.add(len(matrix))
        return np.zeros(len(matrix), dtype=np.float32)


def test_the_trial_tries_counts_that_nobody_knows_before() -> None:
    """Beside one row and the most that a Decide can have."""
    trials = [Counting() for _ in range(3)]
    for each in trials:
        trial.try_rows(each, WIDTH)
    seen = [each.counts for each in trials]
    assert all(counts >= {1, ROWS_MAX} for counts in seen)
    assert set.union(*seen) > set.intersection(*seen)


def test_names_in_a_file_reach_neither_log_nor_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """The runtime tells of errors with the names of nodes, past our logs; here it is silent."""
    ranker = ranker_of(as_model(forged_names(WIDTH)))
    with pytest.raises(Exception, match="Reshape") as caught:
        ranker.score(golden_rows(WIDTH)[:3])
    assert FORGED in str(caught.value), "else this model forges nothing"
    with pytest.raises(ServiceError):
        ranker_of(as_model(HOSTILE["forged_operator"][0](WIDTH)))
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


def test_a_stopped_ranker_ends_what_it_scores_and_scores_nothing_more() -> None:
    """One word ends a scoring that would go on for ever, from another thread."""
    ranker = ranker_of(as_model(endless(WIDTH)))
    rows = np.full((3, WIDTH), 1e9, dtype=np.float32)
    threading.Timer(0.1, ranker.stop).start()
    with pytest.raises(Exception, match="terminate"):
        ranker.score(rows)
    with pytest.raises(Exception, match="terminate"):
        ranker.score(golden_rows(WIDTH))


def test_one_flipped_bit_in_a_model_is_caught() -> None:
    """The bytes must be those that the hash names."""
    model = as_model(linear())
    changed = bytearray(model.onnx)
    changed[len(changed) // 2] ^= 1
    with pytest.raises(ServiceError, match="SHA-256"):
        replace(model, onnx=bytes(changed)).require_whole()


def test_a_model_scores_one_number_a_row() -> None:
    """Missing values included, bit for bit the same again, at a cost that is known."""
    ranker = LOADER.load(as_model(linear()))
    rows = np.random.default_rng(1).normal(size=(20, WIDTH)).astype(np.float32)
    rows[3] = np.nan
    scores = ranker.score(rows)
    np.testing.assert_allclose(scores, np.nan_to_num(rows) @ np.linspace(1, 2, WIDTH), rtol=1e-4, atol=1e-5)
    assert (scores.dtype.name, scores.shape) == ("float32", (20,))
    assert ranker.score(rows).tobytes() == scores.tobytes()
    assert 0.0 < ranker.cost_s(1) <= max(ranker.cost_s(1000), ranker.cost_s(64))
    assert ranker.version.startswith("ranker@")
