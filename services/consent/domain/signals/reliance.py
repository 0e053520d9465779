"""Whether a well-formed TCF string may be relied on, and whether it grants what a rule asks for.

What the specification calls invalid although it decodes grants nothing. Beyond the specification: CMP numbers 0 and 1
were never assigned, and IAB's libraries disagree about 0; a string that no CMP vouches for is nobody's record of a
choice, so it decodes and grants nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from services.consent.domain.signals.canada import CanadaString
from services.consent.domain.signals.mapping import TcfRule
from services.consent.domain.signals.tcf import RestrictionType, TcString
from services.consent.domain.signals.vendors import covers

CMP_ID_MIN = 2
# Source: TCF, "Managing conflicting string versions".
POLICY_VERSION_MIN = 4
# Those that were ever published: 2 to 5 for TC strings, 2 at most in Canada. What a later policy takes a bit to mean
# nobody knows yet. Source: "tcfPolicyVersion" of the global vendor lists; IAB Tech Lab's iabgpp for Canada.
POLICY_VERSIONS = range(2, 6)
CANADA_POLICY_VERSIONS = range(1, 3)
POLICY_REQUIRED_FROM = datetime(2023, 10, 1, tzinfo=UTC)
# Storage needs consent always; for purposes 3 to 6 legitimate interest was withdrawn with TCF 2.2, which asks that
# their bits be 0: where they are set, under whichever policy, they count for nothing.
# Source: TCF, "Why was support for legitimate interest for purposes 3 to 6 deprecated?".
CONSENT_ONLY_PURPOSES = frozenset({1, 3, 4, 5, 6})
# Strings carry the day, in UTC; a CMP that takes the local one may be this much ahead.
AHEAD_MAX = timedelta(days=1)


class Reason(StrEnum):
    """Why a purpose stands where it does."""

    CONSENTED = "CONSENTED"
    MALFORMED = "MALFORMED"
    DEVIATING = "DEVIATING"
    CMP_UNKNOWN = "CMP_UNKNOWN"
    GLOBAL_SCOPE = "GLOBAL_SCOPE"
    POLICY_OUT_OF_FORCE = "POLICY_OUT_OF_FORCE"
    POLICY_UNKNOWN = "POLICY_UNKNOWN"
    FROM_THE_FUTURE = "FROM_THE_FUTURE"
    TOO_OLD = "TOO_OLD"
    PUBLISHER_SEGMENT_MISSING = "PUBLISHER_SEGMENT_MISSING"
    PURPOSE_NOT_CONSENTED = "PURPOSE_NOT_CONSENTED"
    SPECIAL_FEATURE_NOT_CONSENTED = "SPECIAL_FEATURE_NOT_CONSENTED"
    VENDOR_NOT_DISCLOSED = "VENDOR_NOT_DISCLOSED"
    OPTED_OUT = "OPTED_OUT"
    GLOBAL_PRIVACY_CONTROL = "GLOBAL_PRIVACY_CONTROL"
    DO_NOT_PERSONALIZE = "DO_NOT_PERSONALIZE"
    NO_SIGNAL = "NO_SIGNAL"


class _Set(Protocol):
    def __contains__(self, vendor_id: int, /) -> bool: ...


class _Choices(Protocol):
    @property
    def purpose_consents(self) -> tuple[int, ...]: ...
    @property
    def purpose_legitimate_interests(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class _Basis:
    """Purposes and vendors that have a legal basis, and the restriction that demands the other one."""

    purposes: frozenset[int]
    vendors: _Set
    refused_by: RestrictionType


def reason_against_tc(tc: TcString, rule: TcfRule, now: datetime, age_max: timedelta) -> Reason | None:
    """Why the string does not grant what the rule asks for; None: it does."""
    core = tc.core
    reason = _unreliable(core.cmp_id, core.last_updated, now, age_max)
    if reason is not None:
        return reason
    if not core.is_service_specific:
        return Reason.GLOBAL_SCOPE
    if core.policy_version not in POLICY_VERSIONS:
        return Reason.POLICY_UNKNOWN
    if core.policy_version < POLICY_VERSION_MIN and core.last_updated >= POLICY_REQUIRED_FROM:
        return Reason.POLICY_OUT_OF_FORCE
    choices: _Choices | None = tc.publisher if rule.publisher else core
    if choices is None:
        return Reason.PUBLISHER_SEGMENT_MISSING
    interests = frozenset(choices.purpose_legitimate_interests) - CONSENT_ONLY_PURPOSES
    bases = [
        _Basis(frozenset(choices.purpose_consents), core.vendor_consents, RestrictionType.REQUIRE_LEGITIMATE_INTEREST),
        _Basis(interests, core.vendor_legitimate_interests, RestrictionType.REQUIRE_CONSENT),
    ]
    restricted = [(one.purpose, one.type) for one in core.restrictions if covers(one.vendors, rule.vendor_id)]
    return _missing(rule, bases, core.special_feature_optins, tc.disclosed_vendors, restricted)


def reason_against_canada(canada: CanadaString, rule: TcfRule, now: datetime, age_max: timedelta) -> Reason | None:
    """Why the section does not grant what the rule asks for; None: it does."""
    core = canada.core
    reason = _unreliable(core.cmp_id, core.last_updated, now, age_max)
    if reason is not None:
        return reason
    if core.policy_version not in CANADA_POLICY_VERSIONS:
        return Reason.POLICY_UNKNOWN
    if rule.publisher and canada.publisher is None:
        return Reason.PUBLISHER_SEGMENT_MISSING
    express, implied = core.purpose_express_consents, core.purpose_implied_consents
    if rule.publisher and canada.publisher is not None:
        express, implied = canada.publisher.purpose_consents, canada.publisher.purpose_legitimate_interests
    bases = [
        _Basis(frozenset(express), core.vendor_express_consents, RestrictionType.REQUIRE_LEGITIMATE_INTEREST),
        _Basis(frozenset(implied), core.vendor_implied_consents, RestrictionType.REQUIRE_CONSENT),
    ]
    restricted = [
        (one.purpose, RestrictionType(one.type)) for one in core.restrictions if rule.vendor_id in one.vendors
    ]
    return _missing(rule, bases, core.special_feature_express_consents, canada.disclosed_vendors, restricted)


def _unreliable(cmp_id: int, last_updated: datetime, now: datetime, age_max: timedelta) -> Reason | None:
    if cmp_id < CMP_ID_MIN:
        return Reason.CMP_UNKNOWN
    if last_updated > now + AHEAD_MAX:
        return Reason.FROM_THE_FUTURE
    if last_updated < now - age_max:
        return Reason.TOO_OLD
    return None


def _missing(
    rule: TcfRule,
    bases: Sequence[_Basis],
    features: tuple[int, ...],
    disclosed: _Set | None,
    restricted: Sequence[tuple[int, RestrictionType]],
) -> Reason | None:
    """What of the rule is not there.

    A purpose needs one basis that the rule admits, on which the purpose and the vendor are both allowed, and no
    restriction of the vendor that forbids it or demands the other basis.
    """
    if not set(rule.special_features) <= set(features):
        return Reason.SPECIAL_FEATURE_NOT_CONSENTED
    if rule.vendor_id and disclosed is not None and rule.vendor_id not in disclosed:
        return Reason.VENDOR_NOT_DISCLOSED
    admitted = bases if rule.weaker_basis else bases[:1]

    def has_basis(purpose: int) -> bool:
        against = {kind for number, kind in restricted if number == purpose} if rule.vendor_id else set()
        return RestrictionType.NOT_ALLOWED not in against and any(
            purpose in basis.purposes
            and basis.refused_by not in against
            and (not rule.vendor_id or rule.vendor_id in basis.vendors)
            for basis in admitted
        )

    return None if all(map(has_basis, rule.purposes)) else Reason.PURPOSE_NOT_CONSENTED
