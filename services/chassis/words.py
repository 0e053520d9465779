"""Enumerations that travel: a replica of the next release may write a word that this one does not know."""

from enum import IntEnum
from typing import Self


class Word(IntEnum):
    """A word by its number on the wire; a number that no word has is kept, and is no word of this release.

    So what a newer replica wrote is read, compared, shown and passed on as it is, and nothing raises.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int):
            return None
        # Made anew each time: what others send must not fill this process's memory.
        word = int.__new__(cls, value)
        word._name_, word._value_ = f"NUMBER_{value}", value
        return word
