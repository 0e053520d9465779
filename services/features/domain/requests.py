"""What is asked of features."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class FeatureQuery:
    """A subject's features at one moment.

    Args:
        member_ids: whose histories are combined.
        as_of_s: seconds since 1970.
    """

    subject_id: str
    member_ids: tuple[str, ...]
    as_of_s: float


class Source(StrEnum):
    """Logs that features follow: behavior is feedback's, the catalog is decision's."""

    FEEDBACK = "feedback"
    DECISION = "decision"
