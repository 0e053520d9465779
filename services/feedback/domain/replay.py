"""The log as it is given out again."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.chassis.events import ORIGIN, LogPosition


class Kind(StrEnum):
    """A kind of fact that can be replayed, in the order in which they are."""

    DECISION = "decision"
    BEHAVIOR = "behavior"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True)
class Range:
    """A half-open range of time; None: open."""

    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing can lie in it."""
        return self.since is not None and self.until is not None and self.since >= self.until


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the order of a replay: past a decision, or past every decision and all up to a position.

    Args:
        decided_at: None: before every decision.
        position: ORIGIN: not past the decisions.
    """

    decided_at: datetime | None = None
    decision_id: str = ""
    position: LogPosition = ORIGIN


BEGINNING = Place()


@dataclass(frozen=True, slots=True)
class Replayed:
    """A fact, opened: *payload* is the serialized message of its kind."""

    kind: Kind
    event_id: str
    member_id: str
    occurred_at: datetime
    position: LogPosition
    payload: bytes
