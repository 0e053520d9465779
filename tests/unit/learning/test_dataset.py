"""Examples from the log."""

from typing import Any

import numpy as np
import pytest
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from learning import dataset
from learning.dataset import ExamplesBuilder, grade, groups_of, replay_examples
from tests.unit.learning.world import FEATURE_SET, ReplayStub, Rewards, decision, outcome

COLUMNS = ("a", "b")


def built(rewards: Rewards, *decisions: decision_pb2.DecisionMade) -> dataset.Examples:
    builder = ExamplesBuilder(COLUMNS, rewards, FEATURE_SET)
    for one in decisions:
        builder.add(one)
    return builder.build()


def test_only_what_was_shown_is_an_example() -> None:
    """Rows are the slate's, in slate order, with the features that were logged; an unshown candidate is no negative."""
    examples = built({"d1": {"7": 1.0}}, decision("d1", ["5", "6", "7", "8"], ["7", "5"]))
    assert examples.item_ids == ("7", "5")
    assert examples.matrix.tolist() == [[7.0, 7.5], [5.0, 5.5]]
    assert examples.labels.tolist() == [1.0, 0.0]
    assert examples.slots.tolist() == [0, 1]
    assert examples.propensities.tolist() == [1.0, 0.5]
    assert examples.groups.tolist() == [2]


def test_rows_of_excluded_candidates_are_skipped() -> None:
    """The matrix holds eligible candidates only: what is excluded before an item must not shift its row."""
    made = decision("d1", ["5", "6", "7", "8"], ["8", "6"], excluded=["5", "7"])
    assert built({"d1": {"6": 1.0}}, made).matrix.tolist() == [[8.0, 8.5], [6.0, 6.5]]


def test_a_variant_has_its_own_row() -> None:
    """An item with several variants is one candidate each; the slate names which."""
    made = decision("d1", ["5", "6"], ["5"])
    made.inputs.item_ids[:] = ["5", "5"]
    made.inputs.variant_ids[:] = ["red", "blue"]
    made.slate[0].variant_id = "blue"
    assert built({"d1": {"5": 1.0}}, made).matrix.tolist() == [[6.0, 6.5]]


def test_what_cannot_be_learned_from_is_counted() -> None:
    """Fallbacks, other feature sets, decisions without features or without an answer: none is an example."""
    unlogged = decision("d4", ["1"], ["1"])
    unlogged.inputs.matrix = b""
    other = decision("d5", ["1"], ["1"])
    other.versions.feature_set = "features-0"
    examples = built(
        {name: {"1": 1.0} for name in ("d1", "d3", "d4", "d5")} | {"d6": {"9": 1.0}},
        decision("d1", ["1", "9"], ["1", "9"]),
        decision("d2", ["1"], ["1"]),
        decision("d3", ["1"], ["1"], learnable=False),
        unlogged,
        other,
        decision("d6", ["1", "9"], ["1"]),
    )
    counts = examples.counts
    assert (counts.decisions, counts.used, counts.without_outcome) == (6, 1, 2)
    assert (counts.not_learnable, counts.without_features, counts.other_feature_set) == (1, 1, 1)
    assert examples.decision_ids == ("d1",)


def test_a_recorded_decision_is_learned_from() -> None:
    """Its slate was another system's and its propensities may be unknown; its features and answers are as good."""
    made = decision("d1", ["1", "2"], ["2", "1"], learnable=False, origin=decision_pb2.ORIGIN_RECORDED)
    assert built({"d1": {"1": 1.0}}, made).labels.tolist() == [0.0, 1.0]


CENTS = st.integers(-(10**8), 10**8).map(lambda cents: cents / 100)


@given(CENTS, CENTS)
def test_grades_are_in_the_order_of_rewards(one: float, other: float) -> None:
    """A tenth and one, or two large amounts, are not the same; nothing earned is 0, what was taken back is below."""
    assert (grade(one) < grade(other)) == (one < other)
    assert (grade(one) > 0) == (one > 0)
    assert grade(0.0) == 0.0


