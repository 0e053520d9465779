"""US Privacy strings, version 1: four characters.

Source: IAB Tech Lab, "U.S. Privacy String", US Privacy String Format.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from services.consent.domain.signals.errors import Code, ConsentStringError, Problem

VERSION = "1"
LENGTH = 4


class Answer(StrEnum):
    """Yes, no, or that the law does not apply."""

    YES = "Y"
    NO = "N"
    NOT_APPLICABLE = "-"


@dataclass(frozen=True, slots=True)
class UspString:
    """What a US Privacy string holds.

    Args:
        notice: whether the person was told, and could opt out.
        opt_out_sale: whether the person did.
        lspa: whether the Limited Service Provider Agreement covers it.
    """

    notice: Answer
    opt_out_sale: Answer
    lspa: Answer


_ANSWERS = {answer.value: answer for answer in Answer}


def decode_usp(text: str, *, offset: int = 0) -> UspString:
    """What a US Privacy string holds.

    Raises:
        ConsentStringError: it is not exactly 1 and three of Y, N and -.
    """
    problem = _problem(text)
    if problem is not None:
        raise ConsentStringError(replace(problem, position=problem.position + offset))
    return UspString(*(_ANSWERS[letter] for letter in text[1:]))


def _problem(text: str) -> Problem | None:
    if len(text) > LENGTH:
        return Problem(Code.TRAILING_DATA, LENGTH, f"is longer than {LENGTH} characters")
    if not text.startswith(VERSION):
        return Problem(Code.VERSION_UNSUPPORTED, 0, "is not a US Privacy string of version 1")
    for index, letter in enumerate(text[1:], 1):
        if letter not in _ANSWERS:
            return Problem(Code.VALUE_UNDEFINED, index, "holds something other than Y, N and -")
    if len(text) < LENGTH:
        return Problem(Code.TRUNCATED, len(text), f"is shorter than {LENGTH} characters")
    return None
