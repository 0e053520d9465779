"""TC strings of the IAB Europe Transparency & Consent Framework, versions 2.0 to 2.3.

Decoding says what a string holds. Whether it may grant anything is `mapping`'s: a string that is well-formed can still
be one that nobody may rely on (global scope, a policy that is out of force, a CMP that does not exist).

Source: IAB Tech Lab, "Transparency and Consent String with Global Vendor & CMP List Formats", TC String Format.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from services.consent.domain.signals.bits import TCF_UNITS, BitReader, check_length, parts
from services.consent.domain.signals.errors import Code, ConsentStringError, Problem
from services.consent.domain.signals.vendors import Ranges, Vendors, read_any_ranges, read_vendors

VERSION = 2
PURPOSES_COUNT = 24
SPECIAL_FEATURES_COUNT = 12
# TCF 2.3: strings that were made from then on must say which vendors were shown.
DISCLOSED_VENDORS_FROM = datetime(2026, 3, 1, tzinfo=UTC)


class SegmentType(IntEnum):
    """What a segment is; ALLOWED_VENDORS was withdrawn with global scope and is still met in older strings."""

    CORE = 0
    DISCLOSED_VENDORS = 1
    ALLOWED_VENDORS = 2
    PUBLISHER_TC = 3


class RestrictionType(IntEnum):
    """What a publisher asks of vendors for a purpose; 3 is undefined."""

    NOT_ALLOWED = 0
    REQUIRE_CONSENT = 1
    REQUIRE_LEGITIMATE_INTEREST = 2


@dataclass(frozen=True, slots=True)
class Restriction:
    """A publisher restriction: what holds for these vendors and this purpose, whatever they declared."""

    purpose: int
    type: RestrictionType
    vendors: Ranges


@dataclass(frozen=True, slots=True)
class Core:
    """The core segment, field by field; purposes and features are the numbers whose bit is set."""

    created: datetime
    last_updated: datetime
    cmp_id: int
    cmp_version: int
    consent_screen: int
    consent_language: str
    vendor_list_version: int
    policy_version: int
    is_service_specific: bool
    use_non_standard_texts: bool
    special_feature_optins: tuple[int, ...]
    purpose_consents: tuple[int, ...]
    purpose_legitimate_interests: tuple[int, ...]
    purpose_one_treatment: bool
    publisher_country: str
    vendor_consents: Vendors
    vendor_legitimate_interests: Vendors
    restrictions: tuple[Restriction, ...]


@dataclass(frozen=True, slots=True)
class PublisherTc:
    """The PublisherTC segment: what was agreed to for the publisher's own use."""

    purpose_consents: tuple[int, ...]
    purpose_legitimate_interests: tuple[int, ...]
    custom_purposes_count: int
    custom_purpose_consents: tuple[int, ...]
    custom_purpose_legitimate_interests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TcString:
    """A whole TC string.

    Args:
        order: of the segments after the core, which may be any.
        deviation: set where the string is not what the specification says and can be read all the same: some encoders
            filled the segments after the core with too many zeros. It grants nothing.
    """

    core: Core
    disclosed_vendors: Vendors | None = None
    allowed_vendors: Vendors | None = None
    publisher: PublisherTc | None = None
    order: tuple[SegmentType, ...] = ()
    deviation: Problem | None = None


def decode_tc(text: str, *, disclosed_from: datetime = DISCLOSED_VENDORS_FROM, offset: int = 0) -> TcString:
    """What a TC string holds.

    Args:
        disclosed_from: strings last changed from then on need the disclosed-vendors segment.
        offset: where it begins in a longer string, for the places that errors tell.

    Raises:
        ConsentStringError: it is not exactly a TC string of version 2.
    """
    check_length(text)
    first, *others = parts(text, ".", offset)
    core = _read_core(BitReader(*first))
    found: dict[SegmentType, Vendors | PublisherTc] = {}
    deviation: Problem | None = None
    for part in others:
        reader = BitReader(*part)
        kind = _segment_type(reader, found)
        found[kind] = read_publisher(reader) if kind is SegmentType.PUBLISHER_TC else read_vendors(reader)
        deviation = deviation or _surplus_zeros(reader)
    # Both times carry the last change: framework 2.2 asks that they be equal; before that, created was the earlier.
    if SegmentType.DISCLOSED_VENDORS not in found and core.last_updated >= disclosed_from:
        message = f"was last changed on {disclosed_from:%Y-%m-%d} or later and lacks the disclosed-vendors segment"
        raise ConsentStringError(Problem(Code.DISCLOSED_VENDORS_MISSING, offset + len(text), message))
    return _whole(core, found, deviation)


