"""Examples from the log: what was shown, with the features it was decided with, and what came back.

Point in time by construction: the features are the matrix that the decision logged, so nothing that happened later
can be in them. Only what was shown is an example: a candidate that nobody saw is no negative.

A decision that was not answered says nothing of the order inside its slate. Where every slate holds one item there is
no order, and it is the negative: the item was seen and left.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import log2

import numpy as np
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from numpy.typing import NDArray

from learning.log import replay_log
from services.feedback.domain.schemas import EXPOSURE

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# The gain of a grade is 2^grade − 1. Up to here a reward is its own grade; above the gain grows as the reward does,
# so that a large amount counts for more without drowning all others.
GRADE_KNEE = 4.0
CHUNK_ROWS = 65_536
CLOCK_SKEW_MAX = timedelta(minutes=5)
Progress = Callable[[int], None]


@dataclass(slots=True)
class Counts:
    """What became of the decisions that were read.

    Args:
        unreadable: decisions whose record is broken.
        withheld: decisions and outcomes that were not even read, because the person does not allow the purpose now.
    """

    decisions: int = 0
    used: int = 0
    without_outcome: int = 0
    not_learnable: int = 0
    without_features: int = 0
    other_feature_set: int = 0
    outcomes: int = 0
    withheld: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """Columnar examples, one row an item shown, rows of a decision together, decisions in order of time.

    Args:
        matrix: float32, shape (rows_count, columns_count); NaN where a feature is missing or may not be used.
        labels: float32 grade of each row, see grade; 0: shown and not answered; below 0: worse than not answered.
        groups: rows of each decision.
        slots: place in the slate, from 0.
        propensities: probability that the row's item was in its slot; 0 where it is not known.
        decided_at_ms: of each decision.
        is_pointwise: every slate holds one item, and decisions that were not answered are examples too.
    """

    columns: tuple[str, ...]
    matrix: Floats
    labels: Floats
    groups: Integers
    slots: Integers
    propensities: Floats
    item_ids: tuple[str, ...]
    decision_ids: tuple[str, ...]
    decided_at_ms: Integers
    counts: Counts = field(compare=False)
    # Pseudonyms whose decisions these are, each once, ascending: an erasure marks the models that knew one. Not in the
    # matrix; a part of the examples has all of them.
    member_ids: tuple[str, ...] = ()
    is_pointwise: bool = False

    @property
    def rows_count(self) -> int:
        """Items shown, over all decisions."""
        return len(self.labels)

    def head(self, groups_count: int) -> "Examples":
        """The first decisions."""
        return self._part(0, groups_count)

    def tail(self, groups_count: int) -> "Examples":
        """The decisions after the first *groups_count*."""
        return self._part(groups_count, len(self.groups))

    def _part(self, first: int, end: int) -> "Examples":
        rows = slice(int(self.groups[:first].sum()), int(self.groups[:end].sum()))
        return Examples(
            columns=self.columns,
            matrix=self.matrix[rows],
            labels=self.labels[rows],
            groups=self.groups[first:end],
            slots=self.slots[rows],
            propensities=self.propensities[rows],
            item_ids=self.item_ids[rows],
            decision_ids=self.decision_ids[first:end],
            decided_at_ms=self.decided_at_ms[first:end],
            counts=self.counts,
            member_ids=self.member_ids,
            is_pointwise=self.is_pointwise,
        )


class ExamplesBuilder:
    """Collects examples into float32 chunks that are allocated ahead, so that memory is what the rows take."""

    def __init__(self, columns: tuple[str, ...], rewards: Mapping[str, Mapping[str, float]], feature_set: str) -> None:
        self._columns = columns
        self._rewards = rewards
        self._feature_set = feature_set
        self._chunks: list[Floats] = []
        self._rows_count = 0
        self._labels: list[float] = []
        self._slots: list[int] = []
        self._propensities: list[float] = []
        self._item_ids: list[str] = []
        self._groups: list[int] = []
        self._decision_ids: list[str] = []
        self._decided_at_ms: list[int] = []
        self._simultaneous: list[tuple[decision_pb2.DecisionMade, str]] = []
        # Of each decision: whose it is, whether it was answered, and whether only an exposure says that it was seen.
        self._member_ids: list[str] = []
        self._answered: list[bool] = []
        self._deferred: list[bool] = []
        self._is_listwise = False
        self.counts = Counts()

    @property
    def is_pointwise(self) -> bool:
        """Whether every answered slate so far holds one item, and there are some."""
        return any(self._answered) and not self._is_listwise

    @property
    def needs_exposures(self) -> bool:
        """Whether exposures decide what is an example: of deferred decisions that nobody answered."""
        unanswered = (deferred and not a for deferred, a in zip(self._deferred, self._answered, strict=True))
        return any(unanswered) and self.is_pointwise

    def add(self, decision: decision_pb2.DecisionMade, member_id: str = "") -> None:
        """Take a decision, and whom it was made for; they come in order of time."""
        self.counts.decisions += 1
        if self._simultaneous and self._simultaneous[0][0].decided_at != decision.decided_at:
            self._take_simultaneous()
        self._simultaneous.append((decision, member_id))

    def finish(self) -> None:
        """Returns when all that was added is taken; nothing is added any more."""
        self._take_simultaneous()

    def _take_simultaneous(self) -> None:
        """Take what was decided at one moment in order of content: ids are keyed, and differ between stacks."""
        for decision, member_id in sorted(self._simultaneous, key=lambda entry: _content(entry[0])):
            try:
                self._take(decision, member_id)
            except (ValueError, IndexError, OverflowError):
                # A record that is broken is counted, and costs the others nothing.
                self.counts.unreadable += 1
        self._simultaneous.clear()

    def _take(self, decision: decision_pb2.DecisionMade, member_id: str) -> None:
        """Make examples of a decision, if it can be learned from; count why not."""
        counts = self.counts
        recorded = decision.origin == decision_pb2.ORIGIN_RECORDED
        if not (decision.learnable or recorded):
            # What a fallback showed says nothing about the policy.
            counts.not_learnable += 1
        elif decision.versions.feature_set != self._feature_set:
            counts.other_feature_set += 1
        elif (matrix := logged_matrix(decision, len(self._columns))) is None:
            counts.without_features += 1
        else:
            self._add_shown(decision, matrix, self._rewards.get(decision.decision_id, {}), member_id)

    def _add_shown(
        self, decision: decision_pb2.DecisionMade, matrix: Floats, rewards: Mapping[str, float], member_id: str
    ) -> None:
        row_of = row_by_candidate(decision.inputs)
        shown = [
            (entry, row)
            for entry in sorted(decision.slate, key=lambda entry: entry.slot)
            if (row := row_of.get((entry.item_id, entry.variant_id), row_of.get((entry.item_id, "")))) is not None
        ]
        grades = [grade(rewards.get(entry.item_id, 0.0)) for entry, _ in shown]
        # What was not answered is kept for as long as every answered slate holds one item.
        if not any(grades) and (len(shown) != 1 or self._is_listwise):
            self.counts.without_outcome += 1
            return
        # Before anything is kept: what cannot be read leaves no part of itself.
        rows, decided_at_ms = matrix[[row for _, row in shown]], decision.decided_at.ToMilliseconds()
        self._is_listwise |= len(shown) > 1
        for (entry, _), label, row in zip(shown, grades, rows, strict=True):
            self._place()[:] = row
            self._labels.append(label)
            self._slots.append(entry.slot)
            self._propensities.append(entry.propensity)
            self._item_ids.append(entry.item_id)
        self._groups.append(len(shown))
        self._decision_ids.append(decision.decision_id)
        self._decided_at_ms.append(decided_at_ms)
        self._member_ids.append(member_id)
        self._answered.append(any(grades))
        self._deferred.append(decision.activation == decision_pb2.ACTIVATION_DEFERRED)

    def _place(self) -> Floats:
        chunk, row = divmod(self._rows_count, CHUNK_ROWS)
        if chunk == len(self._chunks):
            self._chunks.append(np.empty((CHUNK_ROWS, len(self._columns)), dtype=np.float32))
        self._rows_count += 1
        place: Floats = self._chunks[chunk][row]
        return place

    def build(self, exposed: Container[str] = ()) -> Examples:
        """Everything that was added and is an example.

        Args:
            exposed: decisions that an exposure was tracked of; asked for where needs_exposures.
        """
        self.finish()
        kept = self._kept(exposed)
        groups = np.array(self._groups, dtype=np.int64)
        rows = np.flatnonzero(np.repeat(kept, groups))
        places = np.flatnonzero(kept).tolist()
        self.counts.used += len(places)
        self.counts.without_outcome += len(groups) - len(places)
        return Examples(
            columns=self._columns,
            matrix=self._matrix(rows),
            labels=np.array(self._labels, dtype=np.float32)[rows],
            groups=groups[kept],
            slots=np.array(self._slots, dtype=np.int64)[rows],
            propensities=np.array(self._propensities, dtype=np.float32)[rows],
            item_ids=tuple(self._item_ids[row] for row in rows.tolist()),
            decision_ids=tuple(self._decision_ids[place] for place in places),
            decided_at_ms=np.array(self._decided_at_ms, dtype=np.int64)[kept],
            member_ids=tuple(sorted({member for place in places if (member := self._member_ids[place])})),
            counts=self.counts,
            is_pointwise=self.is_pointwise,
        )

    def _kept(self, exposed: Container[str]) -> NDArray[np.bool_]:
        """Whether each decision is an example: it was answered, or seen and left where every slate holds one item."""
        answered = np.array(self._answered, dtype=bool)
        if not self.is_pointwise:
            return answered
        seen = (
            not deferred or name in exposed for deferred, name in zip(self._deferred, self._decision_ids, strict=True)
        )
        kept: NDArray[np.bool_] = answered | np.fromiter(seen, dtype=bool, count=len(answered))
        return kept

    def _matrix(self, rows: Integers) -> Floats:
        """These rows of what was collected, ascending; chunks are let go as they are copied: the peak is one more."""
        matrix = np.empty((len(rows), len(self._columns)), dtype=np.float32)
        chunk_of, end = rows // CHUNK_ROWS, 0
        for chunk in range(-(-self._rows_count // CHUNK_ROWS)):
            start, end = end, int(np.searchsorted(chunk_of, chunk, side="right"))
            matrix[start:end] = self._chunks.pop(0)[rows[start:end] - chunk * CHUNK_ROWS]
        return matrix


def _content(decision: decision_pb2.DecisionMade) -> tuple[list[str], bytes]:
    return [entry.item_id for entry in decision.slate], decision.inputs.matrix


def grade(reward: float) -> float:
    """The relevance that a reward is: the reward, above 4 growing with its logarithm; different for different rewards.

    The gain 2^grade − 1 is above −1, whatever was taken back, and 4·reward − 1 above the knee.
    """
    return reward if reward <= GRADE_KNEE else GRADE_KNEE + log2(reward / GRADE_KNEE)


def logged_matrix(decision: decision_pb2.DecisionMade, columns_count: int) -> Floats | None:
    """The model's input as it was logged, one row an eligible candidate; None where there is none of this width."""
    inputs = decision.inputs
    if not inputs.matrix or inputs.columns_count != columns_count:
        return None
    return np.frombuffer(inputs.matrix, dtype="<f4").reshape(-1, columns_count)


