"""IAB's published consent strings against the decoder: every field, in the shape in which IAB's libraries tell it.

Those libraries (iabtcf-es, iabgpp-es) have no way to say that a segment is not there: its fields have their defaults.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from services.consent.domain.signals.canada import CanadaString
from services.consent.domain.signals.errors import ConsentStringError
from services.consent.domain.signals.gpp import Section, decode_gpp
from services.consent.domain.signals.tcf import PublisherTc, TcString, decode_tc
from services.consent.domain.signals.us import UsSection
from services.consent.domain.signals.us_layouts import SENSITIVE, SENSITIVE_SEGMENT_COUNT, US_SECTIONS, Second
from services.consent.domain.signals.usp import UspString, decode_usp
from services.consent.domain.signals.vendors import Vendors, ids_of

TCF_FILES = ("tcf_v2_published.json", "tcf_v2_generated.json")
# From Maryland on, the first field is the version of the agreement, not of the section.
MSPA_VERSION_FROM = 24
PURPOSES = 24
FEATURES = 12
NOTHING = PublisherTc((), (), 0, (), ())

Shape = dict[str, Any]


def strings(folder: Path) -> Iterator[tuple[str, str]]:
    """Every string that is valid by IAB's libraries, after the name of its signal."""
    for name in TCF_FILES:
        yield from (("tc_string", one["string"]) for one in _read(folder / name))
    yield from (("gpp", one["string"]) for one in _read(folder / "gpp_published.json"))
    yield from (("usp", one["string"]) for one in _read(folder / "usp_v1.json"))


def differences(folder: Path) -> tuple[int, list[str]]:
    """How many strings there are, and what differs: valid ones read otherwise, malformed ones read at all."""
    found: list[str] = []
    count = 0
    for label, text, tell, expected in _cases(folder):
        count += 1
        try:
            told = tell(text)
        except ConsentStringError as error:
            told = None if expected is None else error
        if told != expected:
            found.append(label)
    return count, found


def _cases(folder: Path) -> Iterator[tuple[str, str, Callable[[str], object], object]]:
    """A label, a string, what asks the decoder for its content, and the content; None: a refusal."""
    for name in TCF_FILES:
        for index, one in enumerate(_read(folder / name)):
            yield f"{name}[{index}]", one["string"], lambda text: tc_shape(decode_tc(text)), one["decoded"]
    for index, one in enumerate(_read(folder / "gpp_published.json")):
        yield f"gpp_published.json[{index}]", one["string"], gpp_shape, (one["sectionIds"], one["sections"])
    for index, one in enumerate(_read(folder / "usp_v1.json")):
        yield f"usp_v1.json[{index}]", one["string"], usp_shape, one
    decoders: tuple[Callable[[str], object], ...] = (decode_tc, decode_gpp, decode_usp)
    for index, one in enumerate(_read(folder / "malformed.json")):
        for number, decode in enumerate(decoders):
            yield f"malformed.json[{index}] by decoder {number}", one["string"], decode, None


def _read(path: Path) -> list[Shape]:
    found: list[Shape] = json.loads(path.read_text())
    return found


def tc_shape(value: TcString) -> Shape:
    """As iabtcf-es tells a TC string: the numbers that are set."""
    core, own = value.core, value.publisher or NOTHING
    return {
        "version": 2,
        "created": _time(core.created),
        "lastUpdated": _time(core.last_updated),
        "cmpId": core.cmp_id,
        "cmpVersion": core.cmp_version,
        "consentScreen": core.consent_screen,
        "consentLanguage": core.consent_language,
        "vendorListVersion": core.vendor_list_version,
        "tcfPolicyVersion": core.policy_version,
        "isServiceSpecific": core.is_service_specific,
        "useNonStandardTexts": core.use_non_standard_texts,
        "purposeOneTreatment": core.purpose_one_treatment,
        "publisherCountryCode": core.publisher_country,
        "specialFeatureOptins": [*core.special_feature_optins],
        "purposeConsents": [*core.purpose_consents],
        "purposeLegitimateInterests": [*core.purpose_legitimate_interests],
        "vendorConsents": _ids(core.vendor_consents),
        "vendorLegitimateInterests": _ids(core.vendor_legitimate_interests),
        "vendorsDisclosed": _ids(value.disclosed_vendors),
        "vendorsAllowed": _ids(value.allowed_vendors),
        "publisherConsents": [*own.purpose_consents],
        "publisherLegitimateInterests": [*own.purpose_legitimate_interests],
        "numCustomPurposes": own.custom_purposes_count,
        "publisherCustomConsents": [*own.custom_purpose_consents],
        "publisherCustomLegitimateInterests": [*own.custom_purpose_legitimate_interests],
        "publisherRestrictions": [
            {"purposeId": one.purpose, "restrictionType": int(one.type), "vendors": [*ids_of(one.vendors)]}
            for one in core.restrictions
        ],
    }


def usp_shape(text: str) -> Shape:
    """As the vectors tell a US Privacy string."""
    value = decode_usp(text)
    return {
        "string": text,
        "notice": value.notice.value,
        "opt_out_sale": value.opt_out_sale.value,
        "lspa": value.lspa.value,
    }


