"""Declaring a site's policy: what is wrong with a declaration, and the bytes that its version is the hash of."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.consent.domain.ledger import NEVER
from services.consent.domain.notices import Notice, changes
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import LEGITIMATE_INTEREST, Purpose
from services.consent.domain.regimes import Jurisdiction, Regime
from services.consent.domain.signals.mapping import SignalMapping
from services.consent.domain.signals.mapping import problems as mapping_problems

# Verdicts of a request name each purpose of the site; callers can ask for this many (EvaluateQuery.purposes).
PURPOSES_MAX = 64
# Together with the purposes a policy of this size is read in milliseconds, once a version.
NOTICES_MAX = 1024
JURISDICTIONS_MAX = 256
# The form of a BCP 47 tag, not the register of languages; the tags of more than three letters in it are never used.
LANGUAGE_TAG = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{1,8})*")

_KNOWN_REGIMES = (Regime.OPT_IN, Regime.OPT_OUT)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a site bundle declares about consent."""

    purposes: Sequence[Purpose]
    notices: Sequence[Notice] = ()
    jurisdictions: Sequence[Jurisdiction] = ()
    controller: str = ""


def declare(policy: Policy, declared: Declaration, hash_of: Callable[[bytes], str]) -> Policy:
    """The policy after this was declared: added, or put in place of what has the same id; nothing is ever taken away.

    Args:
        hash_of: names content.

    Raises:
        ServiceError: INVALID (PURPOSES_INVALID), with every field that is wrong.
    """
    after = Policy(
        purposes={**policy.purposes, **{one.id: one for one in declared.purposes}},
        notices={**policy.notices, **{one.version: one for one in declared.notices}},
        jurisdictions={**policy.jurisdictions, **{one.id: one for one in declared.jurisdictions}},
        controller=declared.controller or policy.controller,
    )
    after = replace(after, version=hash_of(content(after)))
    found = [FieldProblem(field, problem) for field, problem in _problems(policy, declared, after)]
    if found:
        message = f"{found[0].field}: {found[0].problem}"
        raise ServiceError(Kind.INVALID, "PURPOSES_INVALID", message, problems=tuple(found))
    return after


def content(policy: Policy) -> bytes:
    """The same bytes for the same policy, whatever the order: what its version is the hash of.

    What a site does not declare adds nothing, so that the version of a site that only has purposes is the one it had
    before there was anything else to declare.
    """
    ordered = sorted(policy.purposes.values(), key=lambda one: one.id)
    lines = [
        "\0".join((one.id, one.description, one.legal_basis, one.owner, str(one.retention_days), str(one.version)))
        for one in ordered
    ]
    parts: dict[str, object] = {
        "personalizes": [one.id for one in ordered if one.personalizes],
        "signals": {one.id: asdict(one.signals) for one in ordered if one.signals is not None},
        "notices": {name: _plain(one) for name, one in sorted(policy.notices.items())},
        "jurisdictions": {name: _plain(one) for name, one in sorted(policy.jurisdictions.items())},
        "controller": policy.controller,
    }
    more = {name: part for name, part in parts.items() if part}
    tail = [json.dumps(more, sort_keys=True, separators=(",", ":"))] if more else []
    return "\0\0".join([*lines, *tail]).encode()


def _plain(one: Notice | Jurisdiction) -> dict[str, object]:
    """As JSON: lists whose order says nothing are sorted."""
    plain = {name: sorted(value) if isinstance(value, tuple) else value for name, value in asdict(one).items()}
    if isinstance(one, Notice):
        plain["retired_at"] = "" if one.retired_at == NEVER else one.retired_at.isoformat()
    return plain


_Found = Iterator[tuple[str, str]]


def _problems(policy: Policy, declared: Declaration, after: Policy) -> _Found:
    """Field and problem of everything that is wrong."""
    for index, purpose in enumerate(declared.purposes):
        for name, problem in _purpose_problems(policy, declared.purposes[:index], purpose):
            yield f"purposes[{index}].{name}", problem
    for index, notice in enumerate(declared.notices):
        for name, problem in _notice_problems(policy, declared.notices[:index], notice, after):
            yield f"notices[{index}].{name}", problem
    for index, place in enumerate(declared.jurisdictions):
        for name, problem in _jurisdiction_problems(declared.jurisdictions[:index], place, after):
            yield f"jurisdictions[{index}].{name}", problem
    yield from _sum_problems(after)
    yield from _unread_problems(policy, after)


