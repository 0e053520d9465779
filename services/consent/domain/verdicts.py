"""Verdicts: whether a person's data may be used for a purpose, from what stands for each of the person's members.

Nothing is moved when subjects merge; what the members said is combined at every read. At a merge the most restrictive
of the two sides' answers stands; what any of them says after it is said for the whole person, and the latest stands.
Where a person was merged several times, this goes merge by merge: consent given as a merged person survives the next
merge with somebody who said nothing. An unmerged member has its own answers and no others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.consent.domain.ledger import NEVER, Standing, State
from services.consent.domain.purposes import Policy, Purpose

_EVER = datetime.min.replace(tzinfo=UTC)
_STRICTNESS = {State.GRANTED: 0, State.EXPIRED: 1, State.DENIED: 2, State.REVOKED: 3, State.OBJECTED: 4}


@dataclass(frozen=True, slots=True)
class Member:
    """A pseudonym of the person, and when it joined; None for the one the person began with."""

    member_id: str
    merged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """Whether this person's data may be used for these purposes."""

    members: tuple[Member, ...]
    purposes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether, and the state that decided it; UNSPECIFIED when the person was never asked."""

    purpose: str
    allowed: bool
    state: State


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The verdicts on a query; *consent_version* is the highest of the members' ledgers."""

    verdicts: tuple[Verdict, ...]
    consent_version: int


# What stands for each member, by purpose.
Standings = Mapping[str, Mapping[str, Standing]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What stands for members, and the purposes, at one moment."""

    policy: Policy
    standings: Standings


# When the member joined the person, and what stands for it.
MemberAnswer = tuple[datetime | None, Standing]


def evaluate(query: Query, standings: Standings, policy: Policy, now: datetime) -> Evaluation:
    """The verdicts on a query, in the order of its purposes."""
    known = [(one.merged_at, standings[one.member_id]) for one in query.members if one.member_id in standings]
    verdicts = tuple(
        verdict(name, policy.purposes.get(name), [(at, stood[name]) for at, stood in known if name in stood], now)
        for name in query.purposes
    )
    versions = (one.consent_version for _, stood in known for one in stood.values())
    return Evaluation(verdicts, max(versions, default=0))


def verdict(name: str, purpose: Purpose | None, answers: Sequence[MemberAnswer], now: datetime) -> Verdict:
    """Whether the purpose may be pursued; one that is not declared may not."""
    if purpose is None:
        return Verdict(name, allowed=False, state=State.UNSPECIFIED)
    # Consent to what the purpose used to mean is no consent; a refusal of it is still one.
    counting = [
        (at, one) for at, one in answers if one.state is not State.GRANTED or one.purpose_version >= purpose.version
    ]
    standing = combine(counting, now)
    if standing is None:
        return Verdict(name, allowed=purpose.is_allowed_unasked, state=State.UNSPECIFIED)
    state = state_at(standing, now)
    return Verdict(name, allowed=state is State.GRANTED, state=state)


def state_at(standing: Standing, now: datetime) -> State:
    """The state at a time: consent has expired from its expires_at on."""
    return State.EXPIRED if standing.state is State.GRANTED and standing.expires_at <= now else standing.state


def combine(answers: Sequence[MemberAnswer], now: datetime) -> Standing | None:
    """The one answer that stands for the person; None when no member has one.

    Members that never answered do not matter, nor does when they joined.
    """
    if len(answers) < 2:
        return answers[0][1] if answers else None

    def strictness(one: Standing) -> int:
        return _STRICTNESS[state_at(one, now)]

    current: Standing | None = None
    merges = sorted({at or _EVER for at, _ in answers})
    for merged_at, next_at in zip(merges, [*merges[1:], NEVER], strict=True):
        # What the members that join now had answered by now; those that the person began with, until the first merge.
        until = next_at if merged_at == _EVER else merged_at
        sides = [one for at, one in answers if (at or _EVER) == merged_at and one.answered_at <= until]
        current = max([*sides, *([current] if current else [])], key=strictness, default=None)
        since = [one for at, one in answers if (at or _EVER) <= merged_at < one.answered_at <= next_at]
        if since and merged_at != _EVER:
            current = max(since, key=lambda one: (one.answered_at, strictness(one)))
    return current
