"""The bits behind a base64url text: read field by field, none left over.

TCF and GPP both take six bits a character and fill the last one with zeros. Encoders in the field fill up to a multiple
of 6 (what the GPP specification asks for), of 8 (most libraries) or of 24 bits (IAB's TCF library); no other length
and no other filling is accepted.

Source: TCF "TC String Format"; GPP "Creating a GPP String".
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from services.consent.domain.signals.errors import Code, ConsentStringError, Problem

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# A string longer than this is refused unread. 8 kB is what a cookie jar and a URL bear; the longest honest ones, with
# a restriction for every vendor, take about a fifth of it.
CHARACTERS_MAX = 8192
CHARACTER_BITS = 6
TCF_UNITS = (6, 8, 24)
GPP_UNITS = (6, 8)

_BITS = {character: f"{index:06b}" for index, character in enumerate(ALPHABET)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DECISECOND = timedelta(milliseconds=100)


def _fibonacci_numbers(count: int) -> tuple[int, ...]:
    numbers = [1, 2]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return tuple(numbers)


# Identifiers have 16 bits: a code word that says more than 23 Fibonacci numbers can is none of them.
_FIBONACCI = _fibonacci_numbers(23)


def check_length(text: str) -> None:
    """Returns when the string is short enough to be read.

    Raises:
        ConsentStringError: TOO_LONG.
    """
    if len(text) > CHARACTERS_MAX:
        message = f"is longer than {CHARACTERS_MAX} characters"
        raise ConsentStringError(Problem(Code.TOO_LONG, CHARACTERS_MAX, message))


def parts(text: str, separator: str, offset: int = 0) -> Iterator[tuple[str, int]]:
    """What lies between the separators, each with the place where it begins."""
    for part in text.split(separator):
        yield part, offset
        offset += len(part) + 1


class BitReader:
    """Reads a text's bits from left to right.

    Args:
        offset: where the text begins in the whole string; errors tell places of the whole.
    """

    __slots__ = ("_bits", "_field", "_offset", "position")

    def __init__(self, text: str, offset: int = 0) -> None:
        if not text:
            raise ConsentStringError(Problem(Code.EMPTY_PART, offset, "a part of the string is empty"))
        try:
            self._bits = "".join([_BITS[character] for character in text])
        except KeyError:
            wrong = next(index for index, character in enumerate(text) if character not in _BITS)
            message = "holds a character that is not of the base64url alphabet (A-Z a-z 0-9 - _)"
            raise ConsentStringError(Problem(Code.ALPHABET, offset + wrong, message)) from None
        self._offset = offset
        self._field = 0
        self.position = 0

    def problem(self, code: Code, message: str) -> Problem:
        """The problem, at the character where the last field began."""
        return Problem(code, self._offset + self._field // CHARACTER_BITS, message)

    def error(self, code: Code, message: str) -> ConsentStringError:
        """The problem as an exception."""
        return ConsentStringError(self.problem(code, message))

    def text(self, width: int) -> str:
        """The next bits, as zeros and ones.

        Raises:
            ConsentStringError: TRUNCATED.
        """
        start, end = self.position, self.position + width
        self._field = start
        if end > len(self._bits):
            raise self.error(Code.TRUNCATED, "ends before its fields do")
        self.position = end
        return self._bits[start:end]

    def integer(self, width: int) -> int:
        """The next *width* bits as a number, the highest bit first."""
        return int(self.text(width), 2)

    def boolean(self) -> bool:
        """The next bit."""
        return self.text(1) == "1"

    @property
    def length(self) -> int:
        """How many bits there are, read or not."""
        return len(self._bits)

    def numbers(self, width: int) -> tuple[int, ...]:
        """Which of the next bits are set, counted from 1 (a bit field over purposes or features)."""
        bits = self.text(width)
        return tuple([number for number, bit in enumerate(bits, 1) if bit == "1"]) if "1" in bits else ()

    def bit_set(self, width: int) -> int:
        """The next bits as a set: bit *n* of the result is the *n*th of them, counted from 1."""
        return int("0" + self.text(width)[::-1], 2) << 1

    def time(self) -> datetime:
        """The next 36 bits: tenths of a second since 1970."""
        return _EPOCH + self.integer(36) * _DECISECOND

    def letters(self) -> str:
        """The next two letters, of six bits each, A = 0.

        Raises:
            ConsentStringError: LETTER_INVALID.
        """
        first, second = self.integer(6), self.integer(6)
        if first > 25 or second > 25:
            raise self.error(Code.LETTER_INVALID, "a language or country code holds something that is no letter")
        return ALPHABET[first] + ALPHABET[second]

    def fibonacci(self) -> int:
        """The next Fibonacci-coded number: Zeckendorf's digits, the lowest first, and a final 1.

        No number has two codes: the two ones in a row that a second one would need are where a code ends.

        Source: GPP "About Fibonacci Encoding".
        """
        self._field = self.position
        end = self._bits.find("11", self.position)
        if end < 0:
            raise self.error(Code.TRUNCATED, "ends within a Fibonacci-coded number")
        digits = self._bits[self.position : end + 1]
        if len(digits) > len(_FIBONACCI):
            raise self.error(Code.RANGE_INVALID, "holds a Fibonacci-coded number that is no identifier")
        self.position = end + 2
        return sum([value for value, digit in zip(_FIBONACCI, digits, strict=False) if digit == "1"])

    def surplus(self, units: tuple[int, ...]) -> Problem | None:
        """What is wrong with what is left, which should be the zeros that fill the last character and nothing else.

        Args:
            units: one of which the zeros fill up to a multiple of.

        Returns:
            None: all is well. PADDING_TOO_LONG: only zeros are left, but too many. TRAILING_DATA: something is left.
        """
        self._field = self.position
        if "1" in self._bits[self.position :]:
            return self.problem(Code.TRAILING_DATA, "goes on after its last field")
        if not is_length(self.position, len(self._bits), units):
            return self.problem(Code.PADDING_TOO_LONG, "is filled up with more zeros than its last character needs")
        return None

    def finish(self, units: tuple[int, ...]) -> None:
        """Returns when everything was read.

        Raises:
            ConsentStringError: PADDING_TOO_LONG, TRAILING_DATA.
        """
        if problem := self.surplus(units):
            raise ConsentStringError(problem)


def is_length(data_bits: int, text_bits: int, units: tuple[int, ...]) -> bool:
    """Whether a text has the length that this much data has, filled up to a multiple of one of the units."""
    return any(text_bits == _filled(_filled(data_bits, unit), CHARACTER_BITS) for unit in units)


def _filled(bits: int, unit: int) -> int:
    return -(-bits // unit) * unit