@pytest.mark.parametrize(("reward", "gain"), [(-1000.0, -1.0), (1.0, 1.0), (4.0, 15.0), (8.0, 31.0), (400.0, 1599.0)])
def test_gain_of_a_large_sale_grows_as_the_sale_does(reward: float, gain: float) -> None:
    """2^grade − 1: exponential in small rewards, linear in large ones, never below −1."""
    assert 2 ** grade(reward) - 1 == pytest.approx(gain)


def test_what_was_decided_at_one_moment_is_in_order_of_content() -> None:
    """Ids are derived with a key: the same decisions under other ids are the same examples."""
    slates = [["7", "5"], ["5", "7"], ["6", "5"]]
    orders = []
    for names in (("a", "b", "c"), ("c", "a", "b")):
        made = [decision(name, ["5", "6", "7"], slate) for name, slate in zip(names, slates, strict=True)]
        late = decision("0", ["5", "6", "7"], ["5"], at_ms=2_000)
        made.sort(key=lambda one: one.decision_id)
        orders.append(built({name: {"5": 1.0} for name in (*names, "0")}, *made, late).item_ids)
    assert orders[0] == orders[1] == ("5", "7", "6", "5", "7", "5", "5")


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a chunk holds come out as one matrix, in order."""
    monkeypatch.setattr(dataset, "CHUNK_ROWS", 3)
    decisions = [decision(f"d{n}", [str(n), str(n + 1)], [str(n), str(n + 1)]) for n in range(7)]
    examples = built({f"d{n}": {str(n): 1.0} for n in range(7)}, *decisions)
    assert examples.matrix[:, 0].tolist() == [float(n + k) for n in range(7) for k in (0, 1)]
    assert examples.matrix.dtype == np.float32


def test_parts_are_whole_decisions() -> None:
    """A split never cuts a decision in two."""
    decisions = [decision(f"d{n}", list("123")[: n % 3 + 1], list("123")[: n % 3 + 1]) for n in range(6)]
    examples = built({f"d{n}": {"1": 1.0} for n in range(6)}, *decisions)
    older, newer = examples.head(4), examples.tail(4)
    assert older.decision_ids + newer.decision_ids == examples.decision_ids
    assert older.rows_count + newer.rows_count == examples.rows_count
    assert np.concatenate([older.matrix, newer.matrix]).tolist() == examples.matrix.tolist()
    assert [rows.stop - rows.start for rows in groups_of(newer)] == newer.groups.tolist()


async def test_what_was_taken_back_counts_against_what_was_earned() -> None:
    """A refund after a sale leaves nothing, a refund alone is worse than nothing, whatever order they come in."""
    made = [decision("d1", ["1", "2", "3"], ["1", "2", "3"])]
    answers = [outcome("d1", "1", -3.0), outcome("d1", "1", 3.0), outcome("d1", "2", -0.5), outcome("d1", "3", 1.0)]
    for order in (answers, answers[::-1]):
        stub: Any = ReplayStub(made, order)
        examples = await replay_examples(stub, columns=COLUMNS, feature_set=FEATURE_SET)
        assert examples.labels.tolist() == [0.0, -0.5, 1.0]


async def test_the_log_is_replayed_for_what_people_allow() -> None:
    """Outcomes first, then decisions, both for the purpose; an item's best answer counts; what is withheld is told."""
    stub: Any = ReplayStub(
        [decision("d1", ["1", "2"], ["1", "2"]), decision("d2", ["1"], ["1"])],
        [outcome("d1", "2", 1.0), outcome("d1", "2", 3.0), outcome("d1", "2", 2.0)],
        withheld=4,
    )
    told: list[int] = []
    examples = await replay_examples(
        stub, columns=COLUMNS, feature_set=FEATURE_SET, purpose="model_training", progress=told.append
    )
    assert [list(request.kinds) for request in stub.requests] == [
        [pb.REPLAY_KIND_OUTCOME],
        [pb.REPLAY_KIND_DECISION],
    ]
    assert {request.purpose for request in stub.requests} == {"model_training"}
    assert examples.labels.tolist() == [0.0, 3.0]
    assert (examples.counts.withheld, examples.counts.decisions, told[-1]) == (8, 2, 2)