def _surplus_zeros(reader: BitReader) -> Problem | None:
    problem = reader.surplus(TCF_UNITS)
    if problem is not None and problem.code is not Code.PADDING_TOO_LONG:
        raise ConsentStringError(problem)
    return problem


def _segment_type(reader: BitReader, found: dict[SegmentType, Vendors | PublisherTc]) -> SegmentType:
    number = reader.integer(3)
    if not SegmentType.DISCLOSED_VENDORS <= number <= SegmentType.PUBLISHER_TC:
        raise reader.error(Code.SEGMENT_UNKNOWN, "holds a segment of a type that does not exist")
    kind = SegmentType(number)
    if kind in found:
        raise reader.error(Code.SEGMENT_REPEATED, "holds a segment twice")
    return kind


def _whole(core: Core, found: dict[SegmentType, Vendors | PublisherTc], deviation: Problem | None) -> TcString:
    disclosed = found.get(SegmentType.DISCLOSED_VENDORS)
    allowed = found.get(SegmentType.ALLOWED_VENDORS)
    publisher = found.get(SegmentType.PUBLISHER_TC)
    return TcString(
        core=core,
        disclosed_vendors=disclosed if isinstance(disclosed, Vendors) else None,
        allowed_vendors=allowed if isinstance(allowed, Vendors) else None,
        publisher=publisher if isinstance(publisher, PublisherTc) else None,
        order=tuple(found),
        deviation=deviation,
    )


def _read_core(reader: BitReader) -> Core:
    """Source: TCF "The Core String"; fields in the order of its table."""
    if reader.integer(6) != VERSION:
        raise reader.error(Code.VERSION_UNSUPPORTED, f"is not a TC string of version {VERSION}")
    core = Core(
        created=reader.time(),
        last_updated=reader.time(),
        cmp_id=reader.integer(12),
        cmp_version=reader.integer(12),
        consent_screen=reader.integer(6),
        consent_language=reader.letters(),
        vendor_list_version=reader.integer(12),
        policy_version=reader.integer(6),
        is_service_specific=reader.boolean(),
        use_non_standard_texts=reader.boolean(),
        special_feature_optins=reader.numbers(SPECIAL_FEATURES_COUNT),
        purpose_consents=reader.numbers(PURPOSES_COUNT),
        purpose_legitimate_interests=reader.numbers(PURPOSES_COUNT),
        purpose_one_treatment=reader.boolean(),
        publisher_country=reader.letters(),
        vendor_consents=read_vendors(reader),
        vendor_legitimate_interests=read_vendors(reader),
        restrictions=_read_restrictions(reader),
    )
    reader.finish(TCF_UNITS)
    if core.created > core.last_updated:
        raise reader.error(Code.TIMES_REVERSED, "was changed before it was created")
    return core


def _read_restrictions(reader: BitReader) -> tuple[Restriction, ...]:
    """The restrictions, each purpose and type once.

    CMPs of good standing repeat vendors within a restriction. It is a set, and only narrows: they may.

    Source: TCF "The Core String", Publisher Restrictions Section.
    """
    restrictions = []
    seen: set[tuple[int, int]] = set()
    for _ in range(reader.integer(12)):
        purpose, kind = reader.integer(6), reader.integer(2)
        if not 1 <= purpose <= PURPOSES_COUNT or kind > RestrictionType.REQUIRE_LEGITIMATE_INTEREST:
            raise reader.error(Code.RESTRICTION_INVALID, "restricts a purpose, or in a way, that does not exist")
        if (purpose, kind) in seen:
            raise reader.error(Code.RESTRICTION_INVALID, "restricts a purpose twice in the same way")
        seen.add((purpose, kind))
        restrictions.append(Restriction(purpose, RestrictionType(kind), read_any_ranges(reader)))
    return tuple(restrictions)


def read_publisher(reader: BitReader) -> PublisherTc:
    """The fields after the segment type; the sections of the EU and of Canada have the same.

    Source: TCF "Publisher Purposes Transparency and Consent".
    """
    consents, interests = reader.numbers(PURPOSES_COUNT), reader.numbers(PURPOSES_COUNT)
    count = reader.integer(6)
    return PublisherTc(consents, interests, count, reader.numbers(count), reader.numbers(count))
