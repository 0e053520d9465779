"""Layers: how much of a person may be used at a placement, by how well they are known and what they allow.

A placement that declares no layers has one for every level: all of its purposes, and every column that is allowed. One
that declares them uses the strongest that the person's level reaches and whose purposes are all allowed, and of the
person only the columns of that layer's purposes: somebody who is not logged in, or did not agree to the profile, is
still given what less of them allows. Where no layer is left there is no consent. Consent decides first: a layer without
purposes is used only for people of whom consent was read, and only at a placement that declares it.
"""

from collections.abc import Iterator

from services.decision.domain.plan import Plan
from services.decision.domain.site import Layer
from services.decision.domain.vocabulary import Level


def layer_of(plan: Plan, level: Level, allowed: frozenset[str]) -> Layer | None:
    """The layer that is used, its purposes being those whose columns are read; None: nothing of the person."""
    if not plan.layers:
        return Layer(level, allowed) if plan.purposes <= allowed else None
    reached = _reached(level)
    return next((one for one in plan.layers if one.level <= reached and one.purposes <= allowed), None)


def still_covers(plan: Plan, used: Level, level: Level, allowed: frozenset[str]) -> bool:
    """Whether what a layer of this level used may be used now; a retry asks about the decision that was made."""
    now = layer_of(plan, level, allowed)
    if now is None:
        return False
    return not plan.layers or any(one.level == used and one.purposes <= allowed for one in plan.layers)


def not_stronger(plan: Plan, level: Level, allowed: frozenset[str], used: Layer | None) -> Iterator[str]:
    """Why each layer stronger than the one that was used was not, strongest first."""
    for one in plan.layers:
        if used is not None and one.level <= used.level:
            return
        if one.level > _reached(level):
            yield f"not {one.level.name}: the person is {_reached(level).name}"
        else:
            yield f"not {one.level.name}: {', '.join(sorted(one.purposes - allowed))} not allowed"


def _reached(level: Level) -> Level:
    """A person who was named by a pseudonym is known, and nothing says how well: the least there is."""
    return max(level, Level.ANONYMOUS)
