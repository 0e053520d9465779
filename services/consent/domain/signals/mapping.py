"""How consent signals bear on the purposes of a site: what the bundle declares, one mapping a jurisdiction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType

from services.consent.domain.signals.tcf import PURPOSES_COUNT, SPECIAL_FEATURES_COUNT
from services.consent.domain.signals.us_layouts import field_names

# People are to be reminded of their choices at least every 13 months. Source: TCF, "What happened to Created and
# LastUpdated?".
AGE_MAX = timedelta(days=396)


@dataclass(frozen=True, slots=True)
class TcfRule:
    """What a TCF string must hold to grant a purpose: all of it.

    Args:
        purposes: of the framework; each must have been consented to.
        special_features: each must have been opted in to.
        weaker_basis: whether legitimate interest (EU) or implied consent (Canada) will do in place of consent.
        publisher: the PublisherTC segment decides (the publisher's own use), not the core.
        vendor_id: who must have been allowed, too, and not be restricted; 0: nobody in particular.
    """

    purposes: tuple[int, ...]
    special_features: tuple[int, ...] = ()
    weaker_basis: bool = False
    publisher: bool = False
    vendor_id: int = 0


@dataclass(frozen=True, slots=True)
class PurposeRule:
    """Which signals bear on a purpose, and how.

    Args:
        tcf: grants or denies, by a TC string alone or in GPP section 2.
        canada: the same by GPP section 5.
        us_fields: fields of GPP's US sections whose value 1 (opted out, no consent) is an objection.
        usp_opt_out_sale: whether an opt-out in a US Privacy string, alone or in GPP section 6, is an objection.
        gpc: whether Global Privacy Control, as a header or in GPP, is an objection.
    """

    tcf: TcfRule | None = None
    canada: TcfRule | None = None
    us_fields: tuple[str, ...] = ()
    usp_opt_out_sale: bool = False
    gpc: bool = False

    @property
    def is_governed_by_gpp(self) -> bool:
        """Whether something in a GPP string could bear on the purpose."""
        return bool(self.tcf or self.canada or self.us_fields or self.usp_opt_out_sale or self.gpc)


@dataclass(frozen=True, slots=True)
class SignalMapping:
    """The rules by purpose; a purpose without one is left alone by all signals.

    Args:
        age_max: TCF strings that were last changed longer ago grant nothing.
    """

    rules: Mapping[str, PurposeRule] = field(default_factory=lambda: MappingProxyType({}))
    age_max: timedelta = AGE_MAX


# What holds where a site declares nothing.
DEFAULT_MAPPING = SignalMapping(
    MappingProxyType({"profile_personalization": PurposeRule(gpc=True), "model_training": PurposeRule(gpc=True)})
)


def problems(mapping: SignalMapping) -> tuple[str, ...]:
    """What is wrong with a mapping, one sentence each, for those who declare it."""
    return tuple(f"{purpose}: {one}" for purpose, rule in mapping.rules.items() for one in _problems(rule))


def _problems(rule: PurposeRule) -> Iterator[str]:
    for unknown in sorted(set(rule.us_fields) - field_names()):
        yield f"us_fields: no US section has a field {unknown}"
    for name, one in (("tcf", rule.tcf), ("canada", rule.canada)):
        if one is None:
            continue
        if not one.purposes and not one.special_features:
            yield f"{name}: names no purpose and no special feature, so that every string would grant it"
        if any(not 1 <= number <= PURPOSES_COUNT for number in one.purposes):
            yield f"{name}: purposes are numbered from 1 to {PURPOSES_COUNT}"
        if any(not 1 <= number <= SPECIAL_FEATURES_COUNT for number in one.special_features):
            yield f"{name}: special features are numbered from 1 to {SPECIAL_FEATURES_COUNT}"
        if one.publisher and one.vendor_id:
            yield f"{name}: the publisher's own use asks for no vendor; take out publisher or vendor_id"
        if not 0 <= one.vendor_id <= 0xFFFF:
            yield f"{name}: vendors are numbered from 1 to {0xFFFF}"
