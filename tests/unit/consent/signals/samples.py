"""Contents that several tests begin with."""

from datetime import UTC, datetime

from services.consent.domain.signals.canada import CanadaCore, CanadaRestriction, CanadaString
from services.consent.domain.signals.gpp import NAMES, Content, GppString, Section
from services.consent.domain.signals.tcf import Core, PublisherTc, Restriction, RestrictionType, SegmentType
from services.consent.domain.signals.us import UsSection
from services.consent.domain.signals.us_layouts import COVERED, US_SECTIONS
from services.consent.domain.signals.vendors import Vendors
from tests.unit.consent.signals.strategies import grouped

MARCH_2023 = datetime(2023, 3, 1, tzinfo=UTC)
CORE = Core(
    created=MARCH_2023,
    last_updated=MARCH_2023,
    cmp_id=5,
    cmp_version=2,
    consent_screen=1,
    consent_language="DE",
    vendor_list_version=7,
    policy_version=4,
    is_service_specific=True,
    use_non_standard_texts=False,
    special_feature_optins=(1,),
    purpose_consents=(1, 3),
    purpose_legitimate_interests=(2,),
    purpose_one_treatment=False,
    publisher_country="FR",
    vendor_consents=Vendors(2, bits=0b100),
    vendor_legitimate_interests=Vendors(5, ((3, 5),)),
    restrictions=(Restriction(2, RestrictionType.NOT_ALLOWED, ((9, 9),)),),
)

CANADA = CanadaString(
    CanadaCore(
        created=MARCH_2023,
        last_updated=MARCH_2023,
        cmp_id=5,
        cmp_version=2,
        consent_screen=1,
        consent_language="FR",
        vendor_list_version=7,
        policy_version=2,
        use_non_standard_stacks=False,
        special_feature_express_consents=(2,),
        purpose_express_consents=(1, 5),
        purpose_implied_consents=(2, 6),
        vendor_express_consents=Vendors(9, ((3, 3), (5, 9))),
        vendor_implied_consents=Vendors(4, bits=0b10100),
        restrictions=(CanadaRestriction(3, 0, Vendors(2, ((1, 2),))),),
    ),
    disclosed_vendors=Vendors(5, ((2, 5),)),
    publisher=PublisherTc((1,), (2,), 1, (1,), ()),
    order=(SegmentType.PUBLISHER_TC, SegmentType.DISCLOSED_VENDORS),
)


def whole(*contents: tuple[int, Content]) -> GppString:
    """A GPP string of these sections."""
    sections = tuple(Section(number, NAMES[number], content) for number, content in contents)
    return GppString(grouped([one.id for one in sections]), sections)


def plain_us(number: int, *, gpc: bool | None = None) -> UsSection:
    """The section with nothing said, as the libraries begin it."""
    layout = US_SECTIONS[number].versions[1]
    fields = {one.name: (0,) * one.count if one.count else int(one.name == COVERED) for one in layout.fields}
    return UsSection(1, fields, gpc)