def row_by_candidate(inputs: decision_pb2.DecisionInputs) -> dict[tuple[str, str], int]:
    """Where in the matrix a candidate's row is, by item and variant, and by item alone: its first variant's.

    Rows are the eligible candidates in order; excluded ones have none.
    """
    rows: dict[tuple[str, str], int] = {}
    row = 0
    for place, item_id in enumerate(inputs.item_ids):
        if place < len(inputs.exclusions) and inputs.exclusions[place] != decision_pb2.EXCLUSION_REASON_UNSPECIFIED:
            continue
        if place < len(inputs.variant_ids):
            rows.setdefault((item_id, inputs.variant_ids[place]), row)
        rows.setdefault((item_id, ""), row)
        row += 1
    return rows


async def replay_examples(
    stub: FeedbackServiceStub,
    *,
    columns: tuple[str, ...],
    feature_set: str,
    since: datetime | None = None,
    until: datetime | None = None,
    placement_id: str = "",
    purpose: str = "",
    progress: Progress = lambda _: None,
) -> Examples:
    """Examples of the decisions made in [since, until), whenever their outcomes came.

    Outcomes are read first, so that a decision nobody answered is counted and not kept.

    Args:
        purpose: what people must allow now for their decisions to be learned from; empty: nothing is asked.
        progress: told how many decisions have been read.
    """
    # An answer's clock may be late: it can seem to come a little before its decision.
    answered_since = since - CLOCK_SKEW_MAX if since is not None else None
    asked = _request(pb.REPLAY_KIND_OUTCOME, placement_id, purpose, since=answered_since)
    rewards, withheld = await _replay_rewards(stub, asked)
    builder = ExamplesBuilder(columns, rewards, feature_set)
    builder.counts.outcomes = sum(len(items) for items in rewards.values())
    builder.counts.withheld = withheld
    request = _request(pb.REPLAY_KIND_DECISION, placement_id, purpose, since=since, until=until)
    async for response in replay_log(stub, request):
        builder.counts.withheld += response.withheld_count
        for event in response.events:
            builder.add(event.decision, event.subject_id)
        progress(builder.counts.decisions)
    builder.finish()
    if not builder.needs_exposures:
        return builder.build()
    seen = _request(pb.REPLAY_KIND_BEHAVIOR, placement_id, purpose, since=answered_since)
    return builder.build(
        {
            event.behavior.decision_id
            async for response in replay_log(stub, seen)
            for event in response.events
            if event.behavior.type == EXPOSURE
        }
    )


