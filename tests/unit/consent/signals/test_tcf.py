"""TC strings."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.consent.domain.signals.bits import CHARACTERS_MAX
from services.consent.domain.signals.errors import Code, ConsentStringError
from services.consent.domain.signals.tcf import (
    DISCLOSED_VENDORS_FROM,
    PublisherTc,
    SegmentType,
    TcString,
    decode_tc,
)
from services.consent.domain.signals.vendors import Vendors
from tests.unit.consent.signals import encode
from tests.unit.consent.signals.mutations import accepted, flips
from tests.unit.consent.signals.samples import CORE, MARCH_2023
from tests.unit.consent.signals.strategies import tc_strings

# Spelled by hand, bit by bit: 1 March 2023, CMP 5 version 2, screen 1, DE, list 7, policy 4, service specific; special
# feature 1; consent to purposes 1 and 3, legitimate interest in 2; publisher in FR; vendor 2 of 2 in a bit field,
# vendors 3 to 5 in a range; purpose 2 not allowed to vendor 9.
BY_HAND = "".join(
    (
        "000010",
        "001111100111111100011101011100000000",
        "001111100111111100011101011100000000",
        "000000000101" + "000000000010" + "000001",
        "000011" + "000100",
        "000000000111" + "000100" + "1" + "0",
        "100000000000",
        "101000000000000000000000",
        "010000000000000000000000",
        "0" + "000101" + "010001",
        "0000000000000010" + "0" + "01",
        "0000000000000101" + "1" + "000000000001" + "1" + "0000000000000011" + "0000000000000101",
        "000000000001" + "000010" + "00" + "000000000001" + "0" + "0000000000001001",
    )
)
WHOLE = TcString(
    CORE,
    disclosed_vendors=Vendors(9, ((2, 5), (9, 9))),
    allowed_vendors=Vendors(3, bits=0b1000),
    publisher=PublisherTc((1, 5), (2,), 2, (2,), (1,)),
    order=(SegmentType.PUBLISHER_TC, SegmentType.DISCLOSED_VENDORS, SegmentType.ALLOWED_VENDORS),
)


def code_of(text: str) -> Code:
    with pytest.raises(ConsentStringError) as refused:
        decode_tc(text)
    return refused.value.problem.code


def characters(bits: str) -> str:
    return encode.characters(bits, 6)


def test_a_string_spelled_by_hand_is_read() -> None:
    """Every field of the core has its place and width."""
    assert decode_tc(characters(BY_HAND)) == TcString(CORE)


@given(tc_strings(), st.sampled_from(encode.TCF_FILLINGS))
@settings(max_examples=60)
def test_what_is_written_is_read(value: TcString, filling: int) -> None:
    """Encoding and decoding undo each other."""
    text = encode.tc(value, filling)
    assert decode_tc(text) == value
    assert encode.is_tc(text, value)


def test_vendors_are_told_and_listed() -> None:
    """Both spellings hold the same set."""
    core = decode_tc(characters(BY_HAND)).core
    assert core.vendor_consents.ids == (2,)
    assert core.vendor_legitimate_interests.ids == (3, 4, 5)
    assert 2 in core.vendor_consents
    assert [one for one in range(8) if one in core.vendor_legitimate_interests] == [3, 4, 5]
    assert 3 not in core.vendor_consents


def test_every_truncation_is_refused_or_drops_whole_segments() -> None:
    """What is cut off is missed, unless the cut takes whole segments or zeros that no encoder need have written."""
    text = encode.tc(WHOLE)
    for shorter, value in accepted((text[:length] for length in range(len(text))), decode_tc):
        assert encode.is_tc(shorter, value)
        kept = shorter.count(".")
        assert value.order == WHOLE.order[:kept]
        assert value.core == CORE


@pytest.mark.parametrize("filling", encode.TCF_FILLINGS)
def test_every_flipped_bit_is_read_as_it_stands_or_refused(filling: int) -> None:
    """No bit is ignored: another string is another value."""
    text = encode.tc(WHOLE, filling)
    seen = dict(accepted(flips(text), decode_tc))
    assert all(encode.is_tc(other, value) for other, value in seen.items())
    assert WHOLE not in seen.values()
    assert len(seen) > 100


@given(tc_strings(), st.data())
@settings(max_examples=50)
def test_no_spliced_string_is_misread(value: TcString, data: st.DataObject) -> None:
    """A piece of a string put elsewhere into it makes another valid string, or none."""
    text = encode.tc(value)
    first, last, at = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 3)))
    for other, found in accepted(iter([text[:first] + text[last:at] + text[first:]]), decode_tc):
        assert found.deviation or encode.is_tc(other, found)


@given(st.text(max_size=60))
def test_noise_is_refused(text: str) -> None:
    """Whatever is sent, the answer is a refusal, never a crash."""
    assert list(accepted(iter([text]), decode_tc)) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", Code.EMPTY_PART),
        (" ", Code.ALPHABET),
        (" " + characters(BY_HAND), Code.ALPHABET),
        (characters(BY_HAND) + "=", Code.ALPHABET),
        (characters(BY_HAND) + ".", Code.EMPTY_PART),
        ("." + characters(BY_HAND), Code.EMPTY_PART),
        (characters(BY_HAND)[:-3], Code.TRUNCATED),
        (characters(BY_HAND) + "AAAAA", Code.PADDING_TOO_LONG),
        (characters(BY_HAND) + "B", Code.TRAILING_DATA),
        (characters("000001" + BY_HAND[6:]), Code.VERSION_UNSUPPORTED),
        (characters("000011" + BY_HAND[6:]), Code.VERSION_UNSUPPORTED),
        (characters(BY_HAND) + "." + characters(BY_HAND), Code.SEGMENT_UNKNOWN),
        (characters(BY_HAND) + "." + characters("100" + "0" * 17), Code.SEGMENT_UNKNOWN),
        (characters(BY_HAND) + "." + characters("111" + "0" * 17), Code.SEGMENT_UNKNOWN),
        (characters(BY_HAND) + 2 * ("." + characters("001" + "0" * 17)), Code.SEGMENT_REPEATED),
        (characters(BY_HAND) + 2 * ("." + characters("010" + "0" * 17)), Code.SEGMENT_REPEATED),
        (characters(BY_HAND) + 2 * ("." + characters("011" + "0" * 54)), Code.SEGMENT_REPEATED),
        (characters(BY_HAND) + "." + characters("001" + f"{9:016b}" + "0"), Code.TRUNCATED),
        (characters(BY_HAND) + "." + characters("001" + "0" * 16 + "0" + "1"), Code.TRAILING_DATA),
        ("C" * (CHARACTERS_MAX + 1), Code.TOO_LONG),
    ],
)
def test_malformed_strings_are_refused_for_what_they_are(text: str, code: Code) -> None:
    """Each kind of defect has its code."""
    assert code_of(text) is code


@pytest.mark.parametrize("at", [108, 114, 201, 207])
def test_language_and_country_have_letters(at: int) -> None:
    """26 of the 64 values are letters."""
    assert code_of(characters(BY_HAND[:at] + "011010" + BY_HAND[at + 6 :])) is Code.LETTER_INVALID


def vendor_ranges(count: str, *entries: str, max_id: int = 20) -> str:
    """The string with these vendors disclosed."""
    return characters(BY_HAND) + "." + characters("001" + f"{max_id:016b}" + "1" + count + "".join(entries))


def single(number: int) -> str:
    return f"0{number:016b}"


def span(first: int, last: int) -> str:
    return f"1{first:016b}{last:016b}"


@pytest.mark.parametrize(
    "entries",
    [
        [single(0)],
        [single(21)],
        [span(19, 21)],
        [span(4, 4)],
        [span(5, 4)],
        [span(0, 4)],
        [single(4), single(4)],
        [single(4), single(3)],
        [span(2, 6), single(6)],
        [span(2, 6), span(5, 9)],
        [span(8, 9), span(2, 6)],
    ],
)
def test_vendor_ranges_ascend_apart_within_their_maximum(entries: list[str]) -> None:
    """A set of vendors says each once, in order, and none beyond what it declares."""
    assert code_of(vendor_ranges(f"{len(entries):012b}", *entries)) is Code.RANGE_INVALID


def test_ranges_that_touch_are_two_ranges() -> None:
    """Nobody must have merged them."""
    found = decode_tc(vendor_ranges(f"{3:012b}", span(2, 6), single(7), span(8, 20))).disclosed_vendors
    assert found is not None
    assert found.ids == tuple(range(2, 21))


def test_a_range_count_beyond_the_string_is_refused() -> None:
    """The count is a promise of what follows."""
    assert code_of(vendor_ranges("1" * 12, single(1))) is Code.TRUNCATED


def restricted(*entries: tuple[int, int, list[str]]) -> str:
    bits = BY_HAND[: -12 - 8 - 12 - 17] + f"{len(entries):012b}"
    for purpose, kind, ranges in entries:
        bits += f"{purpose:06b}{kind:02b}{len(ranges):012b}" + "".join(ranges)
    return characters(bits)


@pytest.mark.parametrize(
    "entries",
    [[(0, 0, [])], [(25, 0, [])], [(63, 1, [])], [(2, 3, [single(1)])], [(2, 1, [single(1)]), (2, 1, [single(2)])]],
)
def test_restrictions_are_of_purposes_and_kinds_that_exist(entries: list[tuple[int, int, list[str]]]) -> None:
    """Purposes 1 to 24, three kinds, each once a purpose."""
    assert code_of(restricted(*entries)) is Code.RESTRICTION_INVALID


def test_a_restriction_may_name_its_vendors_in_any_order() -> None:
    """The specification asks for none, and honest encoders repeat vendors; it is a set that only narrows."""
    found = decode_tc(restricted((2, 1, [single(7), single(7), span(3, 4)]), (2, 2, []))).core.restrictions
    assert found[0].vendors == ((7, 7), (7, 7), (3, 4))


@pytest.mark.parametrize("entry", [single(0), span(3, 3), span(3, 2), span(0, 2)])
def test_a_restriction_names_vendors_that_exist(entry: str) -> None:
    """Vendor 0 is none, and a range has two vendors or more."""
    assert code_of(restricted((2, 1, [entry]))) is Code.RANGE_INVALID


def test_nothing_is_changed_before_it_is_created() -> None:
    """The two times are in order."""
    later = encode.time(MARCH_2023 + timedelta(milliseconds=100))
    assert code_of(characters(BY_HAND[:6] + later + BY_HAND[42:])) is Code.TIMES_REVERSED


@pytest.mark.parametrize("created", [MARCH_2023, DISCLOSED_VENDORS_FROM])
def test_strings_of_march_2026_on_say_which_vendors_were_shown(created: datetime) -> None:
    """TCF 2.3 makes the segment mandatory, for what is created or changed from then on."""
    core = replace(CORE, created=created, last_updated=DISCLOSED_VENDORS_FROM)
    assert code_of(encode.tc(TcString(core))) is Code.DISCLOSED_VENDORS_MISSING
    shown = TcString(core, disclosed_vendors=Vendors(0), order=(SegmentType.DISCLOSED_VENDORS,))
    assert decode_tc(encode.tc(shown)) == shown
    before = TcString(replace(CORE, last_updated=DISCLOSED_VENDORS_FROM - timedelta(milliseconds=100)))
    assert decode_tc(encode.tc(before)) == before


def test_the_boundary_is_an_argument() -> None:
    """What the rule is tried with can be told to it."""
    with pytest.raises(ConsentStringError) as refused:
        decode_tc(characters(BY_HAND), disclosed_from=MARCH_2023)
    assert refused.value.problem.code is Code.DISCLOSED_VENDORS_MISSING


def test_segments_with_too_many_zeros_are_read_and_marked() -> None:
    """Encoders of 2020 wrote them; they say what they say, and grant nothing."""
    whole = replace(WHOLE, order=(SegmentType.PUBLISHER_TC,), disclosed_vendors=None, allowed_vendors=None)
    found = decode_tc(encode.tc(whole) + "AAAAAA")
    assert found.deviation is not None
    assert found.deviation.code is Code.PADDING_TOO_LONG
    assert replace(found, deviation=None) == whole


def test_errors_tell_the_place_in_the_whole_string() -> None:
    """A person can find it."""
    text = characters(BY_HAND) + "." + characters("100" + "0" * 17)
    with pytest.raises(ConsentStringError) as refused:
        decode_tc(text, offset=5)
    assert refused.value.problem.position == 5 + text.index(".") + 1
