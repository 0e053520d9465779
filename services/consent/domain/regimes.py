"""Regimes: what the law of a place makes of a person who was never asked, and which signals count there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from services.consent.domain.purposes import LEGITIMATE_INTEREST, Purpose
from services.consent.domain.signals.mapping import DEFAULT_MAPPING, PurposeRule


class Regime(IntEnum):
    """The numbers are those of comity.consent.v1.Regime."""

    UNSPECIFIED = 0
    # Nothing without consent, but for purposes of legitimate interest.
    OPT_IN = 1
    # Everything until the person objects.
    OPT_OUT = 2


@dataclass(frozen=True, slots=True)
class Jurisdiction:
    """A place, as the site tells places apart.

    Args:
        opt_in_purposes: need consent also where the regime is opt-out.
        gpc_objects_to: purposes that Sec-GPC objects to here, beyond those whose rule says so everywhere.
        is_default: holds where nobody says where the person is.
    """

    id: str
    regime: Regime
    opt_in_purposes: tuple[str, ...] = ()
    gpc_objects_to: tuple[str, ...] = ()
    is_default: bool = False


# Where a site tells no places apart.
ANYWHERE = Jurisdiction("", Regime.OPT_IN)


def jurisdiction_of(places: Mapping[str, Jurisdiction], *, stated: str, recorded: str) -> Jurisdiction:
    """Where the person is: as the call says, else as the person's newest answer was recorded, else the site's default.

    A place that the site does not know, or no place at all, is opt-in, and Sec-GPC objects to whatever it objects to
    anywhere: a mistyped name never allows what the right one would not.
    """
    named = stated or recorded
    if named:
        return places.get(named) or _strictest(places)
    return next((one for one in places.values() if one.is_default), None) or _strictest(places)


def is_allowed_unasked(purpose: Purpose, place: Jurisdiction) -> bool:
    """Whether the purpose may be pursued there for a person who never answered."""
    if place.regime is Regime.OPT_OUT:
        return purpose.id not in place.opt_in_purposes
    return purpose.legal_basis == LEGITIMATE_INTEREST


def rule_of(purpose: Purpose, place: Jurisdiction) -> PurposeRule | None:
    """Which signals bear on the purpose there; None: none does."""
    rule = DEFAULT_MAPPING.rules.get(purpose.id) if purpose.signals is None else purpose.signals
    if purpose.id not in place.gpc_objects_to:
        return rule
    return PurposeRule(gpc=True) if rule is None else replace(rule, gpc=True)


def _strictest(places: Mapping[str, Jurisdiction]) -> Jurisdiction:
    objected = {purpose for place in places.values() for purpose in place.gpc_objects_to}
    return Jurisdiction("", Regime.OPT_IN, gpc_objects_to=tuple(sorted(objected)))