def test_whose_decisions_were_learned_from_is_told() -> None:
    """Each member once, in order; those whose decisions gave no example are not among them."""
    builder = ExamplesBuilder(COLUMNS, {"d1": {"1": 1.0}, "d3": {"1": 1.0}, "d4": {"1": 1.0}}, FEATURE_SET)
    for number, member_id in enumerate(("cid", "bob", "ann", "ann"), start=1):
        builder.add(decision(f"d{number}", ["1", "2"], ["1", "2"], at_ms=number), member_id)
    assert builder.build().member_ids == ("ann", "cid")


def test_slates_of_one_item_make_negatives_of_what_was_left() -> None:
    """Nothing else could: a slate of one item holds no pair."""
    made = [decision(f"d{n}", ["1", "2"], [str(1 + n % 2)], at_ms=n) for n in range(4)]
    examples = built({"d1": {"2": 1.0}}, *made)
    assert examples.is_pointwise
    assert examples.labels.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert examples.matrix[:, 0].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert (examples.counts.used, examples.counts.without_outcome) == (4, 0)


def test_where_a_slate_holds_more_only_answered_decisions_are_examples() -> None:
    """Whatever came before it: the examples are those they always were."""
    made = [decision(f"d{n}", ["1", "2"], ["1"] if n != 3 else ["2", "1"], at_ms=n) for n in range(6)]
    examples = built({"d2": {"1": 1.0}, "d3": {"2": 1.0}}, *made)
    assert not examples.is_pointwise
    assert examples.decision_ids == ("d2", "d3")
    assert examples.matrix[:, 0].tolist() == [1.0, 2.0, 1.0]
    assert (examples.counts.used, examples.counts.without_outcome) == (2, 4)


def test_nothing_answered_is_nothing_to_learn_from() -> None:
    """Negatives alone are no examples."""
    assert not built({}, decision("d1", ["1"], ["1"])).rows_count


async def test_a_deferred_decision_that_nobody_saw_is_no_negative() -> None:
    """It is shown only when its exposure is tracked."""
    made = [decision(f"d{n}", ["1"], ["1"], at_ms=n) for n in range(4)]
    for one in made[1:]:
        one.activation = decision_pb2.ACTIVATION_DEFERRED
    stub: Any = ReplayStub(made, [outcome("d1", "1")], exposed=["d2"])
    examples = await replay_examples(stub, columns=COLUMNS, feature_set=FEATURE_SET)
    assert examples.decision_ids == ("d0", "d1", "d2")
    assert examples.counts.without_outcome == 1


@pytest.mark.parametrize("matrix", [b"\0" * 7, b"\0" * 8])
def test_record_that_is_broken_is_counted_and_costs_the_others_nothing(matrix: bytes) -> None:
    """A matrix that is no matrix, or too short for the slate: the decisions around it are learned from."""
    broken = decision("d2", ["1", "2"], ["2"])
    broken.inputs.matrix = matrix
    rewards = {name: {"1": 1.0, "2": 1.0} for name in ("d1", "d2", "d3")}
    sound = decision("d1", ["1", "2"], ["2"]), decision("d3", ["1", "2"], ["1"])
    examples = built(rewards, sound[0], broken, sound[1])
    assert set(examples.decision_ids) == {"d1", "d3"}
    assert len(examples.labels) == len(examples.item_ids) == len(examples.matrix) == 2
    assert (examples.counts.used, examples.counts.unreadable) == (2, 1)
