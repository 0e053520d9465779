"""What the mutations of a valid string must come to."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from services.consent.domain.signals.errors import ConsentStringError
from tests.unit.consent.signals.encode import CHARACTERS

T = TypeVar("T")
# Shorter texts stand in any sentence.
SHORT = 8


def flips(text: str) -> Iterator[str]:
    """Every text that differs in one bit of one character."""
    for at, character in enumerate(text):
        if character in CHARACTERS:
            for bit in range(6):
                yield text[:at] + CHARACTERS[CHARACTERS.index(character) ^ 1 << bit] + text[at + 1 :]


def accepted(texts: Iterator[str], decode: Callable[[str], T]) -> Iterator[tuple[str, T]]:
    """Those of the texts that decode, with what they hold; the others are refused, and nothing else happens."""
    for text in texts:
        try:
            value = decode(text)
        except ConsentStringError as refused:
            check(text, refused)
        else:
            yield text, value


def check(text: str, refused: ConsentStringError) -> None:
    """A refusal tells a place of the string and nothing of what it holds."""
    assert 0 <= refused.problem.position <= len(text)
    assert len(text) < SHORT or text not in str(refused)
