"""Global Privacy Platform strings, version 1: a header that lists sections, and the sections.

A section that is not known makes the whole string one that grants nothing: what cannot be read may hold an objection.

Source: IAB Tech Lab, "Global Privacy Platform String"; "Section Information", Section IDs.
"""

from dataclasses import dataclass
from datetime import datetime

from services.consent.domain.signals.bits import GPP_UNITS, BitReader, check_length, parts
from services.consent.domain.signals.canada import CanadaString, read_canada
from services.consent.domain.signals.errors import Code, ConsentStringError, Problem
from services.consent.domain.signals.tcf import DISCLOSED_VENDORS_FROM, TcString, decode_tc
from services.consent.domain.signals.us import UsSection, read_us
from services.consent.domain.signals.us_layouts import US_SECTIONS
from services.consent.domain.signals.usp import UspString, decode_usp
from services.consent.domain.signals.vendors import Ranges, ids_of, read_fibonacci_ranges

HEADER_TYPE = 3
VERSION = 1
TCF_EU = 2
TCF_CANADA = 5
USP = 6

NAMES = {
    TCF_EU: "tcfeuv2",
    TCF_CANADA: "tcfcav1",
    USP: "uspv1",
    **{number: spec.name for number, spec in US_SECTIONS.items()},
}

Content = TcString | CanadaString | UspString | UsSection


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its number and name in the list of IAB Tech Lab, and what it holds."""

    id: int
    name: str
    content: Content

    @property
    def deviation(self) -> Problem | None:
        """Set where it can be read and is not what its specification says."""
        return None if isinstance(self.content, UspString) else self.content.deviation


@dataclass(frozen=True, slots=True)
class GppString:
    """What a GPP string holds.

    Args:
        ranges: of section numbers, as the header has them.
        sections: in that order, which ascends.
    """

    ranges: Ranges
    sections: tuple[Section, ...]

    @property
    def deviation(self) -> Problem | None:
        """The first of the sections'; a string that has one grants nothing."""
        return next((one.deviation for one in self.sections if one.deviation), None)


def decode_gpp(text: str, *, disclosed_from: datetime = DISCLOSED_VENDORS_FROM) -> GppString:
    """What a GPP string holds.

    Args:
        disclosed_from: see `tcf.decode_tc`.

    Raises:
        ConsentStringError: it is not exactly a GPP string of version 1 with sections that are known.
    """
    check_length(text)
    header, *sections = parts(text, "~")
    ranges = _read_header(BitReader(*header))
    if sum([last - first + 1 for first, last in ranges]) != len(sections):
        message = "the number of sections is not that of the header"
        raise ConsentStringError(Problem(Code.SECTION_COUNT, len(header[0]), message))
    return GppString(
        ranges,
        tuple(
            _read_section(number, part, offset, disclosed_from)
            for number, (part, offset) in zip(ids_of(ranges), sections, strict=True)
        ),
    )


def _read_header(reader: BitReader) -> Ranges:
    """Source: "Global Privacy Platform String", Header Encoding."""
    if reader.integer(6) != HEADER_TYPE:
        raise reader.error(Code.HEADER_INVALID, "does not begin with a GPP header")
    if reader.integer(6) != VERSION:
        raise reader.error(Code.VERSION_UNSUPPORTED, f"is not a GPP string of version {VERSION}")
    ranges = read_fibonacci_ranges(reader)
    reader.finish(GPP_UNITS)
    return ranges


def _read_section(number: int, text: str, offset: int, disclosed_from: datetime) -> Section:
    if number not in NAMES:
        raise ConsentStringError(Problem(Code.SECTION_UNKNOWN, offset, "holds a section that is not known"))
    content: Content
    if number == TCF_EU:
        content = decode_tc(text, disclosed_from=disclosed_from, offset=offset)
    elif number == TCF_CANADA:
        content = read_canada(text, offset)
    elif number == USP:
        content = decode_usp(text, offset=offset)
    else:
        content = read_us(US_SECTIONS[number], text, offset)
    return Section(number, NAMES[number], content)
