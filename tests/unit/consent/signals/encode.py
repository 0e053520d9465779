"""An encoder of consent strings, written from the specifications apart from the decoder, which it is held against.

It spells a decoded value the one way the specifications allow, up to how many zeros fill a segment's last character.
What no string may hold (ranges that overlap, a letter that is none) it refuses with ValueError, so that a decoder
which let such a thing pass is found out.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from services.consent.domain.signals.canada import CanadaString
from services.consent.domain.signals.gpp import GppString, Section
from services.consent.domain.signals.tcf import PublisherTc, SegmentType, TcString
from services.consent.domain.signals.us import UsSection, Value
from services.consent.domain.signals.usp import UspString
from services.consent.domain.signals.vendors import Ranges, Vendors

CHARACTERS = "".join(map(chr, [*range(65, 91), *range(97, 123), *range(48, 58)])) + "-_"
TCF_FILLINGS = (6, 8, 24)
GPP_FILLINGS = (6, 8)
# Sections that have the sensitive data in a segment of its own.
APART = ("usin", "usky", "usri")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def tc(value: TcString, filling: int = 24) -> str:
    """The TC string that holds this."""
    return ".".join(characters(bits, filling) for bits in tc_segments(value))


def gpp(value: GppString, filling: int = 8) -> str:
    """The GPP string that holds this."""
    sections = [_join(_section_segments(one), 24 if one.name == "tcfeuv2" else filling) for one in value.sections]
    return "~".join([characters(header(value.ranges), filling), *sections])


def usp(value: UspString) -> str:
    """The US Privacy string that holds this."""
    return "1" + value.notice.value + value.opt_out_sale.value + value.lspa.value


def is_tc(text: str, value: TcString) -> bool:
    """Whether the text spells this value."""
    return _is_spelled(text, tc_segments(value), TCF_FILLINGS)


def is_gpp(text: str, value: GppString) -> bool:
    """Whether the text spells this value."""
    first, *sections = text.split("~")
    ids = [number for begin, end in value.ranges for number in range(begin, end + 1)]
    if ids != [one.id for one in value.sections] or len(ids) != len(sections):
        return False
    return _is_spelled(first, [header(value.ranges)], GPP_FILLINGS) and all(
        _is_section(*pair) for pair in zip(sections, value.sections, strict=True)
    )


def _is_section(text: str, section: Section) -> bool:
    if isinstance(section.content, UspString):
        return text == usp(section.content)
    fillings = TCF_FILLINGS if isinstance(section.content, TcString) else GPP_FILLINGS
    return _is_spelled(text, _section_segments(section), fillings)


def _is_spelled(text: str, segments: Sequence[str], fillings: Iterable[int]) -> bool:
    parts = text.split(".")
    return len(parts) == len(segments) and all(
        any(part == characters(bits, filling) for filling in fillings)
        for part, bits in zip(parts, segments, strict=True)
    )


def _section_segments(section: Section) -> list[str]:
    match section.content:
        case TcString() as value:
            return tc_segments(value)
        case CanadaString() as value:
            return canada_segments(value)
        case UsSection() as value:
            return us_segments(section.name, value)
        case UspString() as value:
            return [usp(value)]


def _join(segments: list[str], filling: int) -> str:
    # A US Privacy string is no bits.
    return ".".join(one if one.startswith("1") and len(one) == 4 else characters(one, filling) for one in segments)


def characters(bits: str, filling: int) -> str:
    """The bits, six a character, filled up to a multiple first."""
    bits += "0" * (-len(bits) % filling)
    bits += "0" * (-len(bits) % 6)
    return "".join(CHARACTERS[int(bits[at : at + 6], 2)] for at in range(0, len(bits), 6))


def number(value: int, width: int) -> str:
    """The number, the highest bit first."""
    if not 0 <= value < 1 << width:
        raise ValueError
    return f"{value:0{width}b}"


def time(value: datetime) -> str:
    """Tenths of a second since 1970."""
    tenths, rest = divmod(value - EPOCH, timedelta(milliseconds=100))
    if rest:
        raise ValueError
    return number(tenths, 36)


def letters(value: str) -> str:
    """Two capital letters."""
    if len(value) != 2 or not (value.isascii() and value.isalpha() and value.isupper()):
        raise ValueError
    return "".join(number(ord(letter) - ord("A"), 6) for letter in value)


def flags(numbers: Iterable[int], width: int) -> str:
    """A bit for each number from 1 on."""
    bits = ["0"] * width
    previous = 0
    for one in numbers:
        if not previous < one <= width:
            raise ValueError
        bits[one - 1] = "1"
        previous = one
    return "".join(bits)


def fibonacci(value: int) -> str:
    """Zeckendorf's digits, the lowest first, and a final 1."""
    if value < 1:
        raise ValueError
    terms = [1, 2]
    while terms[-1] <= value:
        terms.append(terms[-1] + terms[-2])
    digits = []
    for term in reversed(terms[:-1]):
        digits.append("1" if term <= value else "0")
        value -= term if term <= value else 0
    return "".join(reversed(digits)).rstrip("0") + "1"


def header(ranges: Ranges) -> str:
    """The header of a GPP string."""
    return number(3, 6) + number(1, 6) + fibonacci_ranges(ranges)


def plain_ranges(ranges: Ranges) -> str:
    """A count, and 16-bit identifiers."""
    bits = number(len(ranges), 12)
    for first, last in ranges:
        if not 1 <= first <= last:
            raise ValueError
        bits += "0" + number(first, 16) if first == last else "1" + number(first, 16) + number(last, 16)
    return bits


