"""Consent strings' contents for Hypothesis: everything that the specifications allow, in small."""

from datetime import datetime, timedelta

from hypothesis import strategies as st

from services.consent.domain.signals.canada import CanadaCore, CanadaRestriction, CanadaString
from services.consent.domain.signals.gpp import NAMES, TCF_CANADA, TCF_EU, USP, Content, GppString, Section
from services.consent.domain.signals.tcf import (
    DISCLOSED_VENDORS_FROM,
    Core,
    PublisherTc,
    Restriction,
    RestrictionType,
    SegmentType,
    TcString,
)
from services.consent.domain.signals.us import UsSection, Value
from services.consent.domain.signals.us_layouts import COVERED, US_SECTIONS, Second
from services.consent.domain.signals.usp import Answer, UspString
from services.consent.domain.signals.vendors import Ranges, Vendors
from tests.unit.consent.signals.encode import EPOCH


def numbers(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Numbers from 1 on, ascending."""
    return st.sets(st.integers(1, max(count, 1)), max_size=count).map(lambda found: tuple(sorted(found)))


def letters() -> st.SearchStrategy[str]:
    """A language or a country."""
    return st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=2, max_size=2)


@st.composite
def ranges(draw: st.DrawFn, most: int = 5) -> Ranges:
    """Ranges that ascend, apart or next to each other."""
    found = []
    last = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 300)), max_size=most)):
        found.append((last + gap, last + gap + length))
        last += gap + length
    return tuple(found)


@st.composite
def vendors(draw: st.DrawFn) -> Vendors:
    """A set of vendors in either spelling."""
    spare = draw(st.integers(0, 20))
    if draw(st.booleans()):
        found = draw(ranges())
        return Vendors((found[-1][1] if found else 0) + spare, found)
    ids = draw(st.sets(st.integers(1, 60)))
    return Vendors(max(ids, default=0) + spare, bits=sum(1 << one for one in ids))


@st.composite
def times(draw: st.DrawFn) -> tuple[datetime, datetime]:
    """When it was created and last changed."""
    first, last = sorted(draw(st.tuples(*[st.integers(0, 2**36 - 1)] * 2)))
    return EPOCH + first * timedelta(milliseconds=100), EPOCH + last * timedelta(milliseconds=100)


@st.composite
def restrictions(draw: st.DrawFn) -> tuple[Restriction, ...]:
    """Restrictions, each purpose and type once."""
    keys = draw(st.lists(st.tuples(st.integers(1, 24), st.sampled_from(RestrictionType)), unique=True, max_size=3))
    return tuple(Restriction(purpose, kind, draw(ranges())) for purpose, kind in keys)


@st.composite
def cores(draw: st.DrawFn) -> Core:
    """A core segment."""
    created, last_updated = draw(times())
    return Core(
        created=created,
        last_updated=last_updated,
        cmp_id=draw(st.integers(0, 4095)),
        cmp_version=draw(st.integers(0, 4095)),
        consent_screen=draw(st.integers(0, 63)),
        consent_language=draw(letters()),
        vendor_list_version=draw(st.integers(0, 4095)),
        policy_version=draw(st.integers(0, 63)),
        is_service_specific=draw(st.booleans()),
        use_non_standard_texts=draw(st.booleans()),
        special_feature_optins=draw(numbers(12)),
        purpose_consents=draw(numbers(24)),
        purpose_legitimate_interests=draw(numbers(24)),
        purpose_one_treatment=draw(st.booleans()),
        publisher_country=draw(letters()),
        vendor_consents=draw(vendors()),
        vendor_legitimate_interests=draw(vendors()),
        restrictions=draw(restrictions()),
    )


@st.composite
def publishers(draw: st.DrawFn) -> PublisherTc:
    """A publisher's segment."""
    count = draw(st.integers(0, 63))
    own = numbers(count) if count else st.just(())
    return PublisherTc(draw(numbers(24)), draw(numbers(24)), count, draw(own), draw(own))


@st.composite
def tc_strings(draw: st.DrawFn) -> TcString:
    """A TC string with its segments in any order."""
    core = draw(cores())
    kinds = [SegmentType.DISCLOSED_VENDORS, SegmentType.ALLOWED_VENDORS, SegmentType.PUBLISHER_TC]
    order = draw(st.lists(st.sampled_from(kinds), unique=True))
    if core.last_updated >= DISCLOSED_VENDORS_FROM and SegmentType.DISCLOSED_VENDORS not in order:
        order.append(SegmentType.DISCLOSED_VENDORS)
    return TcString(
        core,
        disclosed_vendors=draw(vendors()) if SegmentType.DISCLOSED_VENDORS in order else None,
        allowed_vendors=draw(vendors()) if SegmentType.ALLOWED_VENDORS in order else None,
        publisher=draw(publishers()) if SegmentType.PUBLISHER_TC in order else None,
        order=tuple(order),
    )


@st.composite
def canada_strings(draw: st.DrawFn) -> CanadaString:
    """Section 5."""
    created, last_updated = draw(times())
    keys = draw(st.lists(st.tuples(st.integers(1, 24), st.integers(0, 2)), unique=True, max_size=3))
    core = CanadaCore(
        created=created,
        last_updated=last_updated,
        cmp_id=draw(st.integers(0, 4095)),
        cmp_version=draw(st.integers(0, 4095)),
        consent_screen=draw(st.integers(0, 63)),
        consent_language=draw(letters()),
        vendor_list_version=draw(st.integers(0, 4095)),
        policy_version=draw(st.integers(0, 63)),
        use_non_standard_stacks=draw(st.booleans()),
        special_feature_express_consents=draw(numbers(12)),
        purpose_express_consents=draw(numbers(24)),
        purpose_implied_consents=draw(numbers(24)),
        vendor_express_consents=draw(vendors()),
        vendor_implied_consents=draw(vendors()),
        restrictions=tuple(CanadaRestriction(purpose, kind, draw(vendors())) for purpose, kind in keys),
    )
    order = draw(st.lists(st.sampled_from([SegmentType.DISCLOSED_VENDORS, SegmentType.PUBLISHER_TC]), unique=True))
    return CanadaString(
        core,
        disclosed_vendors=draw(vendors()) if SegmentType.DISCLOSED_VENDORS in order else None,
        publisher=draw(publishers()) if SegmentType.PUBLISHER_TC in order else None,
        order=tuple(order),
    )


def usp_strings() -> st.SearchStrategy[UspString]:
    """A US Privacy string."""
    return st.builds(UspString, *[st.sampled_from(Answer)] * 3)


@st.composite
def us_sections(draw: st.DrawFn, number: int) -> UsSection:
    """A US section."""
    spec = US_SECTIONS[number]
    version = draw(st.sampled_from(sorted(spec.versions)))
    fields: dict[str, Value] = {}
    for field in spec.versions[version].fields:
        least = 1 if field.name == COVERED else 0
        one = st.integers(least, 2)
        fields[field.name] = draw(st.tuples(*[one] * field.count)) if field.count else draw(one)
    if spec.second is Second.SENSITIVE and draw(st.booleans()):
        fields["SensitiveDataProcessing"] = draw(st.tuples(*[st.integers(0, 2)] * 8))
    gpc = draw(st.none() | st.booleans()) if spec.second is Second.GPC else None
    return UsSection(version, fields, gpc)


@st.composite
def gpp_strings(draw: st.DrawFn) -> GppString:
    """A GPP string."""
    ids = sorted(draw(st.sets(st.sampled_from(sorted(NAMES)), max_size=5)))
    return GppString(grouped(ids), tuple(Section(one, NAMES[one], draw(_contents(one))) for one in ids))


def grouped(ids: list[int]) -> Ranges:
    """The numbers as ranges, each as long as can be."""
    found: list[tuple[int, int]] = []
    for one in ids:
        if found and found[-1][1] == one - 1:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return tuple(found)


def _contents(number: int) -> st.SearchStrategy[Content]:
    special: dict[int, st.SearchStrategy[Content]] = {
        TCF_EU: tc_strings(),
        TCF_CANADA: canada_strings(),
        USP: usp_strings(),
    }
    return special[number] if number in special else us_sections(number)