def _sum_problems(after: Policy) -> _Found:
    sizes = (
        ("purposes", after.purposes, PURPOSES_MAX),
        ("notices", after.notices, NOTICES_MAX),
        ("jurisdictions", after.jurisdictions, JURISDICTIONS_MAX),
    )
    for name, things, most in sizes:
        if len(things) > most:
            yield name, f"the site would have {len(things)}; it can have {most}"
    defaults = sorted(one.id for one in after.jurisdictions.values() if one.is_default)
    if len(defaults) > 1:
        yield "jurisdictions", f"{' and '.join(defaults)} are default; declare all but one of them without is_default"


def _unread_problems(policy: Policy, after: Policy) -> _Found:
    """What would be lost, because it cannot be read now and was not declared again."""
    if lost := sorted(policy.unread_purposes.keys() - after.purposes.keys()):
        yield "purposes", f"lack {', '.join(lost)}, which cannot be read now; declare them again"
    if policy.unread_notices and after.version != policy.version:
        # Their text is not known: only that of the version as it was published is surely the same.
        names = ", ".join(sorted(policy.unread_notices))
        yield "notices", f"{names} cannot be read now; declare the policy as it was first, or mend the rows"


def _purpose_problems(policy: Policy, earlier: Sequence[Purpose], one: Purpose) -> _Found:
    if any(other.id == one.id for other in earlier):
        yield "id", "is declared twice; remove one"
    known = policy.purposes.get(one.id) or policy.unread_purposes.get(one.id)
    if known is not None and one.version < known.version:
        yield "version", f"is below {known.version}, which is declared; versions only rise"
    if known is not None and one.version <= known.version and one.legal_basis != known.legal_basis:
        yield "legal_basis", f"changed: raise the version to {known.version + 1}, so that people are asked"
    if one.signals is not None:
        for problem in mapping_problems(SignalMapping({one.id: one.signals})):
            yield "signals", problem.removeprefix(f"{one.id}: ")


def _notice_problems(policy: Policy, earlier: Sequence[Notice], one: Notice, after: Policy) -> _Found:
    if any(other.version == one.version for other in earlier):
        yield "version", "is declared twice; remove one"
    yield from _unknown_purposes("purposes", one.purposes, after)
    for index, language in enumerate(one.languages):
        if not LANGUAGE_TAG.fullmatch(language):
            yield f"languages[{index}]", "is no BCP 47 tag; write for example en, de-AT or zh-Hans"
    known = policy.notices.get(one.version)
    if known is not None:
        yield from changes(known, one)


def _jurisdiction_problems(earlier: Sequence[Jurisdiction], one: Jurisdiction, after: Policy) -> _Found:
    if any(other.id == one.id for other in earlier):
        yield "id", "is declared twice; remove one"
    if one.regime not in _KNOWN_REGIMES:
        yield "regime", "is no regime that is known; write REGIME_OPT_IN or REGIME_OPT_OUT"
    yield from _unknown_purposes("opt_in_purposes", one.opt_in_purposes, after)
    yield from _unknown_purposes("gpc_objects_to", one.gpc_objects_to, after)
    for index, name in enumerate(one.opt_in_purposes):
        purpose = after.purposes.get(name)
        if purpose is not None and purpose.legal_basis == LEGITIMATE_INTEREST:
            # Else the laxer regime would be the stricter one for it.
            yield (
                f"opt_in_purposes[{index}]",
                f"{name} is a legitimate interest and needs consent nowhere; leave it out",
            )


def _unknown_purposes(field: str, names: Sequence[str], after: Policy) -> _Found:
    for index, name in enumerate(names):
        if name not in after.purposes:
            yield f"{field}[{index}]", f"is no declared purpose; declared are: {after.names}"
