"""Enumerations that travel: a replica of the next release may write a word that this one does not know."""

import operator
from enum import IntEnum
from typing import Self

from google.protobuf.descriptor import EnumDescriptor


class Word(IntEnum):
    """A word by its number on the wire; a number that no word has is kept, and is no word of this release.

    So what a newer replica wrote is read, compared, shown and passed on as it is, and nothing raises.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        try:
            value = operator.index(value)  # type: ignore[arg-type]  # NumPy's integers, too
        except TypeError:
            return None
        # Made anew each time: what others send must not fill this process's memory.
        word = int.__new__(cls, value)
        word._name_, word._value_ = f"NUMBER_{value}", value
        return word


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """RANKED for REASON_RANKED; empty where none is set; the number where a newer server knows more."""
    if not number:
        return ""
    found = enum.values_by_number.get(number)
    # Every enum's zero is <PREFIX>_UNSPECIFIED, which tells the prefix of the others.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(number) if found is None else found.name.removeprefix(prefix)