async def _replay_rewards(
    stub: FeedbackServiceStub, request: pb.ReplayEventsRequest
) -> tuple[dict[str, dict[str, float]], int]:
    """What each item of each decision earned, and how many outcomes were withheld.

    That is the best of its rewards, less what was taken back (rewards below 0, as of refunds).
    """
    earned: dict[str, dict[str, float]] = {}
    taken_back: dict[str, dict[str, float]] = {}
    withheld = 0
    async for response in replay_log(stub, request):
        withheld += response.withheld_count
        for event in response.events:
            outcome = event.outcome
            best = earned.setdefault(outcome.decision_id, {})
            best[outcome.item_id] = max(best.get(outcome.item_id, 0.0), outcome.reward)
            if outcome.reward < 0:
                lost = taken_back.setdefault(outcome.decision_id, {})
                lost[outcome.item_id] = lost.get(outcome.item_id, 0.0) + outcome.reward
    for decision_id, lost in taken_back.items():
        for item_id, reward in lost.items():
            earned[decision_id][item_id] += reward
    return earned, withheld


def _request(
    kind: pb.ReplayKind.ValueType,
    placement_id: str,
    purpose: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pb.ReplayEventsRequest:
    request = pb.ReplayEventsRequest(kinds=[kind], placement_id=placement_id, purpose=purpose)
    if since is not None:
        request.since.FromDatetime(since)
    if until is not None:
        request.until.FromDatetime(until)
    return request


def groups_of(examples: Examples) -> Iterator[slice]:
    """The rows of each decision."""
    start = 0
    for count in examples.groups.tolist():
        yield slice(start, start + count)
        start += count
