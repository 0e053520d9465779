"""Why a consent string was refused: a code, a place and a sentence; never the string, which is personal data."""

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What is wrong with a consent string; stable, programs and counters match on it."""

    TOO_LONG = "TOO_LONG"
    EMPTY_PART = "EMPTY_PART"
    ALPHABET = "ALPHABET"
    TRUNCATED = "TRUNCATED"
    TRAILING_DATA = "TRAILING_DATA"
    PADDING_TOO_LONG = "PADDING_TOO_LONG"
    VERSION_UNSUPPORTED = "VERSION_UNSUPPORTED"
    HEADER_INVALID = "HEADER_INVALID"
    SECTION_COUNT = "SECTION_COUNT"
    SECTION_UNKNOWN = "SECTION_UNKNOWN"
    SEGMENT_UNKNOWN = "SEGMENT_UNKNOWN"
    SEGMENT_REPEATED = "SEGMENT_REPEATED"
    DISCLOSED_VENDORS_MISSING = "DISCLOSED_VENDORS_MISSING"
    LETTER_INVALID = "LETTER_INVALID"
    RANGE_INVALID = "RANGE_INVALID"
    RESTRICTION_INVALID = "RESTRICTION_INVALID"
    VALUE_UNDEFINED = "VALUE_UNDEFINED"
    TIMES_REVERSED = "TIMES_REVERSED"
    OTHER_LAYOUT = "OTHER_LAYOUT"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a consent string.

    Args:
        position: of the character at which it was noticed, from 0.
        message: a sentence for people; holds nothing of the string.
    """

    code: Code
    position: int
    message: str


class ConsentStringError(ValueError):
    """A consent string that is not valid; it grants nothing."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code} at character {problem.position}: {problem.message}")
        self.problem = problem
