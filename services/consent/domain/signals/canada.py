"""The section of IAB Canada's Transparency & Consent Framework in a GPP string, version 1.

Source: GPP Sections, "IAB Canada TCF".
"""

from dataclasses import dataclass
from datetime import datetime

from services.consent.domain.signals.bits import GPP_UNITS, BitReader, parts
from services.consent.domain.signals.errors import Code, Problem
from services.consent.domain.signals.tcf import (
    PURPOSES_COUNT,
    SPECIAL_FEATURES_COUNT,
    PublisherTc,
    SegmentType,
    read_publisher,
)
from services.consent.domain.signals.vendors import Vendors, read_fibonacci_vendors

VERSION = 1
_RESTRICTION_TYPE_MAX = 2


@dataclass(frozen=True, slots=True)
class CanadaRestriction:
    """What a publisher asks of vendors for a purpose: 0 not allowed, 1 express, 2 implied consent."""

    purpose: int
    type: int
    vendors: Vendors


@dataclass(frozen=True, slots=True)
class CanadaCore:
    """The core segment, field by field; purposes and features are the numbers whose bit is set."""

    created: datetime
    last_updated: datetime
    cmp_id: int
    cmp_version: int
    consent_screen: int
    consent_language: str
    vendor_list_version: int
    policy_version: int
    use_non_standard_stacks: bool
    special_feature_express_consents: tuple[int, ...]
    purpose_express_consents: tuple[int, ...]
    purpose_implied_consents: tuple[int, ...]
    vendor_express_consents: Vendors
    vendor_implied_consents: Vendors
    restrictions: tuple[CanadaRestriction, ...]


@dataclass(frozen=True, slots=True)
class CanadaString:
    """The whole section.

    Args:
        publisher: implied consents stand where the European segment has legitimate interests.
        order: of the segments after the core.
        deviation: set where something follows the core's last field; the section then grants nothing.
    """

    core: CanadaCore
    disclosed_vendors: Vendors | None = None
    publisher: PublisherTc | None = None
    order: tuple[SegmentType, ...] = ()
    deviation: Problem | None = None


def read_canada(text: str, offset: int) -> CanadaString:
    """What the section holds.

    Raises:
        ConsentStringError: it cannot be read, or holds what is undefined.
    """
    first, *others = parts(text, ".", offset)
    core, deviation = _read_core(BitReader(*first))
    disclosed: Vendors | None = None
    publisher: PublisherTc | None = None
    order: list[SegmentType] = []
    for part in others:
        reader = BitReader(*part)
        kind = reader.integer(3)
        if kind in order:
            raise reader.error(Code.SEGMENT_REPEATED, "holds a segment twice")
        if kind == SegmentType.DISCLOSED_VENDORS:
            disclosed = read_fibonacci_vendors(reader)
        elif kind == SegmentType.PUBLISHER_TC:
            publisher = read_publisher(reader)
        else:
            raise reader.error(Code.SEGMENT_UNKNOWN, "holds a segment of a type that does not exist")
        reader.finish(GPP_UNITS)
        order.append(SegmentType(kind))
    return CanadaString(core, disclosed, publisher, tuple(order), deviation)


def _read_core(reader: BitReader) -> tuple[CanadaCore, Problem | None]:
    """Source: "IAB Canada TCF", Core sub-section; fields in the order of its table."""
    if reader.integer(6) != VERSION:
        raise reader.error(Code.VERSION_UNSUPPORTED, f"is not a section of version {VERSION}")
    core = CanadaCore(
        created=reader.time(),
        last_updated=reader.time(),
        cmp_id=reader.integer(12),
        cmp_version=reader.integer(12),
        consent_screen=reader.integer(6),
        consent_language=reader.letters(),
        vendor_list_version=reader.integer(12),
        policy_version=reader.integer(6),
        use_non_standard_stacks=reader.boolean(),
        special_feature_express_consents=reader.numbers(SPECIAL_FEATURES_COUNT),
        purpose_express_consents=reader.numbers(PURPOSES_COUNT),
        purpose_implied_consents=reader.numbers(PURPOSES_COUNT),
        vendor_express_consents=read_fibonacci_vendors(reader),
        vendor_implied_consents=read_fibonacci_vendors(reader),
        restrictions=_read_restrictions(reader),
    )
    # Encoders wrote restrictions in another coding for years; what they left cannot be understood, only noticed.
    surplus = reader.surplus(GPP_UNITS)
    if surplus is None:
        _check(core, reader)
    return core, surplus


def _read_restrictions(reader: BitReader) -> tuple[CanadaRestriction, ...]:
    """Source: GPP data type N-ArrayOfRanges(6, 2)."""
    return tuple(
        CanadaRestriction(reader.integer(6), reader.integer(2), read_fibonacci_vendors(reader))
        for _ in range(reader.integer(12))
    )


def _check(core: CanadaCore, reader: BitReader) -> None:
    if core.created > core.last_updated:
        raise reader.error(Code.TIMES_REVERSED, "was changed before it was created")
    seen = {(one.purpose, one.type) for one in core.restrictions}
    if len(seen) < len(core.restrictions):
        raise reader.error(Code.RESTRICTION_INVALID, "restricts a purpose twice in the same way")
    if any(not 1 <= purpose <= PURPOSES_COUNT or kind > _RESTRICTION_TYPE_MAX for purpose, kind in seen):
        raise reader.error(Code.RESTRICTION_INVALID, "restricts a purpose, or in a way, that does not exist")
