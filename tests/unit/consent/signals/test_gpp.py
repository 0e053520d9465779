"""GPP strings."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.consent.domain.signals.canada import CanadaCore, CanadaRestriction, CanadaString
from services.consent.domain.signals.errors import Code, ConsentStringError
from services.consent.domain.signals.gpp import NAMES, Content, GppString, decode_gpp
from services.consent.domain.signals.tcf import TcString
from services.consent.domain.signals.us import UsSection
from services.consent.domain.signals.us_layouts import COVERED, US_SECTIONS, Second, field_names
from services.consent.domain.signals.usp import Answer, UspString
from services.consent.domain.signals.vendors import Vendors
from tests.unit.consent.signals import encode
from tests.unit.consent.signals.mutations import accepted, flips
from tests.unit.consent.signals.samples import CANADA, CORE, plain_us, whole
from tests.unit.consent.signals.strategies import gpp_strings, grouped, us_sections

ALL = whole(
    (2, TcString(CORE)),
    (5, CANADA),
    (6, UspString(Answer.YES, Answer.NO, Answer.NO)),
    *((number, plain_us(number)) for number in US_SECTIONS),
)


def code_of(text: str) -> Code:
    with pytest.raises(ConsentStringError) as refused:
        decode_gpp(text)
    return refused.value.problem.code


def header(*ids: int) -> str:
    return encode.characters(encode.header(grouped(list(ids))), 6)


@pytest.mark.parametrize(
    ("text", "ids"), [("DBABM", (2,)), ("DBACNY", (2, 6)), ("DBABjw", (5, 6)), ("DBABMA", (2,)), ("DBACNYA", (2, 6))]
)
def test_headers_of_the_specification(text: str, ids: tuple[int, ...]) -> None:
    """The examples of "Header Encoding", filled up to 6 bits as there or to 8 as the libraries do."""
    contents: dict[int, Content] = {2: TcString(CORE), 5: CANADA, 6: UspString(Answer.YES, Answer.NO, Answer.NO)}
    value = whole(*((number, contents[number]) for number in ids))
    _, *sections = encode.gpp(value).split("~")
    assert decode_gpp("~".join([text, *sections])) == value


@given(gpp_strings(), st.sampled_from(encode.GPP_FILLINGS))
@settings(max_examples=50)
def test_what_is_written_is_read(value: GppString, filling: int) -> None:
    """Encoding and decoding undo each other."""
    text = encode.gpp(value, filling)
    assert decode_gpp(text) == value
    assert encode.is_gpp(text, value)


def test_all_sections_at_once() -> None:
    """24 sections in one string."""
    assert decode_gpp(encode.gpp(ALL)) == ALL
    assert [one.name for one in ALL.sections] == list(NAMES.values())


def test_no_section_is_no_signal() -> None:
    """The string that libraries begin with is valid, and says nothing."""
    assert decode_gpp("DBAA") == GppString((), ())


# Bits of the core segments, counted by hand from the sections' specifications.
CORE_BITS = {
    ("usnat", 1): 60, ("usnat", 2): 70, ("usca", 1): 46, ("usva", 1): 40, ("usco", 1): 38, ("usut", 1): 42,
    ("usct", 1): 44, ("usfl", 1): 46, ("usmt", 1): 46, ("usor", 1): 52, ("ustx", 1): 42, ("usde", 1): 52,
    ("usia", 1): 42, ("usne", 1): 42, ("usnh", 1): 46, ("usnj", 1): 54, ("ustn", 1): 42, ("usmn", 1): 42,
    ("usmd", 1): 22, ("usin", 1): 24, ("usky", 1): 24, ("usri", 1): 24,
}  # fmt: skip


def test_cores_have_the_lengths_of_the_specifications() -> None:
    """A field more or less in a row of the table is noticed."""
    rows = [(spec.name, *row) for spec in US_SECTIONS.values() for row in spec.versions.items()]
    assert {(name, version): layout.bits for name, version, layout in rows} == CORE_BITS


def test_a_national_section_spelled_by_hand() -> None:
    """Fields have their places: two bits each, in the order of the specification."""
    notices, opt_outs = "01" * 4 + "00" * 2, "10" + "01" + "10"
    sensitive, children = "00" * 11 + "01", "10" + "00"
    core = "000001" + notices + opt_outs + sensitive + children + "00" + "10" + "01" + "00"
    found = decode_gpp(f"{header(7)}~{encode.characters(core, 8)}.{encode.characters('011', 8)}").sections[0].content
    assert isinstance(found, UsSection)
    assert found.gpc is True
    assert found.fields == {
        "SharingNotice": 1,
        "SaleOptOutNotice": 1,
        "SharingOptOutNotice": 1,
        "TargetedAdvertisingOptOutNotice": 1,
        "SensitiveDataProcessingOptOutNotice": 0,
        "SensitiveDataLimitUseNotice": 0,
        "SaleOptOut": 2,
        "SharingOptOut": 1,
        "TargetedAdvertisingOptOut": 2,
        "SensitiveDataProcessing": (0,) * 11 + (1,),
        "KnownChildSensitiveDataConsents": (2, 0),
        "PersonalDataConsents": 0,
        "MspaCoveredTransaction": 2,
        "MspaOptOutOptionMode": 1,
        "MspaServiceProviderMode": 0,
    }


def test_every_truncation_is_refused() -> None:
    """A string that lost its end lost a section, or the end of one; a lost segment is read as not there."""
    value = whole((2, TcString(CORE)), (7, plain_us(7, gpc=True)), (8, plain_us(8)))
    text = encode.gpp(value)
    for shorter, found in accepted((text[:length] for length in range(len(text))), decode_gpp):
        assert encode.is_gpp(shorter, found)
        assert found == value


@pytest.mark.parametrize("filling", encode.GPP_FILLINGS)
def test_every_flipped_bit_is_read_as_it_stands_or_refused(filling: int) -> None:
    """No bit is ignored, also where the flip makes another version or another section of it."""
    value = whole((5, CANADA), (6, UspString(*[Answer.NO] * 3)), (7, plain_us(7, gpc=False)), (25, plain_us(25)))
    seen = dict(accepted(flips(encode.gpp(value, filling)), decode_gpp))
    assert all(found.deviation or encode.is_gpp(text, found) for text, found in seen.items())
    assert value not in seen.values()
    assert sum(not found.deviation for found in seen.values()) > 100


@given(gpp_strings(), st.data())
@settings(max_examples=50)
def test_no_spliced_string_is_misread(value: GppString, data: st.DataObject) -> None:
    """A piece of a string put elsewhere into it makes another valid string, or none."""
    text = encode.gpp(value)
    first, last, at = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 3)))
    for other, found in accepted(iter([text[:first] + text[last:at] + text[first:]]), decode_gpp):
        assert found.deviation or encode.is_gpp(other, found)


@given(st.text(max_size=60))
def test_noise_is_refused(text: str) -> None:
    """Whatever is sent, it is refused, or at best deviates and grants nothing; never a crash."""
    found = accepted(iter([text, "DBABLA~" + text]), decode_gpp)
    # A section that goes on after its last field is read like IAB's libraries read it: C00000000001 is one.
    assert [value for _, value in found if value.deviation is None] == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", Code.EMPTY_PART),
        (" ", Code.ALPHABET),
        ("CBABMA", Code.HEADER_INVALID),
        ("DCABMA", Code.VERSION_UNSUPPORTED),
        ("DBABMA", Code.SECTION_COUNT),
        (f"{header(6)}~1YNN~1YNN", Code.SECTION_COUNT),
        (f"{header(2, 6)}~1YNN", Code.SECTION_COUNT),
        (f"{header(6)}~", Code.VERSION_UNSUPPORTED),
        (f"{header(7)}~", Code.EMPTY_PART),
        (f"{header(2)}~", Code.EMPTY_PART),
        (f"{header(5)}~", Code.EMPTY_PART),
        (f"{header(1)}~BAAA", Code.SECTION_UNKNOWN),
        (f"{header(28)}~BAAA", Code.SECTION_UNKNOWN),
        (f"{header(6)}~1YNN.QA", Code.TRAILING_DATA),
        (f"{header(6)}AA~1YNN", Code.PADDING_TOO_LONG),
        (f"{header(6)}.A~1YNN", Code.ALPHABET),
        (f"{header(7)}~{'C' * 5}", Code.TRUNCATED),
        (f"{header(7)}~D{'A' * 11}", Code.VERSION_UNSUPPORTED),
        (f"{header(8)}~CAAAAABA", Code.VERSION_UNSUPPORTED),
    ],
)
def test_malformed_strings_are_refused_for_what_they_are(text: str, code: Code) -> None:
    """Each kind of defect has its code."""
    assert code_of(text) is code


def us_text(number: int) -> str:
    return encode.characters(encode.us_segments(NAMES[number], plain_us(number))[0], 8)


@pytest.mark.parametrize("number", US_SECTIONS)
def test_undefined_values_are_refused(number: int) -> None:
    """3 is no answer anywhere, and whether a transaction is covered is always answered."""
    bits = encode.us_segments(NAMES[number], plain_us(number))[0]
    for at in range(6, len(bits), 2):
        wrong = bits[:at] + "11" + bits[at + 2 :]
        assert code_of(f"{header(number)}~{encode.characters(wrong, 8)}") is Code.VALUE_UNDEFINED
    names = [one.name for one in US_SECTIONS[number].versions[1].fields for _ in range(max(one.count, 1))]
    at = 6 + 2 * names.index(COVERED)
    wrong = bits[:at] + "00" + bits[at + 2 :]
    assert code_of(f"{header(number)}~{encode.characters(wrong, 8)}") is Code.VALUE_UNDEFINED


def _segment_cases() -> Iterator[tuple[int, str, Code]]:
    for number, spec in US_SECTIONS.items():
        yield number, ".QA.QA", Code.SEGMENT_UNKNOWN
        if spec.second is Second.NONE:
            yield number, ".QA", Code.SEGMENT_UNKNOWN
        if spec.second is Second.GPC:
            yield number, ".", Code.EMPTY_PART
            yield number, ".AA", Code.SEGMENT_UNKNOWN
            yield number, ".gA", Code.SEGMENT_UNKNOWN
            yield number, ".QB", Code.TRAILING_DATA
            yield number, ".QAA", Code.PADDING_TOO_LONG
        if spec.second is Second.SENSITIVE:
            yield number, ".AA", Code.TRUNCATED
            yield number, ".wAA", Code.VALUE_UNDEFINED
            yield number, ".AAAA", Code.PADDING_TOO_LONG


@pytest.mark.parametrize(("number", "rest", "code"), list(_segment_cases()))
def test_only_the_segment_that_a_section_has_may_follow(number: int, rest: str, code: Code) -> None:
    """GPC where there is GPC, sensitive data where there is that, and once."""
    assert code_of(f"{header(number)}~{us_text(number)}{rest}") is code


@pytest.mark.parametrize(("text", "gpc"), [(".Q", False), (".QA", False), (".Y", True), (".YA", True)])
def test_global_privacy_control_is_read(text: str, gpc: bool) -> None:
    """In either filling."""
    found = decode_gpp(f"{header(8)}~{us_text(8)}{text}").sections[0].content
    assert isinstance(found, UsSection)
    assert found.gpc is gpc


@given(us_sections(7), st.sampled_from(encode.GPP_FILLINGS))
def test_a_national_section_in_the_other_versions_layout_is_read_and_marked(value: UsSection, filling: int) -> None:
    """Encoders raised the version and the fields at different times; what they wrote is read as the libraries do."""
    bits = encode.us_segments("usnat", replace(value, gpc=None))[0]
    other = 3 - value.version
    text = f"{header(7)}~{encode.characters(f'{other:06b}' + bits[6:], filling)}"
    section = decode_gpp(text).sections[0]
    assert section.deviation is not None
    assert section.deviation.code is Code.OTHER_LAYOUT
    found = section.content
    assert isinstance(found, UsSection)
    assert found.version == other
    for name, one in value.fields.items():
        if isinstance(one, int):
            assert found.fields[name] == one
        else:
            read = found.fields[name]
            assert isinstance(read, tuple)
            shorter = min(len(one), len(read))
            assert read[:shorter] == one[:shorter]
            assert set(read[shorter:]) <= {0}


def test_a_section_with_more_than_its_fields_is_read_and_marked() -> None:
    """IAB's libraries read its beginning; who knows what the rest would have said."""
    for number in US_SECTIONS:
        text = f"{header(number)}~{us_text(number)}QAAAAAAA"
        found = decode_gpp(text)
        assert found.deviation is not None
        assert found.deviation.code is Code.TRAILING_DATA
        assert found.sections[0].content == replace(plain_us(number), deviation=found.deviation)