def gpp_shape(text: str) -> tuple[list[int], dict[str, Shape]]:
    """As iabgpp-es tells a GPP string: the numbers of its sections, and their fields."""
    sections = decode_gpp(text).sections
    return [one.id for one in sections], {one.name: _section_shape(one) for one in sections}


def _section_shape(section: Section) -> Shape:
    match section.content:
        case TcString() as value:
            return _european_shape(value)
        case CanadaString() as value:
            return _canadian_shape(value)
        case UspString() as value:
            answers = {"Notice": value.notice, "OptOutSale": value.opt_out_sale, "LspaCovered": value.lspa}
            return {"Version": 1, **{name: answer.value for name, answer in answers.items()}}
        case UsSection() as value:
            return _us_shape(section.id, value)


def _us_shape(number: int, value: UsSection) -> Shape:
    second = US_SECTIONS[number].second
    shape: Shape = {"MspaVersion" if number >= MSPA_VERSION_FROM else "Version": value.version}
    shape.update({name: one if isinstance(one, int) else [*one] for name, one in value.fields.items()})
    if second is Second.GPC:
        shape.update({"GpcSegmentType": 1, "Gpc": bool(value.gpc)})
    if second is Second.SENSITIVE:
        shape.setdefault(SENSITIVE, [0] * SENSITIVE_SEGMENT_COUNT)
    return shape


def _european_shape(value: TcString) -> Shape:
    core, own = value.core, value.publisher or NOTHING
    count = own.custom_purposes_count
    return {
        "Version": 2,
        "Created": _time(core.created),
        "LastUpdated": _time(core.last_updated),
        "CmpId": core.cmp_id,
        "CmpVersion": core.cmp_version,
        "ConsentScreen": core.consent_screen,
        "ConsentLanguage": core.consent_language,
        "VendorListVersion": core.vendor_list_version,
        "PolicyVersion": core.policy_version,
        "IsServiceSpecific": core.is_service_specific,
        "UseNonStandardStacks": core.use_non_standard_texts,
        "SpecialFeatureOptins": _flags(core.special_feature_optins, FEATURES),
        "PurposeConsents": _flags(core.purpose_consents, PURPOSES),
        "PurposeLegitimateInterests": _flags(core.purpose_legitimate_interests, PURPOSES),
        "PurposeOneTreatment": core.purpose_one_treatment,
        "PublisherCountryCode": core.publisher_country,
        "VendorConsents": _ids(core.vendor_consents),
        "VendorLegitimateInterests": _ids(core.vendor_legitimate_interests),
        "PublisherRestrictions": [
            {"key": one.purpose, "type": int(one.type), "ids": [*ids_of(one.vendors)]} for one in core.restrictions
        ],
        "PublisherPurposesSegmentType": 3,
        "PublisherConsents": _flags(own.purpose_consents, PURPOSES),
        "PublisherLegitimateInterests": _flags(own.purpose_legitimate_interests, PURPOSES),
        "NumCustomPurposes": count,
        "PublisherCustomConsents": _flags(own.custom_purpose_consents, count),
        "PublisherCustomLegitimateInterests": _flags(own.custom_purpose_legitimate_interests, count),
        "VendorsAllowedSegmentType": 2,
        "VendorsAllowed": _ids(value.allowed_vendors),
        "VendorsDisclosedSegmentType": 1,
        "VendorsDisclosed": _ids(value.disclosed_vendors),
    }


def _canadian_shape(value: CanadaString) -> Shape:
    core, own = value.core, value.publisher or NOTHING
    count = own.custom_purposes_count
    return {
        "Version": 1,
        "Created": _time(core.created),
        "LastUpdated": _time(core.last_updated),
        "CmpId": core.cmp_id,
        "CmpVersion": core.cmp_version,
        "ConsentScreen": core.consent_screen,
        "ConsentLanguage": core.consent_language,
        "VendorListVersion": core.vendor_list_version,
        "TcfPolicyVersion": core.policy_version,
        "UseNonStandardStacks": core.use_non_standard_stacks,
        "SpecialFeatureExpressConsent": _flags(core.special_feature_express_consents, FEATURES),
        "PurposesExpressConsent": _flags(core.purpose_express_consents, PURPOSES),
        "PurposesImpliedConsent": _flags(core.purpose_implied_consents, PURPOSES),
        "VendorExpressConsent": _ids(core.vendor_express_consents),
        "VendorImpliedConsent": _ids(core.vendor_implied_consents),
        "PubRestrictions": [
            {"key": one.purpose, "type": one.type, "ids": _ids(one.vendors)} for one in core.restrictions
        ],
        "PubPurposesSegmentType": 3,
        "PubPurposesExpressConsent": _flags(own.purpose_consents, PURPOSES),
        "PubPurposesImpliedConsent": _flags(own.purpose_legitimate_interests, PURPOSES),
        "NumCustomPurposes": count,
        "CustomPurposesExpressConsent": _flags(own.custom_purpose_consents, count),
        "CustomPurposesImpliedConsent": _flags(own.custom_purpose_legitimate_interests, count),
        "DisclosedVendorsSegmentType": 1,
        "DisclosedVendors": _ids(value.disclosed_vendors),
    }


def _flags(numbers: tuple[int, ...], width: int) -> list[bool]:
    return [one in numbers for one in range(1, width + 1)]


def _ids(vendors: Vendors | None) -> list[int]:
    return [] if vendors is None else [*vendors.ids]


def _time(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
