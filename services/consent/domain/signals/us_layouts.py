"""The fields of the US sections of a GPP string: one row a section and version.

The version comes first (6 bits), then these fields of two bits, or of as many times two bits as their count says.
Every field has the same values: 0 does not apply, 1 is the answer that protects the person where there is one (opted
out, no consent) and "yes" of a notice, 2 is the other, 3 is undefined.

Source: GPP Sections, "US-National" and "US-States", Core Segment of each. Where a section's text and IAB's encoders
differ (the section header of MD, IN, KY and RI, which no encoder writes), the encoders are followed, as are the
published strings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from services.consent.domain.signals.bits import GPP_UNITS, is_length

VERSION_BITS = 6
VALUE_BITS = 2
# The one field that has no 0: a transaction is covered by the agreement, or it is not.
COVERED = "MspaCoveredTransaction"
SENSITIVE = "SensitiveDataProcessing"
CHILDREN = "KnownChildSensitiveDataConsents"
SENSITIVE_SEGMENT_COUNT = 8


class Second(StrEnum):
    """The segment that may follow the core."""

    NONE = "none"
    GPC = "gpc"
    SENSITIVE = "sensitive"


@dataclass(frozen=True, slots=True)
class Field:
    """A field; *count* 0: one value, else a list of as many."""

    name: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a core segment after its version."""

    fields: tuple[Field, ...]

    @property
    def bits(self) -> int:
        """How long the core is."""
        return VERSION_BITS + VALUE_BITS * sum(max(field.count, 1) for field in self.fields)

    def has_length(self, text_bits: int) -> bool:
        """Whether a core of this layout can have this length."""
        return is_length(self.bits, text_bits, GPP_UNITS)


@dataclass(frozen=True, slots=True)
class UsSpec:
    """A US section: its name in the API of GPP, its versions, and what may follow the core."""

    name: str
    versions: Mapping[int, Layout]
    second: Second = Second.GPC


def _fields(names: str, **counts: int) -> Layout:
    return Layout(tuple(Field(name, counts.get(name, 0)) for name in names.split()))


def _spec(name: str, *layouts: Layout, second: Second = Second.GPC) -> UsSpec:
    return UsSpec(name, MappingProxyType(dict(enumerate(layouts, 1))), second)


_MSPA = "MspaCoveredTransaction MspaOptOutOptionMode MspaServiceProviderMode"
_NOTICES = "SaleOptOutNotice TargetedAdvertisingOptOutNotice"
_OPT_OUTS = "SaleOptOut TargetedAdvertisingOptOut"
_DATA = f"{SENSITIVE} {CHILDREN}"
_NATIONAL = f"""
    SharingNotice SaleOptOutNotice SharingOptOutNotice TargetedAdvertisingOptOutNotice
    SensitiveDataProcessingOptOutNotice SensitiveDataLimitUseNotice
    SaleOptOut SharingOptOut TargetedAdvertisingOptOut {_DATA} PersonalDataConsents {_MSPA}
"""
_CALIFORNIA = f"""
    SaleOptOutNotice SharingOptOutNotice SensitiveDataLimitUseNotice SaleOptOut SharingOptOut
    {_DATA} PersonalDataConsents {_MSPA}
"""
_SHARING = f"SharingNotice {_NOTICES} {_OPT_OUTS} {_DATA} {_MSPA}"
_UTAH = f"SharingNotice {_NOTICES} SensitiveDataProcessingOptOutNotice {_OPT_OUTS} {_DATA} {_MSPA}"
_MONTANA = f"SharingNotice {_NOTICES} {_OPT_OUTS} {_DATA} AdditionalDataProcessingConsent {_MSPA}"
_PROCESSING = f"ProcessingNotice {_NOTICES} {_OPT_OUTS} {_DATA} AdditionalDataProcessingConsent {_MSPA}"
_IOWA = f"ProcessingNotice {_NOTICES} SensitiveDataOptOutNotice {_OPT_OUTS} {_DATA} {_MSPA}"
_MARYLAND = f"""
    MspaCoveredTransaction MspaMode ProcessingNotice {_NOTICES} {_OPT_OUTS} AdditionalDataProcessingConsent
"""
_INDIANA = f"""
    MspaCoveredTransaction MspaMode ProcessingNotice {_NOTICES} {_OPT_OUTS} {CHILDREN} AdditionalDataProcessingConsent
"""


def _data(names: str, sensitive: int, children: int = 0) -> Layout:
    return _fields(names, **{SENSITIVE: sensitive, CHILDREN: children})


US_SECTIONS: Mapping[int, UsSpec] = MappingProxyType(
    {
        7: _spec("usnat", _data(_NATIONAL, 12, 2), _data(_NATIONAL, 16, 3)),
        8: _spec("usca", _data(_CALIFORNIA, 9, 2)),
        9: _spec("usva", _data(_SHARING, 8), second=Second.NONE),
        10: _spec("usco", _data(_SHARING, 7)),
        11: _spec("usut", _data(_UTAH, 8), second=Second.NONE),
        12: _spec("usct", _data(_SHARING, 8, 3)),
        13: _spec("usfl", _data(_PROCESSING, 8, 3), second=Second.NONE),
        14: _spec("usmt", _data(_MONTANA, 8, 3)),
        15: _spec("usor", _data(_PROCESSING, 11, 3)),
        16: _spec("ustx", _data(_PROCESSING, 8)),
        17: _spec("usde", _data(_PROCESSING, 9, 5)),
        18: _spec("usia", _data(_IOWA, 8)),
        19: _spec("usne", _data(_PROCESSING, 8)),
        20: _spec("usnh", _data(_PROCESSING, 8, 3)),
        21: _spec("usnj", _data(_PROCESSING, 10, 5)),
        22: _spec("ustn", _data(_PROCESSING, 8)),
        23: _spec("usmn", _data(_PROCESSING, 8)),
        24: _spec("usmd", _fields(_MARYLAND)),
        25: _spec("usin", _fields(_INDIANA), second=Second.SENSITIVE),
        26: _spec("usky", _fields(_INDIANA), second=Second.SENSITIVE),
        27: _spec("usri", _fields(_INDIANA), second=Second.SENSITIVE),
    }
)


def field_names() -> frozenset[str]:
    """Every field that some US section has."""
    layouts = (layout for spec in US_SECTIONS.values() for layout in spec.versions.values())
    return frozenset(field.name for layout in layouts for field in layout.fields)