def test_canada_with_more_than_its_fields_is_read_and_marked() -> None:
    """The same holds for restrictions in the coding of older encoders."""
    alone = whole((5, replace(CANADA, disclosed_vendors=None, publisher=None, order=())))
    found = decode_gpp(encode.gpp(alone, 6) + "AB")
    assert found.deviation is not None
    assert found.deviation.code is Code.TRAILING_DATA


@pytest.mark.parametrize(
    "wrong",
    [
        replace(CANADA.core, restrictions=(CanadaRestriction(0, 0, Vendors(0)),)),
        replace(CANADA.core, restrictions=(CanadaRestriction(25, 0, Vendors(0)),)),
        replace(CANADA.core, restrictions=(CanadaRestriction(1, 3, Vendors(0)),)),
        replace(CANADA.core, restrictions=(CanadaRestriction(1, 1, Vendors(0)),) * 2),
    ],
)
def test_canadian_restrictions_are_of_purposes_and_kinds_that_exist(
    wrong: CanadaCore,
) -> None:
    """Purposes 1 to 24, three kinds, each once a purpose."""
    bits = encode.canada_segments(CanadaString(replace(wrong, restrictions=())))[0][:-12]
    bits += f"{len(wrong.restrictions):012b}"
    for one in wrong.restrictions:
        bits += f"{one.purpose:06b}{one.type:02b}" + encode.vendors(one.vendors, is_fibonacci=True)
    assert code_of(f"{header(5)}~{encode.characters(bits, 8)}") is Code.RESTRICTION_INVALID


