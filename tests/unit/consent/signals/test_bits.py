"""Bits behind texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent.domain.signals.bits import CHARACTERS_MAX, GPP_UNITS, TCF_UNITS, BitReader, check_length
from services.consent.domain.signals.errors import Code, ConsentStringError
from tests.unit.consent.signals import encode


@pytest.mark.parametrize("wrong", [" ", "=", "+", "/", "\n", "\0", "ä", "𝐀", "~"])
def test_only_the_alphabet_is_read(wrong: str) -> None:
    """Neither blanks, padding, the other base64 nor look-alikes are letters of it; the place is told."""
    with pytest.raises(ConsentStringError) as refused:
        BitReader("AB" + wrong + "C", 10)
    assert (refused.value.problem.code, refused.value.problem.position) == (Code.ALPHABET, 12)


def test_an_empty_text_is_not_read() -> None:
    """Two separators in a row are a missing part."""
    with pytest.raises(ConsentStringError) as refused:
        BitReader("", 3)
    assert (refused.value.problem.code, refused.value.problem.position) == (Code.EMPTY_PART, 3)


def test_reading_stops_at_the_end() -> None:
    """A field that is not all there is not there."""
    reader = BitReader("AB")
    assert reader.integer(11) == 0
    with pytest.raises(ConsentStringError) as refused:
        reader.integer(2)
    assert refused.value.problem.code is Code.TRUNCATED


@given(st.integers(1, 200), st.sampled_from([*GPP_UNITS, *TCF_UNITS]))
def test_every_filling_that_encoders_write_is_an_end(width: int, filling: int) -> None:
    """Zeros up to a multiple of 6, 8 or 24 bits are padding."""
    reader = BitReader(encode.characters("1" * width, filling))
    reader.integer(width)
    reader.finish(TCF_UNITS)


@given(st.integers(1, 200), st.data())
def test_one_set_bit_after_the_last_field_is_trailing_data(width: int, data: st.DataObject) -> None:
    """Padding holds nothing."""
    text = encode.characters("1" * width, 24)
    rest = len(text) * 6 - width
    bits = ["0"] * rest
    if not bits:
        return
    bits[data.draw(st.integers(0, rest - 1))] = "1"
    reader = BitReader(encode.characters("1" * width + "".join(bits), 6))
    reader.integer(width)
    problem = reader.surplus(TCF_UNITS)
    assert problem is not None
    assert problem.code is Code.TRAILING_DATA


@given(st.integers(1, 200))
def test_one_character_of_zeros_more_than_any_encoder_writes_is_too_much(width: int) -> None:
    """A length means one amount of data."""
    reader = BitReader(encode.characters("1" * width, 24) + "A")
    reader.integer(width)
    with pytest.raises(ConsentStringError) as refused:
        reader.finish(TCF_UNITS)
    assert refused.value.problem.code is Code.PADDING_TOO_LONG


@pytest.mark.parametrize(
    ("code", "number"),
    [("11", 1), ("011", 2), ("0011", 3), ("1011", 4), ("00011", 5), ("10011", 6), ("01011", 7)],
)
def test_fibonacci_codes_of_the_specification(code: str, number: int) -> None:
    """The table of "About Fibonacci Encoding"."""
    assert encode.fibonacci(number) == code
    assert BitReader(encode.characters(code, 6)).fibonacci() == number


@given(st.integers(1, 0xFFFF), st.integers(0, 63))
def test_fibonacci_numbers_come_back(number: int, before: int) -> None:
    """Wherever the code begins."""
    reader = BitReader(encode.characters("1" * before + encode.fibonacci(number) + "11", 6))
    if before:
        reader.integer(before)
    assert (reader.fibonacci(), reader.fibonacci()) == (number, 1)


@pytest.mark.parametrize(("bits", "code"), [("0" * 24 + "11", Code.RANGE_INVALID), ("0101", Code.TRUNCATED)])
def test_what_is_no_identifier_is_refused(bits: str, code: Code) -> None:
    """A number beyond all identifiers, and one that never ends."""
    with pytest.raises(ConsentStringError) as refused:
        BitReader(encode.characters(bits, 6)).fibonacci()
    assert refused.value.problem.code is code


def test_length_is_bounded() -> None:
    """8 kB are read, one character more is not looked at."""
    check_length("A" * CHARACTERS_MAX)
    with pytest.raises(ConsentStringError) as refused:
        check_length("A" * (CHARACTERS_MAX + 1))
    assert refused.value.problem.code is Code.TOO_LONG
