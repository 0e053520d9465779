"""The purposes of a site: what data may be used for, and what stands for a person who was never asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from services.chassis.errors import FieldProblem, Kind, ServiceError

CONSENT = "consent"
LEGITIMATE_INTEREST = "legitimate_interest"

# Verdicts of a request name each purpose of the site; callers can ask for this many (EvaluateQuery.purposes).
PURPOSES_MAX = 64


@dataclass(frozen=True, slots=True)
class Purpose:
    """What data may be used for.

    Args:
        legal_basis: CONSENT or LEGITIMATE_INTEREST.
        version: raised when the meaning changes: consent given to an earlier version no longer counts.
    """

    id: str
    description: str
    legal_basis: str
    owner: str
    retention_days: int
    version: int

    @property
    def is_allowed_unasked(self) -> bool:
        """Whether it may be pursued for a person who never answered."""
        return self.legal_basis == LEGITIMATE_INTEREST


@dataclass(frozen=True, slots=True)
class Policy:
    """All purposes of the site at one time; *version* is the hash of their content, empty before the first."""

    version: str = ""
    purposes: Mapping[str, Purpose] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def names(self) -> str:
        """The purposes, as an error text lists them."""
        return ", ".join(sorted(self.purposes)) or "none (apply a site bundle first)"


def declare(policy: Policy, declared: Sequence[Purpose]) -> dict[str, Purpose]:
    """The purposes after these were declared: added or put in place of theirs; none is ever taken away.

    Raises:
        ServiceError: INVALID (PURPOSES_INVALID), with every field that is wrong.
    """
    after = {**policy.purposes, **{one.id: one for one in declared}}
    problems = [problem for index, one in enumerate(declared) for problem in _problems(policy, declared[:index], one)]
    found = [FieldProblem(f"purposes[{index}].{name}", problem) for index, name, problem in problems]
    if len(after) > PURPOSES_MAX:
        found.append(FieldProblem("purposes", f"the site would have {len(after)}; it can have {PURPOSES_MAX}"))
    if found:
        message = f"{found[0].field}: {found[0].problem}"
        raise ServiceError(Kind.INVALID, "PURPOSES_INVALID", message, problems=tuple(found))
    return after


def content(purposes: Mapping[str, Purpose]) -> bytes:
    """The same bytes for the same purposes, whatever their order: what the policy version is the hash of."""
    lines = [
        "\0".join((one.id, one.description, one.legal_basis, one.owner, str(one.retention_days), str(one.version)))
        for one in sorted(purposes.values(), key=lambda one: one.id)
    ]
    return "\0\0".join(lines).encode()


def _problems(policy: Policy, earlier: Sequence[Purpose], one: Purpose) -> list[tuple[int, str, str]]:
    index = len(earlier)
    problems = []
    if any(other.id == one.id for other in earlier):
        problems.append((index, "id", "is declared twice; remove one"))
    known = policy.purposes.get(one.id)
    if known is not None and one.version < known.version:
        problems.append((index, "version", f"is below {known.version}, which is declared; versions only rise"))
    if known is not None and one.version <= known.version and one.legal_basis != known.legal_basis:
        remedy = f"changed: raise the version to {known.version + 1}, so that people are asked"
        problems.append((index, "legal_basis", remedy))
    return problems