def fibonacci_ranges(ranges: Ranges) -> str:
    """A count, and distances."""
    bits = number(len(ranges), 12)
    previous = 0
    for first, last in ranges:
        group = "" if first == last else fibonacci(last - first)
        bits += ("1" if group else "0") + fibonacci(first - previous) + group
        previous = last
    return bits


def vendors(value: Vendors, *, is_fibonacci: bool = False) -> str:
    """A maximum, a flag, and a bit field or ranges."""
    bits = number(value.max_id, 16)
    if value.ranges is None:
        return bits + "0" + flags(value.ids, value.max_id)
    ends = [end for pair in value.ranges for end in (pair[0], pair[1] + 1)]
    if sorted(ends) != ends or any(last > value.max_id for _, last in value.ranges):
        raise ValueError
    return bits + "1" + (fibonacci_ranges(value.ranges) if is_fibonacci else plain_ranges(value.ranges))


def tc_segments(value: TcString) -> list[str]:
    """The bits of each segment."""
    core = value.core
    if core.created > core.last_updated:
        raise ValueError
    bits = [
        number(2, 6) + time(core.created) + time(core.last_updated),
        number(core.cmp_id, 12) + number(core.cmp_version, 12) + number(core.consent_screen, 6),
        letters(core.consent_language) + number(core.vendor_list_version, 12) + number(core.policy_version, 6),
        number(core.is_service_specific, 1) + number(core.use_non_standard_texts, 1),
        flags(core.special_feature_optins, 12),
        flags(core.purpose_consents, 24) + flags(core.purpose_legitimate_interests, 24),
        number(core.purpose_one_treatment, 1) + letters(core.publisher_country),
        vendors(core.vendor_consents) + vendors(core.vendor_legitimate_interests),
        number(len(core.restrictions), 12),
    ]
    keys = [(one.purpose, int(one.type)) for one in core.restrictions]
    if len(set(keys)) < len(keys) or any(not 1 <= purpose <= 24 or kind == 3 for purpose, kind in keys):
        raise ValueError
    for one in core.restrictions:
        bits.append(number(one.purpose, 6) + number(one.type, 2) + plain_ranges(one.vendors))
    return ["".join(bits), *(_tc_segment(kind, value) for kind in value.order)]


def _tc_segment(kind: SegmentType, value: TcString) -> str:
    if kind is SegmentType.PUBLISHER_TC and value.publisher is not None:
        return publisher(value.publisher)
    found = {
        SegmentType.DISCLOSED_VENDORS: value.disclosed_vendors,
        SegmentType.ALLOWED_VENDORS: value.allowed_vendors,
    }[kind]
    if found is None:
        raise ValueError
    return number(kind, 3) + vendors(found)


def publisher(value: PublisherTc) -> str:
    """The segment of a publisher's own use."""
    count = value.custom_purposes_count
    bits = number(3, 3) + flags(value.purpose_consents, 24) + flags(value.purpose_legitimate_interests, 24)
    own = flags(value.custom_purpose_consents, count) + flags(value.custom_purpose_legitimate_interests, count)
    return bits + number(count, 6) + own


def canada_segments(value: CanadaString) -> list[str]:
    """The bits of each segment."""
    core = value.core
    if core.created > core.last_updated:
        raise ValueError
    bits = [
        number(1, 6) + time(core.created) + time(core.last_updated),
        number(core.cmp_id, 12) + number(core.cmp_version, 12) + number(core.consent_screen, 6),
        letters(core.consent_language) + number(core.vendor_list_version, 12) + number(core.policy_version, 6),
        number(core.use_non_standard_stacks, 1) + flags(core.special_feature_express_consents, 12),
        flags(core.purpose_express_consents, 24) + flags(core.purpose_implied_consents, 24),
        vendors(core.vendor_express_consents, is_fibonacci=True),
        vendors(core.vendor_implied_consents, is_fibonacci=True),
        number(len(core.restrictions), 12),
    ]
    keys = [(one.purpose, one.type) for one in core.restrictions]
    if len(set(keys)) < len(keys) or any(not 1 <= purpose <= 24 or kind == 3 for purpose, kind in keys):
        raise ValueError
    for one in core.restrictions:
        bits.append(number(one.purpose, 6) + number(one.type, 2) + vendors(one.vendors, is_fibonacci=True))
    return ["".join(bits), *(_canada_segment(kind, value) for kind in value.order)]


def _canada_segment(kind: SegmentType, value: CanadaString) -> str:
    if kind is SegmentType.PUBLISHER_TC and value.publisher is not None:
        return publisher(value.publisher)
    if value.disclosed_vendors is None:
        raise ValueError
    return number(1, 3) + vendors(value.disclosed_vendors, is_fibonacci=True)


def us_segments(name: str, value: UsSection) -> list[str]:
    """The bits of the core, and of what follows it."""
    fields = dict(value.fields)
    apart = fields.pop("SensitiveDataProcessing", None) if name in APART else None
    core = number(value.version, 6) + "".join(map(two_bits, fields.values()))
    if fields["MspaCoveredTransaction"] == 0:
        raise ValueError
    rest = [] if apart is None else [two_bits(apart)]
    if value.gpc is not None:
        rest.append("01" + number(value.gpc, 1))
    return [core, *rest]


def two_bits(value: Value) -> str:
    """A value of 0 to 2, or a list of them."""
    values = (value,) if isinstance(value, int) else value
    if any(one > 2 for one in values):
        raise ValueError
    return "".join(number(one, 2) for one in values)