def test_canadian_segments_come_once() -> None:
    """And no other comes at all."""
    core = encode.gpp(whole((5, replace(CANADA, disclosed_vendors=None, publisher=None, order=()))))
    publisher = encode.characters("011" + "0" * 54, 8)
    assert code_of(f"{core}.{publisher}.{publisher}") is Code.SEGMENT_REPEATED
    assert code_of(f"{core}.{encode.characters('010' + '0' * 17, 8)}") is Code.SEGMENT_UNKNOWN
    assert code_of(f"{core}.{encode.characters('001' + '0' * 17, 8)}B") is Code.TRAILING_DATA


def test_canadian_ranges_stay_within_their_maximum() -> None:
    """As those of the European string do."""
    bits = "001" + f"{4:016b}" + "1" + encode.fibonacci_ranges(((2, 5),))
    core = encode.gpp(whole((5, replace(CANADA, disclosed_vendors=None, publisher=None, order=()))))
    assert code_of(f"{core}.{encode.characters(bits, 8)}") is Code.RANGE_INVALID


def test_errors_tell_the_place_in_the_whole_string() -> None:
    """A person can find the section."""
    text = f"{header(6, 8)}~1YNN~{us_text(8)}.AA"
    with pytest.raises(ConsentStringError) as refused:
        decode_gpp(text)
    assert refused.value.problem.position == text.rindex(".") + 1


def test_field_names_are_those_of_the_specifications() -> None:
    """What a bundle may name in its mapping."""
    assert {"SaleOptOut", "TargetedAdvertisingOptOut", "PersonalDataConsents", COVERED} < field_names()
    assert "Gpc" not in field_names()
