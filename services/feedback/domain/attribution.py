"""Which decision a behavior answers, and what that is worth.

Attribution is to the decision the behavior names. It holds only for a behavior of the person the decision
was made for, within the reward window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.chassis.events import LogPosition

SKEW_MAX = timedelta(minutes=5)
"""How much earlier than its decision an answer may seem to be: senders' clocks run late."""

NOT_IN_SLATE = -1


@dataclass(frozen=True, slots=True)
class Decided:
    """What of a decision a behavior is joined to.

    Args:
        item_ids: the slate, first slot first.
        refused_by_signal: purpose → signal, of what the signals of its Decide refused.
    """

    decision_id: str
    placement_id: str
    member_id: str
    subject_id: str
    decided_at: datetime
    item_ids: tuple[str, ...]
    immediate: bool
    refused_by_signal: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A recorded behavior that names a decision."""

    behavior_id: str
    type: str
    member_id: str
    subject_id: str
    decision_id: str
    decision_proven: bool
    item_ids: tuple[str, ...]
    occurred_at: datetime
    properties: Mapping[str, str | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What OutcomeAttributed holds, and whom it is about."""

    decision_id: str
    placement_id: str
    type: str
    item_id: str
    slot: int
    reward: float
    behavior_id: str
    decided_at: datetime
    member_id: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Arrival:
    """A decision as it came in: which, and where it stands in the order of coming in."""

    decision_id: str
    member_id: str
    position: LogPosition


@dataclass(frozen=True, slots=True)
class Waiting:
    """A behavior whose decision has not come in."""

    behavior_id: str
    decision_id: str
    since: datetime


def attribute(answer: Answer, decided: Decided, *, reward: float, window: timedelta) -> tuple[Outcome, ...]:
    """The outcomes of a behavior: one an item it names, one without an item where it names none; often none at all."""
    if reward == 0 or answer.decision_id != decided.decision_id or not _same_person(answer, decided):
        return ()
    if not -SKEW_MAX <= answer.occurred_at - decided.decided_at <= window:
        return ()
    items: Sequence[str] = tuple(dict.fromkeys(answer.item_ids)) or ("",)
    return tuple(
        Outcome(
            decision_id=decided.decision_id,
            placement_id=decided.placement_id,
            type=answer.type,
            item_id=item_id,
            slot=slot_of(item_id, decided),
            reward=reward,
            behavior_id=answer.behavior_id,
            decided_at=decided.decided_at,
            member_id=answer.member_id,
            occurred_at=answer.occurred_at,
        )
        for item_id in items
    )


def _same_person(answer: Answer, decided: Decided) -> bool:
    # A token was checked against all members of the person when the behavior came in; without one, a
    # pseudonym has to agree, which it does unless the two were merged between the decision and its answer.
    return (
        answer.decision_proven
        or answer.member_id == decided.member_id
        or (answer.subject_id != "" and answer.subject_id == decided.subject_id)
    )


def slot_of(item_id: str, decided: Decided) -> int:
    """The first place of the item in the slate, from 0; -1 when it was not in it."""
    return decided.item_ids.index(item_id) if item_id in decided.item_ids else NOT_IN_SLATE


def outcome_stream_of(behavior_id: str) -> str:
    """The stream that can hold the outcomes of a behavior once, so that joining it again changes nothing."""
    return f"outcome-{behavior_id}"
