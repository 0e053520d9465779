"""Decisions and outcomes as the log gives them out, made for tests."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_events_pb2, feedback_service_pb2
from numpy.typing import NDArray

from learning.dataset import Examples, ExamplesBuilder

FEATURE_SET = "features-1"


def decision(
    decision_id: str,
    candidates: Sequence[str],
    slate: Sequence[str],
    *,
    columns_count: int = 2,
    excluded: Sequence[str] = (),
    at_ms: int = 1_000,
    **changes: Any,
) -> decision_pb2.DecisionMade:
    """A learnable decision whose matrix holds, for candidate `k`, the row (k, k + 0.5, …)."""
    made = decision_pb2.DecisionMade(decision_id=decision_id, placement_id="home", learnable=True)
    made.decided_at.FromMilliseconds(at_ms)
    made.versions.feature_set = FEATURE_SET
    made.inputs.item_ids.extend(candidates)
    made.inputs.exclusions.extend(
        decision_pb2.EXCLUSION_REASON_INELIGIBLE if one in excluded else decision_pb2.EXCLUSION_REASON_UNSPECIFIED
        for one in candidates
    )
    eligible = [one for one in candidates if one not in excluded]
    rows = np.array([[float(one) + 0.5 * c for c in range(columns_count)] for one in eligible], dtype="<f4")
    made.inputs.matrix = rows.tobytes()
    made.inputs.columns_count = columns_count
    for slot, item_id in enumerate(slate):
        made.slate.add(slot=slot, item_id=item_id, propensity=1.0 / (slot + 1))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def outcome(decision_id: str, item_id: str, reward: float = 1.0) -> feedback_events_pb2.OutcomeAttributed:
    """An answer to a decision."""
    return feedback_events_pb2.OutcomeAttributed(decision_id=decision_id, item_id=item_id, reward=reward)


class ReplayStub:
    """FeedbackService.ReplayEvents over lists, two events a message."""

    def __init__(
        self,
        decisions: Sequence[decision_pb2.DecisionMade],
        outcomes: Sequence[feedback_events_pb2.OutcomeAttributed],
        withheld: int = 0,
        exposed: Sequence[str] = (),
    ) -> None:
        self._exposed = exposed
        self._decisions = decisions
        self._outcomes = outcomes
        self._withheld = withheld
        self.requests: list[feedback_service_pb2.ReplayEventsRequest] = []

    async def ReplayEvents(  # noqa: N802
        self, request: feedback_service_pb2.ReplayEventsRequest
    ) -> AsyncIterator[feedback_service_pb2.ReplayEventsResponse]:
        """See FeedbackService."""
        self.requests.append(request)
        events = [feedback_service_pb2.ReplayedEvent(outcome=one) for one in self._outcomes]
        if list(request.kinds) == [feedback_service_pb2.REPLAY_KIND_DECISION]:
            events = [feedback_service_pb2.ReplayedEvent(decision=one) for one in self._decisions]
        if list(request.kinds) == [feedback_service_pb2.REPLAY_KIND_BEHAVIOR]:
            seen = (feedback_events_pb2.BehaviorRecorded(type="exposure", decision_id=one) for one in self._exposed)
            events = [feedback_service_pb2.ReplayedEvent(behavior=one) for one in seen]
        yield feedback_service_pb2.ReplayEventsResponse(withheld_count=self._withheld)
        for start in range(0, len(events), 2):
            yield feedback_service_pb2.ReplayEventsResponse(events=events[start : start + 2])


def examples(
    matrix: NDArray[np.float32], labels: NDArray[np.float32], group: int, columns: Sequence[str] | None = None
) -> Examples:
    """Examples of equal groups, straight from arrays."""
    count = len(matrix) // group
    return Examples(
        columns=tuple(columns or (f"c{place}" for place in range(matrix.shape[1]))),
        matrix=matrix,
        labels=labels,
        groups=np.full(count, group, dtype=np.int64),
        slots=np.tile(np.arange(group, dtype=np.int64), count),
        propensities=np.ones(len(matrix), dtype=np.float32),
        item_ids=tuple(str(place % group) for place in range(len(matrix))),
        decision_ids=tuple(f"d{place}" for place in range(count)),
        decided_at_ms=np.arange(count, dtype=np.int64),
        counts=ExamplesBuilder((), {}, "").counts,
    )


def preferences(
    seed: int, *, groups: int = 120, group: int = 8, columns: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features, and labels of people who like what is high in the first column and low in the second."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(groups * group, columns)).astype(np.float32)
    liking = (matrix[:, 0] - matrix[:, 1] + 0.3 * rng.normal(size=len(matrix))).reshape(groups, group)
    best = np.zeros_like(liking)
    np.put_along_axis(best, liking.argsort(axis=1)[:, -2:], 1.0, axis=1)
    return matrix, best.reshape(-1).astype(np.float32)


Rewards = Mapping[str, Mapping[str, float]]
